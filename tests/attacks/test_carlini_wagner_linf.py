"""CW-Linf against the distance to a hyperplane, and its honesty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks.carlini_wagner_linf import CarliniWagnerLinf
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
SHORT = {"search_steps": 8, "steps": 20}


@pytest.mark.parametrize(
    ("batch", "classes", "shape"), [(1, 2, (5, 4, 3)), (3, 3, (7, 3, 1)), (8, 10, (1, 9, 2))]
)
def test_within_five_percent_of_the_distance_to_the_hyperplane(
    linear_problem, batch, classes, shape
):
    model, x, y = linear_problem(batch, classes, shape, seed=classes)
    logits, w = np.asarray(model(x)), np.asarray(model.w)
    slopes = np.abs(w.T[np.asarray(y)][:, None] - w.T[None]).sum(-1)
    gaps = logits[np.arange(batch), y][:, None] - logits
    optimum = np.where(slopes > 0, gaps / np.where(slopes > 0, slopes, 1), np.inf).min(1)
    result = CarliniWagnerLinf().run(model, x, y)
    assert result.success.all()
    assert (np.argmax(model(result.images), -1) != y).all()
    ratio = np.asarray(result.norm) / optimum
    assert ratio.max() < 1.05
    assert ratio.min() > 0.999
    np.testing.assert_array_equal(result.forward, result.steps + 1)


def test_on_a_quadratic_model():
    """The boundary is a sphere, reached first where every pixel moves outward by as much."""
    rng = np.random.default_rng(1)
    x = (0.5 + rng.uniform(0.02, 0.1, (3, 3, 3, 1))).astype(np.float32)

    def model(z):
        square = jnp.sum((z - 0.5) ** 2, axis=(1, 2, 3))
        return jnp.stack([square * 0, square - 1], axis=1)

    offset = (x - 0.5).reshape(3, -1).astype(np.float64)
    b, c = offset.sum(1), (offset**2).sum(1) - 1
    optimum = (-b + np.sqrt(b**2 - 9 * c)) / 9
    result = CarliniWagnerLinf().run(model, jnp.asarray(x), jnp.zeros(3, jnp.int32))
    assert result.success.all()
    assert (np.asarray(result.norm) / optimum).max() < 1.05


def test_pixels_at_zero_and_one_move(linear_problem):
    model, x, y = linear_problem(batch=4, classes=2)
    x = jnp.round(x)
    y = jnp.argmax(model(x), -1).astype(jnp.int32)
    w = np.asarray(model.w)
    direction = np.where(np.asarray(y)[:, None] == 0, 1, -1) * (w[:, 1] - w[:, 0])
    free = (direction > 0) != (np.asarray(x).reshape(4, -1) > 0.5)
    gap = np.abs(np.asarray(model(x)) @ np.array([-1, 1]))
    optimum = gap / np.where(free, np.abs(direction), 0).sum(1)
    assert (optimum < 1).all()
    result = CarliniWagnerLinf().run(model, x, y)
    assert result.success.all()
    assert (np.asarray(result.norm) / optimum).max() < 1.05
    assert result.images.min() >= 0
    assert result.images.max() <= 1


def test_targeted_with_confidence(linear_problem):
    model, x, y = linear_problem(classes=3, batch=3)
    target = (y + 1) % 3
    result = CarliniWagnerLinf(targeted=True, confidence=0.1).run(model, x, target)
    logits = np.asarray(model(result.images))
    own = np.eye(3, dtype=bool)[target]
    assert result.success.all()
    assert (logits[own] - np.where(own, -np.inf, logits).max(1) >= 0.1).all()


def test_a_failure_returns_the_clean_image_and_says_so():
    x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
    y = jnp.zeros(3, jnp.int32)
    result = CarliniWagnerLinf(**SHORT).run(lambda x: jnp.eye(5)[y], x, y)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.steps, 8 * 4)  # each stage stalls at its second check


def test_an_image_that_fools_already_is_returned_as_it_is(linear_problem):
    model, x, y = linear_problem(classes=3)
    result = CarliniWagnerLinf(**SHORT).run(model, x, (y + 1) % 3)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.steps, 0)


def test_jitted_equals_eager_and_nan_is_told(mlp_problem):
    model, x, y = mlp_problem(batch=12)
    attack = CarliniWagnerLinf(**SHORT, learning_rate=0.05)
    eager = attack.run(model, x, y)
    whole = jax.jit(lambda model, x, y: attack.run(model, x, y))(model, x, y)
    assert eager.success.any()
    np.testing.assert_allclose(whole.images, eager.images, atol=1e-5)
    np.testing.assert_array_equal(whole.success, eager.success)

    def broken(x):
        return jnp.where(jnp.arange(x.shape[0])[:, None] == 1, jnp.nan, model(x))

    result = jax.jit(lambda x, y: attack.run(broken, x, y))(x, y)
    assert not result.success[1]
    assert np.isfinite(result.images).all()


def test_bad_numbers_are_refused(linear_problem):
    model, x, y = linear_problem()
    with pytest.raises(InputError, match="learning_rate 0"):
        CarliniWagnerLinf(learning_rate=0.0)(model, x, y)
    with pytest.raises(InputError, match="search_steps 0"):
        CarliniWagnerLinf(search_steps=0)
