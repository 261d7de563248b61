"""Noise stays in its ball, stops when it fools, and tells the truth."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import balls
from memdef_jax.attacks.noise import BlendedUniform, Noise
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(8)
ATTACKS = [
    Noise(eps=0.3, restarts=6),
    Noise(kind="gaussian", eps=1.0, norm="l2", restarts=6),
    BlendedUniform(steps=10, restarts=2),
]


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4)])
def test_draws_fill_the_ball(linear, kind, norm, eps):
    x = jnp.full((200, 5, 5, 2), 0.5)
    never = linear(jnp.zeros((50, 2)), jnp.array([1.0, 0.0]))
    y = jnp.zeros(200, jnp.int32)
    budget = eps * np.where(np.arange(200) < 100, 1.0, 0.5).astype(np.float32)
    result = Noise(kind=kind, eps=budget, norm=norm).run(never, x, y, key=KEY)
    assert not result.success.any()
    share = np.asarray(result.norm) / budget
    assert share.max() <= 1.0001
    assert share.min() > 0.7
    np.testing.assert_allclose(np.mean(result.images - x), 0, atol=0.01)
    delta = np.asarray(result.images - x) / budget[:, None, None, None]
    if norm == "linf":  # of a uniform draw, and of a normal one clipped at one sigma
        expected = 1 / 3 if kind == "uniform" else 1 - 2 * 0.24197
        np.testing.assert_allclose(np.mean(delta**2), expected, atol=0.01)
    np.testing.assert_array_equal(result.forward, 2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_batch_packing_and_loop_change_nothing(mlp_problem, attack):
    model, x, y = mlp_problem(batch=20)
    keys = jax.random.split(KEY, 20)
    run = lambda x, y, keys: replace(attack.run(model, x, y, key=keys), seconds=None)  # noqa: E731
    together = run(x, y, keys)
    assert 0 < together.success.mean() < 1
    np.testing.assert_array_equal(np.argmax(model(together.images), -1) != y, together.success)
    np.testing.assert_allclose(
        together.norm, balls.length(together.images - x, attack.norm), atol=1e-6
    )
    some = np.array([17, 2, 5])
    apart = jax.jit(run)(x[some], y[some], keys[some])
    for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(left[some], right, atol=1e-5)


def test_more_draws_fool_more_and_stop_there(mlp_problem):
    model, x, y = mlp_problem(batch=20)
    one = Noise(eps=0.3).run(model, x, y, key=KEY)
    many = Noise(eps=0.3, restarts=8).run(model, x, y, key=KEY)
    assert many.success.sum() > one.success.sum()
    np.testing.assert_array_equal(many.images[one.success], one.images[one.success])
    np.testing.assert_array_equal(many.steps[one.success], 1)
    np.testing.assert_array_equal(many.steps[~many.success], 8)
    np.testing.assert_array_equal(many.run, np.asarray(many.steps) - 1)


def test_blending_stops_at_the_boundary(linear):
    # Class 1 above a mean of 0.3; uniform noise has one of about 0.5.
    model = linear(jnp.stack([jnp.zeros(60), jnp.full(60, 1 / 60)], 1), jnp.array([0.3, 0.0]))
    x = jnp.full((5, 5, 4, 3), 0.1)
    y = jnp.array([0, 0, 0, 1, 0], jnp.int32)
    attack = BlendedUniform(steps=10)
    result = attack.run(model, x, y, key=KEY)
    assert result.success.all()
    means = np.asarray(result.images).mean((1, 2, 3))[y == 0]
    assert (means > 0.3).all()
    np.testing.assert_allclose(means, 0.3, atol=1e-3)
    np.testing.assert_array_equal(result.images[3], x[3])
    assert result.norm[3] == 0
    assert (result.steps[:3] < 20).all()  # 10 halvings after the first share that fooled
    shorter = replace(attack, restarts=5).run(model, x, y, key=KEY)
    assert (shorter.norm <= result.norm).all()
    assert shorter.norm.sum() < result.norm.sum()
    out_of_reach = linear(model.w, jnp.array([0.9, 0.0]))
    failed = attack.run(out_of_reach, x, jnp.zeros(5, jnp.int32), key=KEY)
    assert not failed.success.any()
    np.testing.assert_array_equal(failed.images, x)
    np.testing.assert_array_equal(failed.steps, 10)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nan(attack):
    x, y = jnp.full((2, 1, 1, 1), 0.5), np.array([0, 1])

    def broken(x):
        return jnp.where(jnp.arange(len(x))[:, None] == 1, jnp.nan, jnp.zeros((len(x), 2)))

    with pytest.raises(InputError, match="NaN for image 1"):
        attack(broken, x, y, key=KEY)
    result = jax.jit(lambda x: attack.run(broken, x, y, key=KEY))(x)
    assert not result.success.any()
    assert np.isfinite(result.images).all()


def test_bad_names_and_numbers():
    with pytest.raises(InputError, match="kind 'pink' is unknown"):
        Noise(kind="pink", eps=0.1)
    with pytest.raises(InputError, match="restarts 0"):
        BlendedUniform(restarts=0)
    with pytest.raises(InputError, match=r"eps 1\.5 is outside"):
        Noise(eps=1.5)(lambda x: x, jnp.zeros((1, 1, 1, 2)), np.array([0]), key=KEY)
