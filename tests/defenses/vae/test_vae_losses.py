"""The objective of the VAE defenses against its parts computed outside, and who learns from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.defenses import Mixture, VAEConfig, VAEDefenseSpec
from memdef_jax.defenses.vae.vae_losses import Terms, reading_loss, vae_loss

SIZE = 4
MIXTURE = Mixture(attacks=("fgsm",), rounds=1)
PLAIN = VAEConfig(latent_size=6)


@pytest.fixture(scope="module")
def spec():
    return VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=6)


@pytest.fixture(scope="module")
def batch(digits):
    part = digits.test[:SIZE]
    adversarial = np.clip(data.to_float(part.images) + 0.3, 0, 1).astype(np.float32)
    return {"image": part.images, "label": part.labels, "adversarial": adversarial}


@pytest.fixture(scope="module")
def parts(spec):
    """(undefended, vae, centres)"""
    keys = jax.random.split(jax.random.key(0), 3)
    centres = jax.random.normal(keys[2], (10, 6))
    return jax.device_get((spec.init_classifier(keys[0]), spec.init_vae(keys[1]), centres))


@pytest.fixture(scope="module")
def run(spec, batch, parts):
    """run(terms, config): (loss, metrics, gradients by part, new statistics)."""
    undefended, vae, centres = parts

    def run(terms, config=PLAIN):
        loss_fn = vae_loss(spec, config, terms, MIXTURE, undefended)
        params = {"vae": vae["params"], "centres": centres}
        stats = {"vae": vae["batch_stats"]}
        if terms.trained:
            params["classifier"], stats["classifier"] = undefended["params"], {}

        def averaged(params, stats, batch, keys):  # BatchNorm averages over the axis of the mesh
            return jax.vmap(
                lambda b, k: jax.value_and_grad(loss_fn, has_aux=True)(params, stats, b, k),
                axis_name="data",
            )(batch, keys)

        one = jax.tree.map(lambda a: np.asarray(a)[None], batch)
        keys = jax.random.split(jax.random.key(1), SIZE)[None]
        (loss, (stats, metrics)), grads = jax.jit(averaged)(params, stats, one, keys)
        return jax.tree.map(lambda a: np.asarray(a[0]), (loss, metrics, grads, stats))

    return run


@pytest.fixture(scope="module")
def passed(spec, batch, parts):
    """(mean, log_variance) of the attacked images, as the encoder gives them while training."""
    (mean, log_variance), _ = spec.vae().apply(
        parts[1], batch["adversarial"], method="encode", train=True, mutable=["batch_stats"]
    )
    return np.asarray(mean, np.float64), np.asarray(log_variance, np.float64)


def test_the_bound_is_reconstruction_and_divergence(run, passed):
    mean, log_variance = passed
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1).mean()
    loss, metrics, _, _ = run(Terms())
    assert metrics["divergence"] == pytest.approx(divergence, rel=1e-4)
    assert loss == pytest.approx(metrics["reconstruction"] + divergence, rel=1e-4)
    assert set(metrics) == {"reconstruction", "divergence", "loss"}
    # Decoded logits of an untrained network are near 0: ln 2 a pixel.
    assert metrics["reconstruction"] == pytest.approx(784 * np.log(2), rel=0.05)


def test_means_are_sums_divided_by_what_is_summed(run):
    _, whole, _, _ = run(Terms())
    config = dataclasses.replace(PLAIN, reduction="mean", kl_weight=0.1)
    loss, means, _, _ = run(Terms(), config)
    assert means["reconstruction"] == pytest.approx(whole["reconstruction"] / 784, rel=1e-4)
    assert means["divergence"] == pytest.approx(whole["divergence"] / 6, rel=1e-4)
    assert loss == pytest.approx(means["reconstruction"] + 0.1 * means["divergence"], rel=1e-5)


def test_a_frozen_classifier_reads_the_purified_image_and_does_not_learn(run, parts, batch):
    loss, metrics, grads, _ = run(Terms(classification=0.5))
    rest = metrics["reconstruction"] + metrics["divergence"]
    assert loss == pytest.approx(rest + 0.5 * metrics["cross_entropy"], rel=1e-5)
    assert "classifier" not in grads
    assert optax.tree.norm(grads["vae"]) > 0


def test_a_trained_classifier_learns(run):
    _, _, grads, stats = run(Terms(classification=1.0, trained=True))
    assert optax.tree.norm(grads["classifier"]) > 0
    assert set(stats) == {"vae", "classifier"}


def test_centres_learn_by_proximity_and_distance(run):
    loss, metrics, grads, _ = run(Terms(proximity=0.3, distance=0.2))
    rest = metrics["reconstruction"] + metrics["divergence"]
    expected = rest + 0.3 * metrics["proximity"] - 0.2 * metrics["distance"]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert np.abs(grads["centres"]).max() > 0
    _, without, _, _ = run(Terms(proximity=0.3, distance=0.2, between_centres=False))
    assert without["distance"] < metrics["distance"]
    assert without["proximity"] == pytest.approx(metrics["proximity"], rel=1e-5)


def test_the_identity_sees_clean_images(spec, batch, parts, run):
    (mean, log_variance), _ = spec.vae().apply(
        parts[1],
        data.to_float(batch["image"]),
        method="encode",
        train=True,
        mutable=["batch_stats"],
    )
    mean, log_variance = np.asarray(mean, np.float64), np.asarray(log_variance, np.float64)
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1).mean()
    _, metrics, _, stats = run(Terms(identity=True))
    assert metrics["divergence"] == pytest.approx(divergence, rel=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), stats["vae"], parts[1]["batch_stats"])
    assert max(jax.tree.leaves(moved)) > 0


def test_the_reader_learns_from_purified_images(spec, batch, parts):
    undefended, vae, _ = parts
    loss_fn = reading_loss(spec, MIXTURE, undefended, vae)
    keys = jax.random.split(jax.random.key(1), SIZE)
    params = undefended["params"]
    loss, _ = jax.jit(lambda p: loss_fn(p, {}, batch, keys))(params)
    z = spec.vae().apply(vae, batch["adversarial"], method="encode")[0]
    x = expit(np.asarray(spec.vae().apply(vae, z, method="decode_logits")))
    logits = np.asarray(spec.reader().apply(undefended, jnp.asarray(x)), np.float64)
    right = logits[np.arange(SIZE), batch["label"]]
    assert loss == pytest.approx((np.log(np.exp(logits).sum(1)) - right).mean(), rel=1e-4)


def test_the_rate_decays_by_the_epoch_down_to_its_floor_and_gradients_are_clipped():
    config = VAEConfig(learning_rate=1.0, decay=0.5, lowest_rate=0.2, clip=1e-3)
    optimizer = config.optimizer(steps_per_epoch=2)
    params = {"a": jnp.zeros(3)}
    state, moves = optimizer.init(params), []
    for _ in range(8):
        gradient = {"a": jnp.array([3.0, -4.0, 0.0])}
        updates, state = optimizer.update(gradient, state, params)
        moves.append(float(updates["a"][1]))
    # Adam on a constant gradient moves by the rate itself, whatever the clipped size.
    np.testing.assert_allclose(moves, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reduction": "max"}, "reduction 'max' is unknown; use 'sum' or 'mean'"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        VAEConfig(**change)
