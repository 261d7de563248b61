"""The whole test suite runs with XLA set up as in the programs."""

from memdef_jax import console

console.prepare_cpu()
