"""DeepFool against boundaries whose distance is known, and its honesty."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from memdef_jax.attacks.deepfool import DeepFool
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
whole = jax.jit(lambda attack, model, x, y: attack.run(model, x, y))


def sphere(x):
    """Class 0 inside a ball of radius 2 around 0.5."""
    inside = 4.0 - jnp.sum((x - 0.5) ** 2, axis=(1, 2, 3))
    return jnp.stack([inside, jnp.zeros_like(inside)], -1)


def linear_optimum(model, x, labels, up, norm):
    """Distance to where `up` ties with the labels, the box left aside."""
    logits, w = np.float64(model(x)), np.float64(model.w)
    rows = np.arange(len(x))
    difference = w[:, up] - w[:, labels]
    dual = np.abs(difference).sum(0) if norm == "linf" else np.sqrt((difference**2).sum(0))
    return (logits[rows, labels] - logits[rows, up]) / dual


def closest_class(model, x, y, norm):
    """The smallest distance to any other class."""
    classes = model.w.shape[1]
    others = [(np.asarray(y) + k) % classes for k in range(1, classes)]
    return np.min([linear_optimum(model, x, np.asarray(y), up, norm) for up in others], axis=0)


@pytest.mark.parametrize(
    ("norm", "batch", "classes", "shape"),
    [
        ("linf", 1, 2, (5, 4, 3)),
        ("l2", 3, 3, (7, 3, 1)),
        ("linf", 8, 10, (1, 9, 2)),
        ("l2", 8, 10, (1, 9, 2)),
    ],
)
def test_within_five_percent_on_linear_models(linear_problem, norm, batch, classes, shape):
    model, x, y = linear_problem(batch, classes, shape, seed=classes)
    result = DeepFool(norm=norm).run(model, x, y)
    assert result.success.all()
    assert (np.argmax(model(result.images), -1) != y).all()
    ratio = np.asarray(result.norm) / closest_class(model, x, y, norm)
    assert (ratio < 1.05).all()
    assert (ratio > 0.999).all()
    np.testing.assert_array_equal(result.steps, 1)
    np.testing.assert_array_equal(result.backward, classes - 1)
    few = DeepFool(norm=norm, candidates=1).run(model, x, y)
    assert few.success.all()
    np.testing.assert_array_equal(few.backward, few.steps)


@NORMS
def test_targets_are_reached_by_the_shortest_way(linear_problem, norm):
    model, x, y = linear_problem(classes=2)
    result = DeepFool(norm=norm, targeted=True).run(model, x, 1 - y)
    np.testing.assert_array_equal(np.argmax(model(result.images), -1), 1 - y)
    np.testing.assert_allclose(result.norm, closest_class(model, x, y, norm), rtol=0.05)
    model, x, y = linear_problem(classes=3)
    result = DeepFool(norm=norm, targeted=True).run(model, x, (y + 1) % 3)
    np.testing.assert_array_equal(np.argmax(model(result.images), -1), (y + 1) % 3)


def test_within_five_percent_where_pixels_meet_the_box(linear):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((3, 4, 3, 1)) < 0.6, rng.integers(0, 2, (3, 4, 3, 1)), 0.4)
    x = x.astype(np.float32)
    w = rng.normal(size=12)
    model = linear(jnp.asarray(np.stack([w, 0 * w], 1), jnp.float32), jnp.array([0.0, -3.0]))
    values = x.reshape(3, -1) @ w + 3.0
    result = DeepFool(norm="linf").run(model, x, np.zeros(3, int))
    for i, point in enumerate(np.float64(x).reshape(3, -1)):
        bounds = [*zip(-point, 1 - point), (0, None)]
        eye, ones = np.eye(12), -np.ones((12, 1))
        inside = np.block([[eye, ones], [-eye, ones]])
        cost, plane = np.append(np.zeros(12), 1.0), np.append(w, 0.0)[None]
        best = linprog(cost, inside, np.zeros(24), plane, [-values[i]], bounds)
        assert best.success == bool(result.success[i])
        if best.success:
            assert 0.999 < result.norm[i] / best.fun < 1.05
    boxless = values / np.abs(w).sum()
    assert (result.norm > 1.3 * boxless).any()  # the box does matter


@NORMS
def test_within_a_quarter_on_a_sphere(norm):
    rng = np.random.default_rng(0)
    x = (0.5 + rng.uniform(-0.3, 0.3, (8, 6, 6, 3))).astype(np.float32)
    result = DeepFool(norm=norm).run(sphere, x, np.zeros(8, int))
    offset = np.abs(np.float64(x).reshape(8, -1) - 0.5)
    # l2: along the radius; linf: sum (offset + t)^2 = 4.
    mean, square = offset.mean(1), (offset**2).mean(1)
    optimum = -mean + np.sqrt(mean**2 - square + 4 / offset.shape[1])
    if norm == "l2":
        optimum = 2 - np.sqrt((offset**2).sum(1))
    assert result.success.all()
    ratio = np.asarray(result.norm) / optimum
    assert (ratio < 1.25).all()
    assert (ratio > 0.999).all()


def test_eager_equals_the_whole_loop(mlp_problem):
    model, x, y = mlp_problem(batch=40)
    eager = DeepFool().run(model, x, y)
    assert eager.success.all()
    other = whole(DeepFool(), model, x, y)
    for field in ("images", "success", "norm", "steps", "forward", "backward"):
        np.testing.assert_allclose(getattr(eager, field), getattr(other, field), atol=1e-5)
    # What is returned is what was judged.
    np.testing.assert_array_equal(np.argmax(model(eager.images), -1) != y, eager.success)


def test_an_image_that_fools_already_is_returned_as_it_is(mlp_problem):
    model, x, y = mlp_problem()
    result = DeepFool().run(model, x, (y + 1) % 4)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.backward, 0)


@pytest.mark.parametrize(("norm", "scale"), [("linf", 0.0), ("l2", 1e4)])
def test_constant_and_saturated_models(mlp_problem, norm, scale):
    model, x, y = mlp_problem()
    hard = lambda x: jnp.eye(4)[y] * 30 + jnp.tanh(scale * model(x))  # noqa: E731
    result = DeepFool(norm=norm, steps=3).run(hard, x, y)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, x)
    steep = lambda x: 1e4 * model(x)  # noqa: E731
    assert DeepFool(norm=norm).run(steep, x, y).success.all()


def test_nan_is_named_and_harmless(mlp_problem):
    model, x, y = mlp_problem()
    broken = lambda x: jnp.where(jnp.arange(len(x))[:, None] == 1, jnp.nan, model(x))  # noqa: E731
    with pytest.raises(InputError, match="NaN for image 1"):
        DeepFool().run(broken, x, y)
    result = jax.jit(lambda x: DeepFool().run(broken, x, y))(x)
    assert not result.success[1]
    assert np.isfinite(result.images).all()


def test_bad_arguments_are_refused(mlp_problem):
    model, x, y = mlp_problem()
    for bad in ({"norm": "l7"}, {"steps": 0}, {"candidates": 0}):
        with pytest.raises(InputError):
            DeepFool(**bad)
    with pytest.raises(InputError, match="overshoot -1"):
        dataclasses.replace(DeepFool(), overshoot=-1.0).run(model, x, y)
