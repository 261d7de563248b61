"""Surrogates: deployed values, useful gradients, and attacks that work through them."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import BIM, FGSM, bpda, compose, eot, straight_through

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
