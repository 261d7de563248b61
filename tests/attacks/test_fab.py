"""FAB against boundaries whose distance is known, its two forms and its honesty."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from memdef_jax.attacks.fab import FAB
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
KEY = jax.random.key(0)
whole = jax.jit(lambda attack, model, x, y: attack.run(model, x, y, key=KEY))


def optimum(model, x, y, norm):
    """Distance of the closest other class of a linear model, the box left aside."""
    logits, w = np.float64(model(x)), np.float64(model.w)
    distances = []
    for i, label in enumerate(np.asarray(y)):
        difference = np.delete(w - w[:, [label]], label, axis=1)
        dual = np.linalg.norm(difference, 1 if norm == "linf" else 2, axis=0)
        distances.append((np.delete(logits[i, label] - logits[i], label) / dual).min())
    return np.array(distances)


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
    attack = FAB(norm=norm, steps=10)
    result = attack.run(model, x, y)
    assert result.success.all()
    assert (np.argmax(model(result.images), -1) != y).all()
    ratio = np.asarray(result.norm) / optimum(model, x, y, norm)
    assert (ratio < 1.05).all()
    assert (ratio > 0.999).all()
    np.testing.assert_array_equal(result.backward, 10 * (classes - 1))
    if classes == 2:
        reached = dataclasses.replace(attack, targeted=True).run(model, x, 1 - y)
        np.testing.assert_allclose(reached.images, result.images, atol=1e-5)


@NORMS
def test_within_five_percent_on_a_sphere(norm):
    def sphere(x):
        inside = 4.0 - jnp.sum((x - 0.5) ** 2, axis=(1, 2, 3))
        return jnp.stack([inside, jnp.zeros_like(inside)], -1)

    rng = np.random.default_rng(0)
    x = (0.5 + rng.uniform(-0.3, 0.3, (8, 6, 6, 3))).astype(np.float32)
    result = FAB(norm=norm, steps=20).run(sphere, x, np.zeros(8, int))
    offset = np.abs(np.float64(x).reshape(8, -1) - 0.5)
    # linf: sum (offset + t)^2 = 4; l2: along the radius.
    mean, square = offset.mean(1), (offset**2).mean(1)
    best = -mean + np.sqrt(mean**2 - square + 4 / offset.shape[1])
    if norm == "l2":
        best = 2 - np.sqrt((offset**2).sum(1))
    assert result.success.all()
    assert (result.norm / best < 1.05).all()
    assert (result.norm / best > 0.999).all()


def test_within_five_percent_where_pixels_meet_the_box(linear):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((3, 4, 3, 1)) < 0.5, rng.integers(0, 2, (3, 4, 3, 1)), 0.5)
    x = x.astype(np.float32)
    w = rng.normal(size=12)
    model = linear(jnp.asarray(np.stack([w, 0 * w], 1), jnp.float32), jnp.array([0.0, -3.0]))
    result = FAB(norm="l2", steps=20).run(model, x, np.zeros(3, int))
    assert result.success.all()
    boxless = []
    for i, point in enumerate(np.float64(x).reshape(3, -1)):
        value = point @ w + 3.0
        best = minimize(
            lambda d: d @ d,
            -value * w / (w @ w),
            jac=lambda d: 2 * d,
            bounds=list(zip(-point, 1 - point)),
            constraints={"type": "eq", "fun": lambda d: value + d @ w, "jac": lambda d: w},  # noqa: B023
            method="SLSQP",
        )
        assert best.success
        assert 0.999 < result.norm[i] / np.sqrt(best.fun) < 1.05
        boxless.append(value / np.linalg.norm(w))
    assert (result.norm > 1.1 * np.array(boxless)).any()  # the box does matter


def test_fab_t_and_restarts_find_at_least_as_much(mlp_problem):
    model, x, y = mlp_problem(batch=20)
    plain = FAB(steps=15).run(model, x, y)
    targets = FAB(steps=15, targets=3).run(model, x, y)
    assert plain.success.all()
    assert targets.success.all()
    assert np.median(targets.norm) <= 1.001 * np.median(plain.norm)
    assert set(np.asarray(targets.run)) <= {0, 1, 2}
    again = FAB(steps=15, restarts=2).run(model, x, y, key=KEY)
    assert (again.norm <= plain.norm + 1e-6).all()
    np.testing.assert_array_equal(again.backward, 2 * plain.backward)


def test_only_hits_within_eps_count_and_end_the_search(mlp_problem):
    model, x, y = mlp_problem(batch=20)
    free = FAB(steps=15, targets=2).run(model, x, y)
    eps = float(np.median(free.norm))
    bound = FAB(steps=15, targets=2, eps=eps).run(model, x, y)
    assert (bound.norm <= eps).all()
    np.testing.assert_array_equal(bound.images[~bound.success], x[~bound.success])
    assert (np.argmax(model(bound.images), -1) != y)[bound.success].all()
    assert bound.success[free.norm < 0.99 * eps].all()
    assert (bound.steps < free.steps)[bound.success].all()
    mixed = np.where(np.arange(20) < 10, 0.0, eps).astype(np.float32)
    some = FAB(steps=15, targets=2, eps=mixed).run(model, x, y)
    np.testing.assert_array_equal(some.success, bound.success & (mixed > 0))


@pytest.mark.parametrize(
    "attack", [FAB(steps=15), FAB(steps=15, targets=2, restarts=2, norm="l2", eps=0.2)]
)
def test_eager_equals_the_whole_loop(mlp_problem, attack):
    model, x, y = mlp_problem(batch=40)
    eager = attack.run(model, x, y, key=KEY)
    assert eager.success.mean() > 0
    other = whole(attack, model, x, y)
    for field in ("images", "success", "norm", "run", "steps", "forward", "backward"):
        np.testing.assert_allclose(getattr(eager, field), getattr(other, field), atol=1e-5)


def test_more_targets_than_classes_are_fewer_with_a_note(mlp_problem):
    model, x, y = mlp_problem()
    result = FAB(steps=2, targets=9).run(model, x, y)
    assert "3 other classes" in result.notes[0]
    np.testing.assert_array_equal(result.backward, 6)
    assert FAB(steps=2, targets=3).run(model, x, y).notes == ()


def test_an_image_that_fools_already_is_returned_as_it_is(mlp_problem):
    model, x, y = mlp_problem()
    for eps in (None, 0.0):
        result = FAB(steps=3, eps=eps).run(model, x, (y + 1) % 4)
        assert result.success.all()
        np.testing.assert_array_equal(result.images, x)
        np.testing.assert_array_equal(result.steps, 0)


def test_constant_and_saturated_models(mlp_problem):
    model, x, y = mlp_problem()
    constant = lambda x: jnp.eye(4)[y] + 0 * model(x)  # noqa: E731
    result = FAB(steps=3).run(constant, x, y)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.run, -1)
    steep = lambda x: 1e4 * model(x)  # noqa: E731
    assert FAB(norm="l2", steps=10).run(steep, x, y).success.all()


def test_nan_is_named_and_harmless(mlp_problem):
    model, x, y = mlp_problem()
    broken = lambda x: jnp.where(jnp.arange(len(x))[:, None] == 1, jnp.nan, model(x))  # noqa: E731
    with pytest.raises(InputError, match="NaN for image 1"):
        FAB(steps=3).run(broken, x, y)
    result = jax.jit(lambda x: FAB(steps=3).run(broken, x, y))(x)
    assert not result.success[1]
    assert np.isfinite(result.images).all()


def test_bad_arguments_are_refused(mlp_problem):
    model, x, y = mlp_problem()
    for bad in (
        {"norm": "l7"},
        {"steps": 0},
        {"restarts": 0},
        {"targets": -1},
        {"targets": 2, "targeted": True},
    ):
        with pytest.raises(InputError):
            FAB(**bad)
    for bad in ({"eps": 2.0}, {"alpha_max": -1.0}, {"eta": 0.0}, {"beta": -0.1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            FAB(**bad).run(model, x, y)
