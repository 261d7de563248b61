"""The whole test suite runs with XLA set up as in the programs, but for little optimisation.

Most tests compile a program and run it for an instant; optimising it would take most of the time.
"""

import os

from memdef_jax import console

console.prepare_cpu()
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
