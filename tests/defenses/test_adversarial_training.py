"""The recipes of adversarial training against their formulas, on a linear classifier."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.data import Augmentation
from memdef_jax.defenses.adversarial_training import (
    AdversarialTraining,
    adversarial_loss,
    margin_cross_entropy,
)
from memdef_jax.nn import Bound


class Linear(nn.Module):
    """Logits 3 x a matrix: gradients that do not vanish."""

    @nn.compact
    def __call__(self, x, train=False, dropout_keys=None):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


BATCH = 6


@pytest.fixture(scope="module")
def problem():
    """(params, images [6, 2, 2, 1], labels, keys)."""
    rng = np.random.default_rng(0)
    params = {"Dense_0": {"kernel": 3 * rng.normal(size=(4, 3)), "bias": np.zeros(3)}}
    x, y = rng.uniform(size=(BATCH, 2, 2, 1)), rng.integers(0, 3, BATCH)
    keys = jax.random.split(jax.random.key(0), BATCH)
    return jax.tree.map(np.float32, params), np.float32(x), np.int32(y), keys


def run(problem, settings):
    params, x, y, keys = problem
    loss_fn = jax.jit(adversarial_loss(Linear(), settings, Augmentation()))
    loss, (_, metrics) = loss_fn(params, {}, {"image": x, "label": y}, keys)
    return float(loss), {name: float(value) for name, value in metrics.items()}


def logits_of(params, x):
    layer = params["Dense_0"]
    return np.asarray(x, np.float64).reshape(len(x), -1) @ layer["kernel"] + layer["bias"]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def crafted(problem, settings, places):
    """The images that the loss makes, made outside of it."""
    params, x, y, keys = problem
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)[places]
    model = Bound(Linear(), {"params": params})
    found = np.array(x)
    found[places] = settings.attack(model, x[places], jnp.asarray(y[places]), key=keys)
    return found


def test_the_margin_is_taken_off_the_label_alone():
    logits = np.float32([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    found = margin_cross_entropy(jnp.asarray(logits), jnp.array([1, 0]), jnp.array([0.5, 2.0]))
    by_hand = [
        np.log(np.exp([1.0, 1.5, 0.5]).sum()) - 1.5,
        np.log(np.exp([-2.0, -1.0, 3.0]).sum()) + 2.0,
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_attacked_and_clean_images_have_margins_of_their_own(problem):
    settings = AdversarialTraining(
        eps=0.2, attack_steps=2, clean_share=0.5, margin=4.5, clean_margin=1.5
    )
    params, _, y, _ = problem
    places = np.array([1, 3, 5])
    logits = logits_of(params, crafted(problem, settings, places))
    shifted = np.array(logits)
    shifted[np.arange(BATCH), y] -= np.where(np.isin(np.arange(BATCH), places), 4.5, 1.5)
    loss, metrics = run(problem, settings)
    assert loss == pytest.approx(-log_softmax(shifted)[np.arange(BATCH), y].mean(), rel=1e-4)
    right = logits.argmax(1) == y
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert metrics["adversarial_accuracy"] == pytest.approx(right[places].mean())


def test_the_loss_of_trades_is_cross_entropy_and_divergence(problem):
    settings = AdversarialTraining(recipe="trades", eps=0.2, attack_steps=3, beta=6.0)
    params, x, y, _ = problem
    p = log_softmax(logits_of(params, x))
    q = log_softmax(logits_of(params, crafted(problem, settings, np.arange(BATCH))))
    natural = -p[np.arange(BATCH), y].mean()
    divergence = (np.exp(p) * (p - q)).sum(1).mean()
    loss, metrics = run(problem, settings)
    assert metrics["cross_entropy"] == pytest.approx(natural, rel=1e-4)
    assert metrics["divergence"] == pytest.approx(divergence, rel=1e-3)
    assert loss == pytest.approx(natural + 6 * divergence, rel=1e-3)


def test_the_inner_attack_of_trades_raises_the_divergence_inside_the_ball(problem):
    params, x, _, _ = problem
    settings = AdversarialTraining(recipe="trades", eps=0.1, attack_steps=5)
    p = log_softmax(logits_of(params, x))
    found = {}
    for steps in (1, 5):
        moved = crafted(
            problem, dataclasses.replace(settings, attack_steps=steps), np.arange(BATCH)
        )
        assert np.abs(moved - x).max() <= 0.1 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        q = log_softmax(logits_of(params, moved))
        found[steps] = (np.exp(p) * (p - q)).sum(1)
    assert (found[1] > 0).all()
    assert (found[5] > found[1]).all()
    # One step from near the image itself, a quarter of eps long.
    first = crafted(problem, dataclasses.replace(settings, attack_steps=1), np.arange(BATCH))
    inside = (x > 0.05) & (x < 0.95)
    np.testing.assert_allclose(np.abs(first - x)[inside], 0.025, atol=6e-3)


def test_the_inner_attack_of_trades_is_signed_ascent_on_the_divergence(problem):
    params, x, y, keys = problem
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    settings = AdversarialTraining(recipe="trades", eps=0.1, attack_steps=5)
    model = Bound(Linear(), {"params": params})
    still = dataclasses.replace(settings.attack, steps=1, step_size=1e-9)
    moved = np.array(still(model, x, jnp.asarray(y), key=keys), np.float64)  # where it starts
    assert 1e-4 < np.abs(moved - x).std() < 2e-3
    p = np.exp(log_softmax(logits_of(params, x)))
    for _ in range(5):
        q = np.exp(log_softmax(logits_of(params, moved)))
        gradient = ((q - p) @ params["Dense_0"]["kernel"].T).reshape(x.shape)
        moved = np.clip(moved + 0.025 * np.sign(gradient), x - 0.1, x + 0.1).clip(0, 1)
    np.testing.assert_allclose(crafted(problem, settings, np.arange(BATCH)), moved, atol=1e-6)


def test_each_recipe_has_the_attack_and_the_places_of_its_paper():
    fast = AdversarialTraining(recipe="fgsm_rs", eps=0.08, clean_share=0.0, attack_steps=7)
    assert (fast.attack.steps, fast.attack.step_size) == (1, pytest.approx(0.1))
    assert fast.attack.random_start
    assert dataclasses.replace(fast, random_start=False).attack.random_start  # or it is FGSM
    madry = AdversarialTraining(recipe="pgd", eps=0.08, attack_steps=7)
    assert madry.attack.random_start
    assert not dataclasses.replace(madry, random_start=False).attack.random_start
    assert (madry.attack.steps, madry.attack.step_size) == (7, pytest.approx(0.04))
    assert dataclasses.replace(madry, step_size=0.01).attack.step_size == 0.01
    assert not madry.attack.early_stop
    trades = AdversarialTraining(recipe="trades", eps=0.08)
    assert (trades.attack.loss, trades.attack.step_size) == ("kl", pytest.approx(0.02))
    shares = {"plain": 0, "pgd": 4, "fgsm_rs": 4, "trades": 8}
    for recipe, attacked in shares.items():
        assert len(AdversarialTraining(recipe=recipe).attacked(8)) == attacked


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "free"}, "recipe 'free' is unknown; use one of plain, pgd, fgsm_rs, trades"),
        ({"eps": 2.0}, "eps 2 is outside"),
        ({"clean_share": -0.5}, r"clean share -0\.5 is outside"),
        ({"attack_steps": 0}, "attack_steps 0 is below 1"),
        ({"step_size": -1.0}, "step_size -1"),
        ({"beta": float("inf")}, "beta inf"),
        ({"margin": -1.0}, "margin -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        AdversarialTraining(**changes)
