"""A small untrained Memory Defense and a few digits."""

import jax
import jax.numpy as jnp
import pytest

from memdef_jax import data
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def spec():
    return MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10, memory_rows=20, softmax_scale=5.0)


@pytest.fixture(scope="session")
def make_defense(spec):
    """make(seed): other weights of the same networks, with statistics that are not 0 and 1."""

    def make(seed=0):
        variables = {
            "selector": spec.init_selector(jax.random.key(seed)),
            "stack": spec.init_stack(jax.random.key(seed + 100)),
        }
        stats = variables["stack"]["batch_stats"]
        variables["stack"]["batch_stats"] = jax.tree.map(lambda a: a + 0.1, stats)
        return MemoryDefense(spec, variables)

    return make


@pytest.fixture(scope="session")
def defense(make_defense):
    return make_defense()


@pytest.fixture(scope="session")
def images(digits):
    """(x float32 [6, 28, 28, 1], y int32 [6])."""
    part = digits.test[0:360:60]
    return jnp.asarray(data.to_float(part.images)), jnp.asarray(part.labels)
