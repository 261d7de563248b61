"""The whole test suite runs with XLA set up as in the programs, but for little optimisation.

Most tests compile a program and run it for an instant; compiling it well would take most of the
time. What takes half a second to compile is kept for the other worker and the other processes of
the same run of the tests.
"""

import os
import shutil
import tempfile

import jax
import pytest

from memdef_jax import console
from memdef_jax.compiled import forget_programs
from tests.xla_flags import FLAGS

console.prepare_cpu()
os.environ["XLA_FLAGS"] += f" {FLAGS}"

# Workers and the tests' own processes inherit the environment of the first process.
_SHARED = "MEMDEF_JAX_TESTS_CACHE"
_OWNER = _SHARED not in os.environ
if _OWNER:
    os.environ[_SHARED] = tempfile.mkdtemp(prefix="memdef_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{os.environ[_SHARED]}/memdef_jax/xla"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiled programs are let go before they take all the memory maps a process may have."""
    yield
    forget_programs()


def pytest_unconfigure():
    """The last to go removes what was kept."""
    if _OWNER:
        shutil.rmtree(os.environ[_SHARED], ignore_errors=True)
