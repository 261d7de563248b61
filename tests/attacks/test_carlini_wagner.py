"""CW-L2 against the distance to a hyperplane, and its honesty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import CarliniWagnerL2

pytestmark = pytest.mark.usefixtures("quick_compile")
ATTACK = {"search_steps": 6, "steps": 150, "learning_rate": 1e-2, "initial_const": 0.1}


@pytest.mark.parametrize(
    ("batch", "classes", "shape"), [(1, 2, (5, 4, 3)), (3, 3, (7, 3, 1)), (8, 10, (1, 9, 2))]
)
@pytest.mark.parametrize("targeted", [False, True])
def test_within_five_percent_of_the_distance_to_the_hyperplane(
    linear_problem, batch, classes, shape, targeted
):
    model, x, y = linear_problem(batch, classes, shape, seed=classes)
    logits = np.asarray(model(x))
    other = np.where(np.eye(classes, dtype=bool)[y], -np.inf, logits)
    labels = y
    if targeted:
        labels = jnp.asarray(other.argmax(1), jnp.int32)
    optimum = (logits[np.arange(batch), y] - other.max(1)) / np.sqrt(2)  # orthonormal columns
    result = CarliniWagnerL2(targeted=targeted).run(model, x, labels)
    assert result.success.all()
    hit = np.argmax(model(result.images), -1) == labels
    assert (hit if targeted else ~hit).all()
    ratio = np.asarray(result.norm) / optimum
    assert (ratio < 1.05).all()
    assert (ratio > 0.999).all()


def test_confidence_is_kept_and_costs_distance(linear_problem):
    model, x, y = linear_problem(classes=2)
    plain = CarliniWagnerL2(**ATTACK).run(model, x, y)
    confident = CarliniWagnerL2(**ATTACK, confidence=0.2).run(model, x, y)
    logits = np.asarray(model(confident.images))
    gap = logits[np.arange(8), 1 - y] - logits[np.arange(8), y]
    assert confident.success.all()
    assert (gap >= 0.2).all()
    np.testing.assert_allclose(confident.norm - plain.norm, 0.2 / np.sqrt(2), rtol=0.1)


def test_a_failure_returns_the_clean_image_and_says_so():
    x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
    y = jnp.zeros(3, jnp.int32)
    result = CarliniWagnerL2(**ATTACK).run(lambda x: jnp.eye(5)[y], x, y)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.norm, 0)
    # A constant loss stalls at the second check of every search step.
    np.testing.assert_array_equal(result.steps, 6 * 2 * 15)


def test_pixels_at_zero_and_one_move_as_far_as_they_should(linear_problem):
    model, x, y = linear_problem(batch=4, classes=2)
    x = jnp.round(x)
    y = jnp.argmax(model(x), -1).astype(jnp.int32)
    result = CarliniWagnerL2(search_steps=8, steps=300, learning_rate=0.02, initial_const=1.0).run(
        model, x, y
    )
    # Only pixels that can go the way of the gradient take part in the smallest perturbation.
    w = np.asarray(model.w)
    direction = np.where(np.asarray(y)[:, None] == 0, 1, -1) * (w[:, 1] - w[:, 0])
    free = (direction > 0) != (np.asarray(x).reshape(4, -1) > 0.5)
    slope = np.linalg.norm(np.where(free, direction, 0), axis=1)
    optimum = np.abs(np.asarray(model(x)) @ np.array([-1, 1])) / slope
    assert (optimum * np.abs(direction).max() / slope < 1).all()  # no pixel reaches its other end
    assert result.success.all()
    ratio = np.asarray(result.norm) / optimum
    assert ratio.max() < 1.05
    assert ratio.min() > 0.999
    assert result.images.min() >= 0
    assert result.images.max() <= 1


def test_an_image_that_fools_already_is_returned_as_it_is(linear_problem):
    model, x, y = linear_problem(classes=3)
    result = CarliniWagnerL2(**ATTACK).run(model, x, (y + 1) % 3)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.steps, 0)


def test_a_stalled_sample_uses_fewer_iterations_for_the_same_result(linear_problem):
    model, x, y = linear_problem(classes=2)
    early = CarliniWagnerL2(**ATTACK).run(model, x, y)
    full = CarliniWagnerL2(**ATTACK, abort_early=False).run(model, x, y)
    np.testing.assert_array_equal(full.steps, 6 * 150)
    assert (early.steps < full.steps).all()
    np.testing.assert_allclose(early.norm, full.norm, rtol=0.05)


def test_numbers_may_differ_by_sample(linear_problem):
    model, x, y = linear_problem(classes=2)
    confidence = np.array([0.0, 0.2] * 4, np.float32)
    mixed = CarliniWagnerL2(**ATTACK, confidence=confidence).run(model, x, y)
    plain = CarliniWagnerL2(**ATTACK).run(model, x, y)
    np.testing.assert_allclose(mixed.norm[::2], plain.norm[::2], rtol=1e-4)
    assert (mixed.norm[1::2] > plain.norm[1::2]).all()
