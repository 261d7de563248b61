"""Surrogates: deployed values, useful gradients, and attacks that work through them."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import (
    BIM,
    FGSM,
    PGD,
    Attack,
    State,
    bpda,
    compose,
    eot,
    straight_through,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(1)


def quantise(x):
    return jnp.round(x * 8) / 8


def test_bpda_has_the_values_of_one_and_the_gradient_of_the_other():
    both = bpda(jnp.round, lambda x: x**2)
    x = jnp.array([[0.3, 0.7]])
    np.testing.assert_array_equal(both(x), jnp.round(x))
    np.testing.assert_allclose(jax.grad(lambda z: both(z).sum())(x), 2 * x)


def test_straight_through_opens_a_quantised_model(linear_problem):
    model, x, y = linear_problem()
    hard = compose(quantise, model)
    y = jnp.argmax(hard(x), -1).astype(jnp.int32)
    attack = BIM(eps=0.3, step_size=0.03, steps=20)
    blocked = attack.run(hard, x, y)
    opened = attack.run(compose(straight_through(quantise), model), x, y)
    assert not blocked.success.any()
    assert opened.success.all()
    np.testing.assert_array_equal(jnp.argmax(hard(opened.images), -1) != y, opened.success)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noisy:
    """A linear model whose weights are drawn anew at every call."""

    inner: object

    def __call__(self, x, key):
        noise = jax.random.normal(key, self.inner.w.shape)
        return replace(self.inner, w=self.inner.w + 0.3 * noise)(x)


def test_eot_approaches_the_expectation(linear_problem):
    model, x, _ = linear_problem(batch=3)
    many = eot(Noisy(model), 2000, KEY)
    step = jax.jit(jax.value_and_grad(lambda z, f: jnp.sum(f(z)[:, 0])))
    value, gradient = step(x, many)
    np.testing.assert_allclose(value, model(x)[:, 0].sum(), atol=0.15)
    np.testing.assert_allclose(gradient[0].ravel(), model.w[:, 0], atol=0.04)


def test_eot_draws_are_fresh_for_each_iterate_and_independent_of_the_batch(linear_problem):
    model, x, _ = linear_problem()
    call = jax.jit(lambda function, x: function(x))
    random = eot(Noisy(model), 2, KEY)
    logits = call(random, x)
    np.testing.assert_allclose(call(random, x[::-1])[::-1], logits, atol=1e-5)
    moved = call(random, x.at[:, 0, 0, 0].add(1e-6))
    assert (jnp.abs(moved - logits).max(1) > 0.01).all()
    other_key = call(eot(Noisy(model), 2, jax.random.key(2)), x)
    assert (jnp.abs(other_key - logits).max(1) > 0.01).all()


def test_an_attack_through_eot_fools_the_mean_model(linear_problem):
    model, x, y = linear_problem(classes=2)
    images = FGSM(eps=0.4, early_stop=False)(eot(Noisy(model), 20, KEY), x, y)
    assert (jnp.argmax(model(images), -1) != y).all()


def test_per_sample_parts_follow_through_surrogates(linear_problem):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Shifted:
        inner: object
        shift: jax.Array

        def __call__(self, x, key=None):
            return self.inner(x) + self.shift

        def take(self, indices):
            return replace(self, shift=self.shift[indices])

    linear, x, y = linear_problem(batch=20, classes=3)
    shifted = Shifted(linear, jax.random.normal(KEY, (20, 3)))
    y = jnp.argmax(shifted(x), -1).astype(jnp.int32)
    attack = BIM(eps=0.05, step_size=0.02, steps=5)
    expected = attack.run(shifted, x, y)
    assert 0 < expected.success.sum() < 20
    wrapped = [bpda(shifted, shifted), compose(straight_through(lambda x: x), shifted)]
    for surrogate in (*wrapped, eot(shifted, 2, KEY)):
        result = attack.run(surrogate, x, y)
        np.testing.assert_array_equal(result.success, expected.success)
        np.testing.assert_allclose(result.images, expected.images, atol=1e-5)


# ---- the vote: what counts as fooled where every call draws anew


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coin:
    """Answers wrongly in a share of its draws, whatever the image; 1 once the image is dark.

    Dark means that the mean pixel fell by `depth`. The labels are class 0; a small slope gives
    attacks a gradient that leads there.
    """

    mean: jax.Array  # of the clean images [B]
    share: float = 0.4
    depth: float = 1.0

    def __call__(self, x, key):
        darker = self.mean - jnp.mean(x, axis=(1, 2, 3))
        lucky = jax.random.uniform(key, self.mean.shape) < self.share
        fallen = lucky | (darker >= self.depth)
        return jnp.stack([-0.01 * darker, jnp.where(fallen, 1.0, -1.0) + darker], axis=1)

    def take(self, indices):
        return replace(self, mean=self.mean[indices])


def grey(batch):
    """Images of one grey, their labels, and their means."""
    x = jnp.broadcast_to(jnp.linspace(0.4, 0.6, batch)[:, None, None, None], (batch, 3, 3, 1))
    return x, jnp.zeros(batch, jnp.int32), x.mean((1, 2, 3))


RUNS = PGD(eps=0.1, step_size=0.05, steps=3, restarts=3)


def unvoted(random):
    """The same draws without their vote."""
    return compose(random, lambda logits: logits)


def assert_same(one, other):
    for name in ("images", "success", "run", "forward", "backward"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_lucky_draws_are_no_success_and_the_attack_goes_on():
    x, y, mean = grey(16)
    random = eot(Coin(mean), 1, KEY, votes=201)
    lucky = RUNS.run(unvoted(random), x, y, key=KEY)
    result = RUNS.run(random, x, y, key=KEY)
    assert lucky.success.mean() > 0.9
    assert not result.success.any()
    assert (result.steps == 3 * 3).all()


def test_a_random_defense_that_falls_is_reported_as_fallen():
    x, y, mean = grey(32)
    random = eot(Coin(mean, share=0.3, depth=0.05), 1, KEY, votes=201)
    darker = lambda record: mean - record.images.mean((1, 2, 3))  # noqa: E731
    lucky = RUNS.run(unvoted(random), x, y, key=KEY)
    assert (lucky.success & (darker(lucky) < 0.04)).any()
    result = replace(RUNS, restarts=2).run(random, x, y, key=KEY)
    assert result.success.all()
    # Success means that the image itself is one that fools, not that it once did.
    assert (darker(result) >= 0.05 - 1e-6).all()
    whole = jax.jit(lambda fn: replace(RUNS, restarts=2).run(fn, x, y, key=KEY))(random)
    assert_same(whole, result)


def test_the_vote_draws_anew():
    x, _, mean = grey(400)
    random = eot(Coin(mean, share=0.5), 1, KEY, votes=1)
    attacked, judged = jax.jit(lambda random: (random(x), random.judge()(x)))(random)
    same = jnp.mean(jnp.argmax(attacked, -1) == jnp.argmax(judged, -1))
    assert 0.4 < same < 0.6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Darken(Attack):
    """A minimum-norm attack in three runs: darker by 0.02, by 0.1 and by 0.3."""

    unused: float = 0.0
    norm = "linf"
    num_steps = 1
    repeats = 3
    settles = False

    def init(self, fn, x, y, keys, run):
        size = jnp.array([0.02, 0.1, 0.3])[run]
        hit = fn.fooled(x - size, fn(x - size), y, False)
        state = State.blank(x, y)
        image = jnp.where(hit[:, None, None, None], x - size, x)
        score = jnp.where(hit, -size, state.score)
        return replace(state, image=image, success=hit, score=score, done=hit | ~hit)

    def step(self, fn, state):
        return state


def test_a_minimum_norm_attack_keeps_the_smallest_success_that_the_vote_upholds():
    x, y, mean = grey(32)
    random = eot(Coin(mean, depth=0.05), 1, KEY, votes=201)
    lucky = Darken().run(unvoted(random), x, y)
    assert 0.2 < (lucky.norm < 0.03).mean() < 0.6
    result = Darken().run(random, x, y)
    assert result.success.all()
    np.testing.assert_allclose(result.norm, 0.1, atol=1e-6)
    assert_same(jax.jit(lambda fn: Darken().run(fn, x, y))(random), result)


def test_surrogates_around_a_random_function_keep_its_vote():
    x, y, mean = grey(32)
    random = eot(Coin(mean), 1, KEY, votes=201)
    attack = FGSM(eps=0.05, targeted=True)  # the target is what lucky draws answer
    assert attack.run(unvoted(random), x, y + 1).success.any()
    for surrogate in (bpda(random, random), compose(straight_through(lambda x: x), random)):
        assert not attack.run(surrogate, x, y + 1).success.any()
