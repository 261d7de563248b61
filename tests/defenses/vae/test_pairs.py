"""Which adversarial images a purifier learns from, and in what order it sees them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.defenses import Mixture
from memdef_jax.defenses.examples import paired_batches
from memdef_jax.defenses.vae import pairs
from memdef_jax.training import Silent

EPS = (0.1, 0.2, 0.3)


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (7, 3, 3, 1), dtype=np.uint8)  # far from 0 and 1
    return data.Split(images, rng.integers(0, 3, 7).astype(np.int32))


@pytest.fixture
def model():
    weights = jnp.float32(np.random.default_rng(1).normal(size=(9, 3)))
    return jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)


def make(mixture, model, split, folder):
    return pairs.stored_pairs(mixture, model, split, jax.random.key(0), folder, Silent())


def sizes(images, split):
    return np.abs(images - data.to_float(split.images)).max(axis=(1, 2, 3))


def test_the_default_is_the_papers_twelve_images():
    mixture = Mixture()
    assert mixture.per_image == 12
    assert mixture.levels == 4
    rates = mixture.attack("cw", np.arange(4)).learning_rate
    np.testing.assert_array_equal(rates, [6, 8, 10, 12])
    assert Mixture(rounds=1).per_image == 3
    assert Mixture(streamed=True).per_image == 1


def test_every_image_meets_every_level_once(model, split, tmp_path):
    mixture = Mixture(attacks=("fgsm", "rfgsm"), eps=EPS, cw_learning_rates=(1.0,))
    made = np.split(make(mixture, model, split, tmp_path), mixture.per_image)
    assert len(made) == 6
    index = np.arange(len(split))
    for turn in range(3):
        fgsm, rfgsm = made[2 * turn], made[2 * turn + 1]
        expected = np.array(EPS)[(index + turn) % 3]
        np.testing.assert_allclose(sizes(fgsm, split), expected, atol=1e-6)
        assert (sizes(rfgsm, split) <= expected + 1e-6).all()
        assert (rfgsm != fgsm).any()


_OTHERS = [
    pytest.param(name, marks=pytest.mark.exhaustive) for name in ("bim", "mifgsm", "apgd", "noise")
]


@pytest.mark.parametrize("name", ["pgd", "square", *_OTHERS])
def test_any_attack_with_a_budget_can_be_mixed_at_its_levels(name, model, split, tmp_path):
    mixture = Mixture(attacks=(name,), eps=(0.02, 0.1), cw_learning_rates=(1.0,), rounds=1)
    expected = np.array([0.02, 0.1])[np.arange(len(split)) % 2]
    found = sizes(make(mixture, model, split, tmp_path), split)
    assert (found <= expected + 1e-6).all()
    assert (found > expected / 2).any()


def test_stored_images_are_read_again_and_not_made(model, split, tmp_path, monkeypatch):
    mixture = Mixture(attacks=("fgsm", "cw"), eps=(0.2,), cw_learning_rates=(0.1,), cw_steps=5)
    first = make(mixture, model, split, tmp_path)
    monkeypatch.setattr(Mixture, "attack", None)
    again = make(mixture, model, split, tmp_path)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))


def test_an_epoch_shows_every_pair_once(split):
    made = data.Joined(tuple(np.full((7, 3, 3, 1), kind, np.float32) for kind in range(2)))
    batch = paired_batches(made, split, 7, seed=3)
    seen = [batch(step) for step in range(2)]
    for kind in range(2):
        shown = [
            image.tobytes()
            for b in seen
            for image, adversarial in zip(b["image"], b["adversarial"])
            if adversarial.flat[0] == kind
        ]
        assert sorted(shown) == sorted(image.tobytes() for image in split.images)
    assert seen[0]["adversarial"].dtype == np.float32
    own = paired_batches(made, split, 7, seed=3, rows=slice(2, 5))(0)  # one of several processes'
    for name, values in own.items():
        np.testing.assert_array_equal(values, seen[0][name][2:5])


def test_streamed_images_meet_each_attack_at_a_level_of_their_own(model, split):
    mixture = Mixture(attacks=("fgsm", "rfgsm"), eps=EPS, alpha=0.0, streamed=True)
    batch = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}
    keys = jax.random.split(jax.random.key(1), 7)
    made = jax.jit(lambda b, k: pairs.attacked_batch(mixture, model, b, k))(batch, keys)
    found = sizes(np.asarray(made), split)
    assert all(np.isclose(EPS, size, atol=1e-6).any() for size in found)
    assert len(set(found.round(3))) > 1
    own = pairs.attacked_batch(mixture, model, {**batch, "adversarial": batch["image"]}, keys)
    assert own is batch["image"]


def test_streamed_images_give_no_gradient_to_the_model(split):
    mixture = Mixture(attacks=("fgsm",), streamed=True)
    batch = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}
    keys = jax.random.split(jax.random.key(1), 7)

    def total(weights):
        fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
        return pairs.attacked_batch(mixture, fn, batch, keys).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((9, 3))), 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attacks": ()}, "cannot be mixed; use some of fgsm, rfgsm, cw, deepfool"),
        ({"attacks": ("fmn",)}, "cannot be mixed"),
        ({"eps": ()}, "eps is empty"),
        ({"eps": (0.3, 2.0)}, r"outside \[0, 1\]"),
        ({"alpha": 0.3}, r"alpha 0.3 is outside \[0, 0.25\]"),
        ({"rounds": 5}, "rounds 5 is outside 0 to 4"),
        ({"images": 0}, "images 0 is below 1"),
        ({"cw_steps": 0}, "steps 0"),
        ({"cw_learning_rates": (0.0,)}, "learning_rate"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Mixture(**change)
