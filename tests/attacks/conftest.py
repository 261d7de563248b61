"""Models whose best attack is known, for all tests of attacks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """logits = x w + b."""

    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return x.reshape(x.shape[0], -1) @ self.w + self.b


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mlp:
    """One hidden ReLU layer."""

    w1: jax.Array
    w2: jax.Array

    def __call__(self, x):
        return jax.nn.relu(x.reshape(x.shape[0], -1) @ self.w1) @ self.w2


@pytest.fixture
def quick_compile():
    """Compile without optimising: for tests of many small programs, where compiling is the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def linear():
    return Linear


@pytest.fixture
def linear_problem():
    """A factory: (linear model with orthonormal columns, images, its own predictions as labels)."""

    def make(batch=8, classes=10, shape=(5, 4, 3), seed=0, low=0.3, high=0.7):
        rng = np.random.default_rng(seed)
        pixels = int(np.prod(shape))
        w, _ = np.linalg.qr(rng.normal(size=(pixels, classes)))
        x = rng.uniform(low, high, (4 * batch, *shape)).astype(np.float32)
        b = -0.5 * w.sum(0)
        model = Linear(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32))
        # Keep the images farthest from a decision boundary, in their random order.
        logits = np.sort(np.asarray(model(x)), axis=-1)
        x = x[np.sort(np.argsort(logits[:, -2] - logits[:, -1])[:batch])]
        return model, jnp.asarray(x), jnp.argmax(model(x), axis=-1).astype(jnp.int32)

    return make


@pytest.fixture
def mlp_problem():
    """A factory: (small ReLU network, images, its own predictions as labels)."""

    def make(batch=8, classes=4, shape=(4, 3, 2), seed=0):
        rng = np.random.default_rng(seed)
        w1 = rng.normal(size=(int(np.prod(shape)), 16))
        w2 = rng.normal(size=(16, classes))
        model = Mlp(jnp.asarray(w1, jnp.float32), jnp.asarray(w2, jnp.float32))
        x = jnp.asarray(rng.uniform(size=(batch, *shape)), jnp.float32)
        return model, x, jnp.argmax(model(x), axis=-1).astype(jnp.int32)

    return make
