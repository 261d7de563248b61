"""Projections onto hyperplanes in the box against bisection in float64, and what is safe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdef_jax.attacks import hyperplanes, objectives
from memdef_jax.attacks.logits import LogitsFunction

pytestmark = pytest.mark.usefixtures("quick_compile")
project = jax.jit(hyperplanes.project, static_argnums=3)


def by_bisection(point, w, value, norm):
    """The length of the smallest move, infinite where the box ends before the hyperplane."""
    point, w, value = (np.float64(a) for a in (point, w, value))
    room = np.where(w * value < 0, 1 - point, point)
    rate = np.ones_like(w) if norm == "linf" else np.abs(w)
    move = lambda t: np.minimum(t * rate, room) * (w != 0)  # noqa: E731
    if (np.abs(w) * room).sum() < abs(value):
        return np.inf
    low, high = 0.0, 1.0
    while (np.abs(w) * move(high)).sum() < abs(value) and high < 1e30:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        reached = (np.abs(w) * move(middle)).sum() >= abs(value)
        low, high = (low, middle) if reached else (middle, high)
    return np.abs(move(high)).max() if norm == "linf" else np.sqrt((move(high) ** 2).sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    reach=st.just(0.0) | st.floats(1e-6, 1.3),
    scale=st.sampled_from([1e-20, 1.0, 1e10]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_moves_are_the_shortest_inside_the_box(norm, seed, reach, scale, spread):
    rng = np.random.default_rng(seed)
    shape = (3, 4, 5, 2)
    point = rng.uniform(size=shape)
    point = np.where(rng.random(shape) < 0.3, np.round(point), point).astype(np.float32)
    w = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
    w = (scale * np.where(rng.random(shape) < 0.2, 0, w)).astype(np.float32)
    sign = np.float32([1, -1, 1]).reshape(3, 1, 1, 1)
    room = np.where(w * sign < 0, 1 - point, point).astype(np.float64)
    most = (np.abs(np.float64(w)) * room).sum((1, 2, 3))
    value = (reach * most * sign.ravel()).astype(np.float32)

    move = np.float64(project(jnp.asarray(point), jnp.asarray(w), jnp.asarray(value), norm))
    assert np.isfinite(move).all()
    assert (point + move >= -1e-7).all()
    assert (point + move <= 1 + 1e-7).all()
    np.testing.assert_array_equal(move[w == 0], 0)
    after = value + (w * move).sum((1, 2, 3))
    flat = move.reshape(3, -1)
    length = np.abs(flat).max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))
    for i in range(3):
        best = by_bisection(point[i], w[i], value[i], norm)
        if reach < 0.999:
            assert abs(after[i]) <= 1e-5 * abs(value[i]) + 1e-30
            np.testing.assert_allclose(length[i], best, rtol=1e-3, atol=1e-6)
        elif best == np.inf:
            corner = np.where(w[i] == 0, 0, -np.sign(w[i] * sign[i]) * room[i])
            np.testing.assert_allclose(move[i], corner, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_moves_where_there_is_nowhere_to_go(norm):
    point = jnp.full((4, 3, 3, 1), 0.5)
    w = jnp.ones_like(point).at[0].set(0.0)
    move = project(point, w, jnp.array([1.0, 0.0, jnp.nan, jnp.inf]), norm)
    np.testing.assert_array_equal(move[:3], 0)
    np.testing.assert_array_equal(move[3], -0.5)
    edge = project(jnp.zeros_like(point), w, jnp.ones(4), norm)
    np.testing.assert_array_equal(edge, 0)


def test_the_closest_hyperplane_is_chosen_by_the_dual_norm():
    w = jnp.array([[0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    b = jnp.array([1.0, -1.5, -1.0])  # logits 1, 0, 0.5 at the point
    point = jnp.full((2, 3, 1, 1), 0.5)
    logits, pull = jax.vjp(lambda x: x.reshape(2, 3) @ w + b, point)
    for norm, expected in (("linf", 2), ("l2", 2)):
        up = objectives.likeliest_others(logits, jnp.zeros(2, jnp.int32))
        np.testing.assert_array_equal(up, [[2, 1], [2, 1]])
        gradient, value = hyperplanes.closest(logits, pull, up, jnp.zeros((2, 1), int), norm)
        np.testing.assert_allclose(gradient[0].ravel(), w[:, expected])
        np.testing.assert_allclose(value, -0.5, rtol=1e-3)


def test_classes_that_do_not_react_are_never_chosen():
    """Nor are those whose logits are minus infinity."""

    def model(x):
        total = x.sum((1, 2, 3))
        silent = jnp.zeros_like(total)
        return jnp.stack([0.1 + silent, silent + 0.099, -total, silent - jnp.inf], -1)

    point = jnp.full((2, 3, 1, 1), 0.5)
    logits, pull = jax.vjp(model, point)
    up = jnp.array([[1, 2, 3]] * 2)
    gradient, value = hyperplanes.closest(logits, pull, up, jnp.zeros((2, 1), int), "linf")
    np.testing.assert_array_equal(gradient, -1.0)
    np.testing.assert_allclose(value, -1.6, rtol=1e-3)
    hit = hyperplanes.clear_hit(LogitsFunction.of(model), point, logits, jnp.ones(2, int), False)
    np.testing.assert_array_equal(hit, True)


def test_a_retreat_ends_between_the_boundary_and_the_image():
    def model(x):
        total = x.sum((1, 2, 3))
        return jnp.stack([jnp.zeros_like(total), total**3 - 1.0], -1)

    clean, image = jnp.zeros((3, 2, 2, 1)), jnp.ones((3, 2, 2, 1))
    image = image.at[2].set(0.1)  # does not fool
    fn, gap = LogitsFunction.of(model), model(clean)[:, 1]
    y = jnp.zeros(3, jnp.int32)
    once = hyperplanes.judge_and_retreat(fn, clean, image, y, False, gap, 1.0)
    np.testing.assert_array_equal(once.image, image)
    np.testing.assert_array_equal(once.hit, [True, True, False])
    np.testing.assert_array_equal(once.forward, 1)
    much = hyperplanes.judge_and_retreat(fn, clean, image, y, False, gap, 0.01)
    np.testing.assert_array_equal(much.hit, once.hit)
    np.testing.assert_array_equal(much.image[2], image[2])
    assert (much.image[:2] >= 0.25).all()
    assert (much.image[:2] < 0.28).all()  # from four times the distance, on a cubic
    assert (model(much.image)[:2, 1] > 0).all()
    assert (much.forward[:2] > 1).all()
    assert much.forward[2] == 1
