"""Transfer: crafted on one model, judged on another, by hand and in every way of calling."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import BIM, FGSM, PGD, CarliniWagnerL2, eot
from memdef_jax.attacks.transfer import Transfer
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(3)
PGD2 = PGD(eps=0.08, step_size=0.02, steps=5, restarts=2)


def wrong(model, images, y):
    return np.asarray(jnp.argmax(model(images), -1) != y)


@pytest.fixture
def problem(mlp_problem):
    """A target, another model to craft on, images and the target's answers."""
    target, x, y = mlp_problem(batch=20)
    source = jax.tree.map(lambda w: w + 0.7 * jax.random.normal(KEY, w.shape), target)
    return target, source, x, y


def test_images_are_the_sources_and_success_is_the_targets(problem):
    target, source, x, y = problem
    result = Transfer(attack=PGD2, source=source).run(target, x, y, key=KEY)
    crafted = replace(PGD2, early_stop=False).run(source, x, y, key=KEY)
    np.testing.assert_array_equal(result.images, crafted.images)
    np.testing.assert_array_equal(result.norm, crafted.norm)
    np.testing.assert_array_equal(result.success, wrong(target, result.images, y))
    assert 0 < result.success.sum() < 20
    assert (result.success != crafted.success).any()
    # 2 restarts of 5 gradient passes and one judging pass on the source, one on the target.
    np.testing.assert_array_equal(result.forward, 2 * (5 + 1) + 1)
    np.testing.assert_array_equal(result.backward, 2 * 5)
    assert (result.seconds > 0).all()


def test_it_goes_on_where_the_source_has_fallen(problem):
    target, source, x, y = problem
    attack = BIM(eps=0.2, step_size=0.02, steps=10)
    short = wrong(target, attack(source, x, y), y).sum()
    whole = Transfer(attack=attack, source=source).run(target, x, y).success.sum()
    assert whole > short


def test_jit_equals_eager_use(problem):
    target, source, x, y = problem
    transfer = Transfer(attack=PGD2, source=source)
    eager = transfer.run(target, x, y, key=KEY)
    jitted = jax.jit(lambda t, fn, x, y: t.run(fn, x, y, key=KEY))(transfer, target, x, y)
    assert jitted.seconds is None
    for field in ("images", "success", "norm", "forward", "backward", "steps"):
        np.testing.assert_allclose(getattr(jitted, field), getattr(eager, field), atol=1e-5)


def test_target_source_or_budget_alone_may_be_traced(problem):
    target, source, x, y = problem

    def run(fn=target, source=source, eps=0.08):
        return Transfer(attack=FGSM(eps=eps), source=source).run(fn, x, y)

    eager = run()
    np.testing.assert_array_equal(jax.jit(run)(target).success, eager.success)
    np.testing.assert_array_equal(jax.jit(lambda s: run(source=s))(source).success, eager.success)
    sweep = jax.jit(jax.vmap(lambda eps: run(eps=eps).success))(jnp.array([0.0, 0.08]))
    np.testing.assert_array_equal(sweep[1], eager.success)
    assert not sweep[0].any()


def test_targets_are_reached_on_the_target(problem):
    target, source, x, y = problem
    goal = (y + 1) % 4
    attack = PGD(eps=0.2, step_size=0.02, steps=10, targeted=True)
    transfer = Transfer(attack=attack, source=source)
    result = transfer.run(target, x, goal, key=KEY)
    np.testing.assert_array_equal(result.success, jnp.argmax(target(result.images), -1) == goal)
    assert result.success.any()
    assert transfer.targeted
    assert transfer.norm == "linf"


def test_a_minimum_norm_attack_is_judged_on_the_target_too(problem):
    target, source, x, y = problem
    attack = CarliniWagnerL2(search_steps=2, steps=20, learning_rate=0.05, initial_const=1.0)
    result = Transfer(attack=attack, source=source).run(target, x, y)
    np.testing.assert_array_equal(result.success, wrong(target, result.images, y))
    np.testing.assert_allclose(result.images, attack(source, x, y), atol=1e-6)


def test_a_random_target_decides_by_its_vote_and_a_random_source_by_nothing(problem):
    target, source, x, y = problem

    def coin(images, key):  # the target, and in four draws of ten always the wrong class
        logits = target(images)
        lucky = jax.random.uniform(key) < 0.4
        return jnp.where(lucky, -logits, logits)

    attack = FGSM(eps=0.08)
    plain = Transfer(attack=attack, source=source).run(target, x, y)
    voted = Transfer(attack=attack, source=source).run(eot(coin, 1, KEY, votes=101), x, y)
    np.testing.assert_array_equal(voted.success, plain.success)
    # This source is always fooled by its one draw, never by its vote: its images are kept.
    crafted = Transfer(attack=attack, source=eot(coin, 1, KEY, votes=101)).run(target, x, y)
    assert (crafted.norm > 0.05).all()


def test_an_empty_batch_gives_an_empty_record(problem):
    target, source, x, y = problem
    assert Transfer(attack=FGSM(eps=0.1), source=source)(target, x[:0], y[:0]).shape[0] == 0


def test_what_does_not_fit_is_refused(problem, linear_problem, linear):
    target, source, x, y = problem
    few = linear(source.w1[:, :3], jnp.zeros(3))
    transfer = Transfer(attack=FGSM(eps=0.1), source=few)
    with pytest.raises(InputError, match="source gives 3 classes and the target 4"):
        transfer(target, x, y)
    with pytest.raises(InputError, match="logits_fn is a int"):
        Transfer(attack=FGSM(eps=0.1), source=source)(3, x, y)
    with pytest.raises(InputError, match="four axes"):
        transfer(target, x[0], y)
    broken = dataclasses.replace(target, w2=target.w2 * jnp.nan)
    with pytest.raises(InputError, match="gave NaN for image 0"):
        Transfer(attack=FGSM(eps=0.1), source=source)(broken, x, y)
