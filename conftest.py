"""The whole test suite runs with XLA set up as in the programs, but for little optimisation.

Most tests compile a program and run it for an instant; optimising it would take most of the time.
"""

import os
import pathlib

import jax
import pytest

from memdef_jax import console

console.prepare_cpu()
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

_MAPS = pathlib.Path("/proc/self/maps")
_MANY = 25_000  # Linux allows a process 65,530, and XLA crashes there


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiled programs are let go before they take all the memory maps a process may have."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()
