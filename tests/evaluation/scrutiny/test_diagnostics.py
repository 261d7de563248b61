"""Template diagnostics of defenses whose answers are known in advance."""

import numpy as np
import pytest

from memdef_jax.data import to_float
from memdef_jax.evaluation import template_diagnostics
from memdef_jax.evaluation.scrutiny import diagnostics
from tests.evaluation import handmade


@pytest.fixture(autouse=True)
def batches_of_eight(monkeypatch):
    monkeypatch.setattr(diagnostics, "_BATCH", 8)  # 21 images then need padding


@pytest.fixture(scope="module")
def of_template(template, digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "_BATCH", 8)
        return template_diagnostics(template, digits.train, digits.test[:21])


@pytest.fixture(scope="module")
def plain(digits):
    return handmade.make(digits, memory=False)


def test_a_pure_template_has_no_spread_and_follows_every_wrong_slot(of_template):
    assert of_template["reconstruction_spread"] < 1e-6 < of_template["image_spread"]
    assert of_template["follows_wrong_slot"] == 1.0
    assert of_template["agreement"] == 1.0


def test_errors_and_spreads_are_those_computed_by_hand(of_template, template, digits):
    test = digits.test[:21]
    x, y = to_float(test.images).astype(np.float64), test.labels
    everywhere = np.arange(handmade.SAMPLES, dtype=np.int32) % 10
    images = np.broadcast_to(x[:1], (handmade.SAMPLES, 28, 28, 1)).astype(np.float32)
    slot = np.asarray(handmade.rebuild(template, images, everywhere))  # a template for each class
    mse = np.mean([np.mean((image - slot[label]) ** 2) for image, label in zip(x, y)])
    assert of_template["mse"] == pytest.approx(mse, rel=1e-4)
    train = to_float(digits.train.images)
    mean = {c: train[digits.train.labels == c].mean(axis=0) for c in range(10)}
    of_mean = np.mean([np.mean((image - mean[label]) ** 2) for image, label in zip(x, y)])
    assert of_template["class_mean_mse"] == pytest.approx(of_mean, rel=1e-4)
    spread = np.mean([x[y == c].std(axis=0).mean() for c in set(y)])
    assert of_template["image_spread"] == pytest.approx(spread, rel=1e-4)


def test_a_classifier_that_ignores_one_slot_follows_the_others(pair, digits):
    # Slot 3 is called 5: of the images shown slot 3 none follows, of all others every one.
    test = digits.test[:21]
    found = template_diagnostics(pair["benign"], digits.train, test, seed=4)
    shift = np.random.default_rng(4).integers(1, 10, 21)
    shown = (test.labels + shift) % 10
    assert found["follows_wrong_slot"] == pytest.approx((shown != 3).mean())
    assert (shown == 3).any()
    assert not (shown == test.labels).any()


def test_without_memory_the_image_is_read_and_not_the_slot(plain, digits):
    found = template_diagnostics(plain, digits.train, digits.test[:21])
    part = digits.train[: handmade.SAMPLES]
    x, y = to_float(part.images), part.labels
    one, other = (np.asarray(handmade.rebuild(plain, x, z)) for z in (y, (y + 1) % 10))
    np.testing.assert_array_equal(one, other)
    assert found["reconstruction_spread"] > 0.5 * found["image_spread"]
    assert found["follows_wrong_slot"] < 0.3
