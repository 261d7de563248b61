"""Single-pixel attacks, on models where it is known which pixel fools."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import balls
from memdef_jax.attacks.single_pixel import SinglePixel, _children, _first_generation
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(2)
SHAPE = (4, 5, 2)
X = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.6, (6, *SHAPE)), jnp.float32)
Y = jnp.zeros(6, jnp.int32)
RANDOM = SinglePixel(steps=20)
EVOLUTION = SinglePixel(method="evolution", steps=50, population=40)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Button:
    """Class 1 where pixel (2, 3) is nearly white, class 2 where nearly black, else class 0."""

    strength: jax.Array

    def __call__(self, x):
        colour = x[:, 2, 3].mean(-1)
        logits = jnp.stack([0 * colour, colour - 0.9, 0.1 - colour], -1)
        return self.strength * logits


BUTTON = Button(jnp.float32(9.0))


def assert_only_the_button(result):
    assert result.success.all()
    changed = np.any(np.asarray(result.images != X), axis=(0, 3))
    np.testing.assert_array_equal(np.argwhere(changed), [[2, 3]])
    np.testing.assert_array_equal(result.norm, 1)


@pytest.mark.parametrize("attack", [RANDOM, EVOLUTION])
def test_finds_the_one_pixel_that_fools(attack):
    result = attack.run(BUTTON, X, Y, key=KEY)
    assert_only_the_button(result)
    np.testing.assert_array_equal(result.backward, 0)
    for target, colour in ((1, 1.0), (2, 0.0)):
        aimed = replace(attack, targeted=True).run(BUTTON, X, Y + target, key=KEY)
        assert_only_the_button(aimed)
        np.testing.assert_allclose(aimed.images[:, 2, 3], colour, atol=0.2)


def test_random_search_tries_every_pixel_once_and_no_more():
    attack = replace(RANDOM, targeted=True, steps=50)  # of 20 pixels
    result = attack.run(BUTTON, X, Y + 1, key=KEY)
    assert result.success.all()
    assert (result.steps <= 40).all()
    assert len(np.unique(result.steps)) > 1  # each image has an order of its own
    np.testing.assert_array_equal(result.steps % 2, 0)  # white comes second
    np.testing.assert_array_equal(result.forward, result.steps + 1)
    never = Button(jnp.float32(0.0))  # class 0 whatever is done
    failed = attack.run(never, X, Y + 1, key=KEY)
    np.testing.assert_array_equal(failed.steps, 40)
    few = replace(attack, steps=4).run(BUTTON, X, Y + 1, key=KEY)
    np.testing.assert_array_equal(few.success, result.steps <= 8)
    np.testing.assert_array_equal(few.images[~few.success], X[~few.success])


@pytest.mark.parametrize("attack", [RANDOM, EVOLUTION])
def test_failures_are_clean_and_fooled_images_left_alone(attack):
    attack = replace(attack, steps=2)
    never = Button(jnp.float32(0.0))
    y = jnp.array([0, 1, 0, 2, 0, 0], jnp.int32)
    result = attack.run(never, X, y, key=KEY)
    np.testing.assert_array_equal(result.success, y != 0)
    np.testing.assert_array_equal(result.images, X)
    np.testing.assert_array_equal(result.norm, 0)
    per_step = 1 if attack.method == "random" else attack.population
    first = 1 if attack.method == "random" else 1 + attack.population
    np.testing.assert_array_equal(result.forward, first + per_step * np.asarray(result.steps))


@pytest.mark.parametrize("attack", [RANDOM, EVOLUTION])
def test_batch_packing_and_loop_change_nothing(attack, mlp_problem):
    model, x, y = mlp_problem(batch=12)
    attack = replace(attack, steps=3)
    keys = jax.random.split(KEY, 12)
    run = lambda x, y, keys: replace(attack.run(model, x, y, key=keys), seconds=None)  # noqa: E731
    together = run(x, y, keys)
    assert together.success.mean() > 0
    assert (together.norm <= 1).all()
    some = np.array([11, 4])
    apart = jax.jit(run)(x[some], y[some], keys[some])
    for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(left[some], right, atol=1e-6)


def test_children_have_three_different_parents():
    genes = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (4, 3)), jnp.float32)
    found = [jax.jit(_children)(key, genes) for key in jax.random.split(KEY, 20)]
    g = np.asarray(genes)
    for children in found:
        for place, child in enumerate(np.asarray(children)):
            # With four members the parents are the other three in some order.
            a, b, c = (i for i in range(4) if i != place)
            orders = [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)]
            assert any(np.allclose(child, g[i] + (g[j] - g[k]) / 2) for i, j, k in orders)
    first = _first_generation(KEY, 2000, 1)
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_allclose(first.mean(0), 0.5, atol=0.03)


def test_length_counts_pixels_not_channels():
    delta = jnp.zeros((2, 3, 3, 3)).at[1, 0, 0].set(0.1).at[1, 2, 1, 0].set(-1e-30)
    np.testing.assert_array_equal(balls.length(delta, "l0"), [0, 2])


def test_nan_and_bad_names():
    def broken(x):
        return jnp.where(x.mean() > 2, BUTTON(x), jnp.nan)

    with pytest.raises(InputError, match="NaN for image 0"):
        RANDOM(broken, X, Y, key=KEY)
    for attack in (RANDOM, EVOLUTION):
        result = jax.jit(lambda x, attack=attack: attack.run(broken, x, Y, key=KEY))(X)
        np.testing.assert_array_equal(result.images, X)
        assert not result.success.any()
    with pytest.raises(InputError, match="method 'grid' is unknown"):
        SinglePixel(method="grid")
    with pytest.raises(InputError, match="population 3 is below 4"):
        SinglePixel(method="evolution", population=3)
