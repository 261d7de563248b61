"""How the tests have XLA compile: most programs of theirs run for an instant."""

# Nothing is optimised; and the emitters that XLA's CPU compiler had before its present ones start
# faster, which halves what compiling takes. XLA stops at flags that it does not know: jaxlib 0.10
# and 0.11 know both.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
