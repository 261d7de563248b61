"""Square attack: its schedule and proposals against the paper, its reach on known optima."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import balls, square
from memdef_jax.attacks.square import Square
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(5)
# Of 28x28 pixels at p 0.8: the iteration from which a window is used, its side, and that for L2.
SCHEDULE = [(0, 25, 25), (11, 18, 19), (51, 13, 13), (201, 9, 9), (501, 6, 7), (1001, 4, 5)]
SCHEDULE += [(2001, 3, 3), (4001, 2, 3), (6001, 2, 3), (8001, 1, 3)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("stretch", [1, 10])
def test_windows_shrink_as_published(norm, stretch):
    attack = Square(eps=0.1, norm=norm, steps=10_000 // stretch, rescale_schedule=stretch > 1)
    sides = np.asarray(attack._side(jnp.arange(attack.steps), (1, 28, 28, 1)))
    column = 1 if norm == "linf" else 2
    expected = np.zeros(10_000, int)
    for row in SCHEDULE:
        expected[row[0] :] = row[column]
    # Stretched, step i stands for iteration i * stretch.
    np.testing.assert_array_equal(sides, expected[::stretch])


def eta_rectangle(height, width):
    """Equation of the pyramid as printed, with r and s from 1, for either side the longer."""
    n = max(height, width) // 2
    out = np.zeros((height, width))
    for r in range(1, height + 1):
        for s in range(1, width + 1):
            m = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            out[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
    return out / np.sqrt(np.sum(out**2))


def eta(height, width):
    if height == 1:
        return -eta_rectangle(1, width)
    upper, lower = eta_rectangle(height // 2, width), eta_rectangle(height - height // 2, width)
    return np.concatenate([upper, -lower]) / np.sqrt(2)


def test_bumps_are_as_published():
    sizes = np.array([(1, 1), (3, 3), (5, 5), (7, 4), (1, 4), (7, 1)] * 2)
    turned = np.arange(12) >= 6
    start = np.tile([0, 1], (12, 1))
    bumps = jax.jit(lambda *args: square._bump(*args, (7, 6)))(start, sizes, turned)
    for bump, size, turn in zip(bumps[..., 0], sizes, turned):
        expected = np.zeros((7, 6))
        expected[: size[0], 1 : 1 + size[1]] = eta(*size[::-1]).T if turn else eta(*size)
        np.testing.assert_allclose(bump, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 7, 3), (4, 6, 1)])
def test_proposals_equal_slices_in_numpy(shape):
    rng = np.random.default_rng(0)
    batch, eps = 6, 0.2
    x = rng.uniform(size=(batch, *shape)).astype(np.float32)
    around = np.clip(x + rng.uniform(-0.05, 0.05, x.shape), 0, 1).astype(np.float32)
    side = np.array([1, 3, 3, 5, 5, 9])
    words = square._draw(jax.random.split(KEY, batch), jnp.arange(batch), 5 + shape[2])
    args = [jnp.asarray(a) for a in (around, x, np.full(batch, eps, np.float32), side)]
    linf, l2 = jax.jit(square._repaint)(*args, words), jax.jit(square._redistribute)(*args, words)
    words = np.asarray(words)
    signs = np.where(words[:, 5:] >= 2**31, 1.0, -1.0)
    for i in range(batch):
        size = np.minimum(side[i], shape[:2])
        row, column, row2, column2 = np.floor(
            words[i, :4] / 2**32 * np.tile(np.array(shape[:2]) + 1 - size, 2)
        ).astype(int)
        one = np.s_[row : row + size[0], column : column + size[1]]
        two = np.s_[row2 : row2 + size[0], column2 : column2 + size[1]]

        delta = np.zeros(shape)
        delta[one] = 2 * eps * signs[i]
        expected = np.clip(np.clip(around[i] + delta, x[i] - eps, x[i] + eps), 0, 1)
        np.testing.assert_allclose(linf[i], expected, atol=1e-6)

        nu = around[i].astype(np.float64) - x[i]
        unused = eps**2 - np.sum(nu**2)
        if unused < 0:
            continue
        both = np.zeros(shape[:2], bool)
        both[one] = both[two] = True
        bump = eta(*size[::-1]).T if words[i, 4] >= 2**31 else eta(*size)
        before = nu.copy()
        nu[two] = 0
        for c in range(shape[2]):
            old = before[..., c][one]
            new = signs[i, c] * bump + old / np.sqrt(np.sum(old**2))
            available = np.sum(before[both, c] ** 2) + unused / shape[2]
            nu[..., c][one] = new / np.sqrt(np.sum(new**2)) * np.sqrt(available)
        np.testing.assert_allclose(np.sum(nu**2), eps**2)
        np.testing.assert_allclose(l2[i], np.clip(x[i] + nu, 0, 1), atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(11, 14, 2), (1, 3, 1)])
def test_starts_fill_the_budget(norm, shape):
    x, eps = jnp.full((5, *shape), 0.5), jnp.linspace(0.0, 0.2, 5)
    make = jax.jit(square._stripes if norm == "linf" else square._tiles)
    start = make(x, eps, jax.random.split(KEY, 5))
    np.testing.assert_allclose(balls.length(start - x, norm), eps, atol=1e-6)
    if norm == "linf":
        np.testing.assert_array_equal(start[:, :1] * np.ones((shape[0], 1, 1)), start)


def two_class_optimum(model, x, norm):
    """Distance [B] to the boundary of a linear model with two classes."""
    w = np.asarray(model.w[:, 0] - model.w[:, 1])
    gap = np.abs(np.diff(np.asarray(model(x)), axis=1))[:, 0]
    return gap / (np.abs(w).sum() if norm == "linf" else np.sqrt(np.sum(w**2)))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "reach"), [("linf", 1.1), ("l2", 2.0)])
def test_reaches_the_optimum_of_linear_models_and_not_below(linear_problem, norm, reach, targeted):
    model, x, y = linear_problem(batch=16, classes=2, shape=(6, 5, 1))
    best = two_class_optimum(model, x, norm)
    y = 1 - y if targeted else y
    eps = (best * np.where(np.arange(16) % 2, reach, 0.98)).astype(np.float32)
    attack = Square(eps=eps, norm=norm, steps=1000, targeted=targeted)
    result = attack.run(model, x, y, key=KEY)
    np.testing.assert_array_equal(result.success, np.arange(16) % 2 == 1)
    np.testing.assert_array_equal(
        (np.argmax(model(result.images), -1) == y), result.success == targeted
    )
    assert (result.norm <= 1.0001 * eps).all()
    np.testing.assert_array_equal(result.steps[::2], 1000)
    np.testing.assert_array_equal(result.forward, result.steps + 2)
    np.testing.assert_array_equal(result.backward, 0)


@pytest.mark.parametrize(
    "attack",
    [
        Square(eps=0.05, steps=30, restarts=2),
        Square(eps=0.3, steps=30, norm="l2", restarts=2, early_stop=False),
    ],
)
def test_batch_packing_and_loop_change_nothing(mlp_problem, attack):
    model, x, y = mlp_problem(batch=20)
    keys = jax.random.split(KEY, 20)
    run = lambda x, y, keys: replace(attack.run(model, x, y, key=keys), seconds=None)  # noqa: E731
    together = run(x, y, keys)
    assert together.success.mean() > 0
    some = np.array([17, 2, 5])
    apart = jax.jit(run)(x[some], y[some], keys[some])
    for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(left[some], right, atol=1e-5)


def test_without_early_stop_the_loss_never_falls(mlp_problem):
    model, x, y = mlp_problem(batch=8, classes=3)
    losses = []
    for steps in (1, 10, 60):
        attack = Square(eps=0.05, steps=steps, loss="cross_entropy", early_stop=False)
        result = attack.run(model, x, y, key=KEY)
        np.testing.assert_array_equal(result.steps, steps)
        np.testing.assert_array_equal(result.success, np.argmax(model(result.images), -1) != y)
        losses.append(np.asarray(-jax.nn.log_softmax(model(result.images))[np.arange(8), y]))
    assert (losses[0] <= losses[1] + 1e-5).all()
    assert (losses[1] <= losses[2] + 1e-5).all()
    assert losses[2].mean() > losses[0].mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_to_do_and_nothing_to_win(linear, norm):
    model = linear(jnp.zeros((2, 3)), jnp.array([0.0, 1.0, 0.0]))
    x = jnp.full((2, 1, 2, 1), 0.5)
    result = Square(eps=0.1, norm=norm, steps=5).run(model, x, np.array([0, 1]), key=KEY)
    np.testing.assert_array_equal(result.success, [True, False])
    np.testing.assert_array_equal(result.images[0], x[0])
    np.testing.assert_array_equal(result.forward, [2, 7])


def test_nan_and_numbers(linear):
    model = linear(jnp.full((2, 3), jnp.nan), jnp.zeros(3))
    x, y = jnp.full((1, 1, 2, 1), 0.5), np.array([0])
    with pytest.raises(InputError, match="NaN for image 0"):
        Square(eps=0.1, steps=5)(model, x, y, key=KEY)
    result = jax.jit(lambda x: Square(eps=0.1, steps=5).run(model, x, y, key=KEY))(x)
    assert not result.success[0]
    assert np.isfinite(result.images).all()
    with pytest.raises(InputError, match=r"p_init 1\.5 is above 1"):
        Square(eps=0.1, p_init=1.5)(model, x, y, key=KEY)
    model = linear(jnp.ones((2, 3)), jnp.arange(3.0))
    result = Square(eps=0.1, loss="dlr", steps=1).run(model, x, y, key=KEY)
    assert "undefined for 3 classes" in result.notes[0]
