"""Each term of Equation 13 against NumPy, and what each option does to it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.defenses import StackConfig
from memdef_jax.defenses.memory import stack as stack_module
from memdef_jax.defenses.memory.stack import empty_slot, stack_loss
from memdef_jax.nn import ClassifierB
from memdef_jax.nn.autoencoder import ARCHITECTURES, Decoder, Encoder
from memdef_jax.training import AXIS

ARCH = ARCHITECTURES[(28, 28, 1)]
CLOSE = {"rtol": 2e-5}
ROWS, CLASSES, SLOTS, BATCH = 20, 10, 2, 4
# Weights that let every term be felt.
CONFIG = StackConfig(
    memory_rows=ROWS, alpha=0.1, beta=0.5, cross_entropy_weight=0.7, noise=0.0, dropout_rate=0.0
)


@pytest.fixture(scope="module")
def case(spec, digits):
    """(variables, batch, keys): a batch of four digits."""
    part = digits.train[0:800:200]
    batch = {"image": jnp.asarray(part.images), "label": jnp.asarray(part.labels)}
    return (
        jax.device_get(spec.init_stack(jax.random.key(0))),
        batch,
        jax.random.split(jax.random.key(1), BATCH),
    )


def evaluate(spec, config, case):
    """The loss as on one device, for which a vmap with the axis name stands."""
    variables, batch, keys = case
    batch, keys = jax.tree.map(lambda a: a[None], (batch, keys))
    mapped = jax.vmap(stack_loss(spec, config), (None, None, 0, 0), axis_name=AXIS)
    loss, (stats, metrics) = mapped(variables["params"], variables["batch_stats"], batch, keys)
    return jax.tree.map(lambda a: np.asarray(a[0], np.float64), (loss, stats, dict(metrics)))


def trained(module, case, name, x):
    """A module's output with batch statistics, and the running ones it leaves."""
    variables = case[0]
    out, updated = module.apply(
        {
            "params": variables["params"]["autoencoder"][name],
            "batch_stats": variables["batch_stats"]["autoencoder"][name],
        },
        x,
        train=True,
        mutable=["batch_stats"],
    )
    return out, updated["batch_stats"]


def addressed(spec, case, noisy):
    """Softmax weights over all rows, by NumPy."""
    z = np.asarray(trained(Encoder(ARCH), case, "encoder", noisy)[0], np.float64)
    memory = np.asarray(case[0]["params"]["autoencoder"]["memory"], np.float64)
    cosine = z @ memory.T / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(memory, axis=1))
    weights = np.exp(spec.softmax_scale * cosine)
    return weights / weights.sum(1, keepdims=True), memory


def by_hand(spec, config, case, shown=None, noisy=None):
    """All terms, by NumPy around the encoder, the decoder and classifier-B."""
    variables, batch, _ = case
    x = np.asarray(batch["image"], np.float64) / 255
    labels = np.asarray(batch["label"])
    shown = labels if shown is None else np.asarray(shown)
    weights, memory = addressed(spec, case, jnp.float32(x) if noisy is None else noisy)
    own = np.repeat(np.eye(CLASSES)[shown], SLOTS, axis=1)

    def branch(mask):
        w = np.where(weights > spec.shrink_threshold, weights, 0) * mask
        w = w / w.sum(1, keepdims=True)
        decoded, stats = trained(Decoder(ARCH), case, "decoder", jnp.float32(w @ memory))
        square = np.square(x - np.asarray(decoded, np.float64))
        error = getattr(square, config.mse_reduction)((1, 2, 3)).mean()
        entropies = -(w * np.log(np.where(w > 0, w, 1))).sum(1)
        return w, decoded, stats, error, getattr(entropies, config.entropy_reduction)()

    w, rebuilt, stats, target_mse, target_entropy = branch(own)
    _, _, _, non_target_mse, non_target_entropy = branch(1 - own)
    params = {"params": variables["params"]["classifier_b"]}
    logits = np.asarray(ClassifierB(CLASSES).apply(params, rebuilt), np.float64)
    bounded = config.beta / (
        1 + np.exp(-(non_target_mse + config.alpha * non_target_entropy) / (CLASSES - 1))
    )
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    cross_entropy = -log_probability[np.arange(BATCH), labels].mean()
    metrics = {
        "target_mse": target_mse,
        "non_target_mse": non_target_mse,
        "target_entropy": target_entropy,
        "non_target_entropy": non_target_entropy,
        "bounded_term": bounded,
        "cross_entropy": cross_entropy,
        "accuracy": (logits.argmax(1) == labels).mean(),
        "active_rows": (w > 0).sum(1).mean(),
        "active_rows_min": (w > 0).sum(1).min(),
        "largest_safe_threshold": (weights * own).max(1).min(),
        "loss": target_mse
        + config.alpha * target_entropy
        - bounded
        + config.cross_entropy_weight * cross_entropy,
    }
    return metrics, stats


def compare(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **CLOSE)


@pytest.mark.parametrize("mse", ["mean", "sum"])
@pytest.mark.parametrize("entropy", ["mean", "sum"])
def test_every_term_is_that_of_the_equation(spec, case, mse, entropy):
    config = dataclasses.replace(CONFIG, mse_reduction=mse, entropy_reduction=entropy)
    loss, _, metrics = evaluate(spec, config, case)
    expected, _ = by_hand(spec, config, case)
    compare(metrics, expected)
    np.testing.assert_allclose(loss, expected["loss"], **CLOSE)


def test_the_reductions_differ_by_the_number_of_pixels_and_of_images(spec, case):
    _, _, mean = evaluate(spec, dataclasses.replace(CONFIG, entropy_reduction="mean"), case)
    config = dataclasses.replace(CONFIG, mse_reduction="sum", entropy_reduction="sum")
    _, _, total = evaluate(spec, config, case)
    for name, factor in [
        ("target_mse", 784),
        ("non_target_mse", 784),
        ("target_entropy", BATCH),
        ("non_target_entropy", BATCH),
    ]:
        np.testing.assert_allclose(total[name], factor * mean[name], err_msg=name, **CLOSE)


def test_beta_zero_leaves_the_non_target_branch_out(spec, case):
    loss, _, metrics = evaluate(spec, dataclasses.replace(CONFIG, beta=0.0), case)
    expected, _ = by_hand(spec, CONFIG, case)
    bounded = expected.pop("bounded_term")
    del expected["non_target_mse"], expected["non_target_entropy"]
    expected["loss"] += bounded
    compare(metrics, expected)
    np.testing.assert_allclose(loss, expected["loss"], **CLOSE)


def test_running_statistics_come_from_the_target_branch_only(spec, case):
    _, found, _ = evaluate(spec, CONFIG, case)
    _, decoder = by_hand(spec, CONFIG, case)
    x = jnp.float32(case[1]["image"]) / 255
    _, encoder = trained(Encoder(ARCH), case, "encoder", x)
    for name, expected in (("encoder", encoder), ("decoder", decoder)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found["autoencoder"][name],
            expected,
        )
    before = case[0]["batch_stats"]["autoencoder"]
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a != b).any()), found["autoencoder"], before)
    )


def test_noise_disturbs_the_input_and_not_the_target(spec, case):
    config = dataclasses.replace(CONFIG, noise=0.2)
    _, _, metrics = evaluate(spec, config, case)
    x = jnp.float32(case[1]["image"]) / 255
    keys = jax.vmap(jax.random.fold_in, (0, None))(case[2], 1)
    expected, _ = by_hand(spec, config, case, noisy=data.gaussian_noise(keys, x, 0.2))
    compare(metrics, expected)


def test_noise_read_as_a_variance_has_its_root_as_standard_deviation(spec, case):
    sigma = evaluate(spec, dataclasses.replace(CONFIG, noise=0.2), case)
    config = dataclasses.replace(CONFIG, noise=0.04, noise_is_variance=True)
    assert config.noise_sigma == pytest.approx(0.2)
    assert StackConfig().noise_sigma == 1e-4
    assert StackConfig(noise_is_variance=True).noise_sigma == pytest.approx(0.01)
    np.testing.assert_allclose(evaluate(spec, config, case)[0], sigma[0], rtol=1e-6)


def test_dropout_touches_classifier_b_alone(spec, case):
    _, _, without = evaluate(spec, CONFIG, case)
    _, _, dropped = evaluate(spec, dataclasses.replace(CONFIG, dropout_rate=0.5), case)
    assert dropped["cross_entropy"] != without["cross_entropy"]
    for name in ("target_mse", "non_target_mse", "target_entropy", "bounded_term"):
        np.testing.assert_allclose(dropped[name], without[name], rtol=1e-6)


def test_without_memory_only_reconstruction_and_cross_entropy_remain(spec, case):
    spec = dataclasses.replace(spec, memory_rows=0)
    config = dataclasses.replace(CONFIG, memory_rows=0)
    variables = jax.device_get(spec.init_stack(jax.random.key(0)))
    loss, _, metrics = evaluate(spec, config, (variables, *case[1:]))
    assert metrics.keys() == {"target_mse", "cross_entropy", "accuracy", "loss"}
    np.testing.assert_allclose(
        loss, metrics["target_mse"] + 0.7 * metrics["cross_entropy"], rtol=1e-6
    )


def test_random_masks_are_shown_to_the_memory_while_the_labels_stay_true(spec, case, monkeypatch):
    shown = (case[1]["label"] + 3) % CLASSES
    monkeypatch.setattr(stack_module, "_masked_labels", lambda *arguments: shown)
    _, _, metrics = evaluate(spec, CONFIG, case)
    compare(metrics, by_hand(spec, CONFIG, case, shown=shown)[0])


def test_the_share_of_random_masks_is_that_asked_for_and_uniform():
    size, share = 20_000, 0.3
    keys = jax.random.split(jax.random.key(0), size)
    labels = jnp.full(size, 7, jnp.int32)
    shown = np.asarray(stack_module._masked_labels(keys, labels, CLASSES, share))
    counts = np.bincount(shown, minlength=CLASSES) / size
    # A random class is the true one in a tenth of the cases. Five standard errors.
    expected = np.full(CLASSES, share / CLASSES)
    expected[7] += 1 - share
    np.testing.assert_array_less(
        np.abs(counts - expected), 5 * np.sqrt(expected * (1 - expected) / size)
    )
    np.testing.assert_array_equal(stack_module._masked_labels(keys, labels, CLASSES, 0.0), labels)


def test_a_threshold_that_empties_a_slot_is_named_with_one_that_would_do(spec, case):
    def metrics_at(threshold):
        changed = dataclasses.replace(spec, shrink_threshold=threshold, softmax_scale=1.0)
        return evaluate(changed, CONFIG, case)[2], empty_slot(threshold)

    metrics, guard = metrics_at(2 / ROWS)
    assert metrics["active_rows_min"] == 0
    assert np.isfinite(metrics["loss"])  # nothing else would have told
    sentence = guard(metrics)
    assert sentence.startswith("shrink threshold 0.1 leaves an image without any memory row")
    would_do = float(re.search(r"([\d.e-]+) or less would have kept one", sentence)[1])

    metrics, guard = metrics_at(would_do)
    assert metrics["active_rows_min"] >= 1
    assert guard(metrics) is None
    metrics, guard = metrics_at(1e-12)
    assert metrics["active_rows"] == SLOTS
    assert guard(metrics) is None
    # And the advice is no lower than need be.
    assert would_do > 0.98 * metrics["largest_safe_threshold"]


def test_the_guard_says_nothing_of_an_autoencoder_without_memory():
    assert empty_slot(1e-12)({"loss": 1.0}) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"batch_size": -3}, "batch_size -3 is below 1"),
        ({"alpha": -1.0}, "alpha -1"),
        ({"beta": float("nan")}, "beta nan"),
        ({"noise": float("inf")}, "noise inf"),
        ({"cross_entropy_weight": -0.5}, r"cross_entropy_weight -0\.5"),
        ({"weight_decay": -0.5}, r"weight_decay -0\.5"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"random_mask_share": 1.5}, r"random mask share 1\.5 is outside"),
        # A rate of one would divide by zero in the gradient.
        ({"dropout_rate": 1.0}, r"dropout rate 1 is outside \[0, 1\)"),
        ({"mse_reduction": "max"}, "mse_reduction 'max' is unknown"),
        ({"entropy_reduction": "max"}, "entropy_reduction 'max' is unknown"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        StackConfig(**changes)
