"""What validation measures, and when it cries catastrophic overfitting."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from memdef_jax.attacks import PGD
from memdef_jax.data import Split
from memdef_jax.defenses.classifier.robust_validation import (
    CLEAN,
    ROBUST,
    catastrophic_overfitting,
    robust_accuracy,
)
from memdef_jax.training import make_mesh


def history(*rows):
    return [
        {"step": 100.0 * i, ROBUST: robust, "adversarial_accuracy": trained}
        for i, (robust, trained) in enumerate(rows, 1)
    ]


def test_a_collapse_with_high_accuracy_on_the_training_attack_is_said():
    curve = history((0.3, 0.4), (0.45, 0.5), (0.44, 0.6), (0.02, 0.9), (0.0, 0.95))
    sentence = catastrophic_overfitting(curve)
    assert "at step 400" in sentence
    assert "from 0.450 to 0.020" in sentence
    assert "training attack is 0.900" in sentence
    assert catastrophic_overfitting(curve[:3]) is None
    recovered = [*curve, *history((0.5, 0.6))]
    assert catastrophic_overfitting(recovered) == sentence


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(0.1, 0.9)],  # never robust
        [(0.5, 0.6), (0.3, 0.9), (0.2, 0.99)],  # ordinary overfitting
        [(0.5, 0.6), (0.02, 0.1)],  # all is lost, also on the training attack
        [(0.12, 0.2), (0.01, 0.3)],  # near chance from the start
    ],
)
def test_other_curves_are_not(rows):
    assert catastrophic_overfitting(history(*rows)) is None


def test_without_an_attack_in_the_training_there_is_nothing_to_overfit_to():
    assert (
        catastrophic_overfitting([{"step": 1.0, ROBUST: 0.5}, {"step": 2.0, ROBUST: 0.0}]) is None
    )


class Brightness(nn.Module):
    """Two classes by whether the single pixel is above one half."""

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.ones, ())
        z = weight * (x.reshape(x.shape[0], -1)[:, :1] - 0.5)
        return jax.numpy.concatenate([-z, z], axis=1)


def test_the_robust_accuracy_of_a_threshold_is_the_share_of_images_far_from_it():
    values = np.arange(9, 256, 5, dtype=np.uint8)  # 50 images, which fill no batch of 250
    labels = (values > 127).astype(np.int32)
    labels[0] = 1 - labels[0]  # one that is wrong anyway
    split = Split(values.reshape(-1, 1, 1, 1), labels)
    # The second goes too short a way to fool any that the first does not.
    attacks = (PGD(eps=0.1, step_size=0.05, steps=4), PGD(eps=0.05, step_size=0.05, steps=1))
    measure = robust_accuracy(Brightness(), attacks, split, jax.random.key(0), make_mesh(1))
    found = measure({"params": {"weight": np.float32(4.0)}})
    far = np.abs(values / 255 - 0.5) > 0.1
    assert found[CLEAN] == pytest.approx(49 / 50)
    assert found[ROBUST] == pytest.approx((far.sum() - 1) / 50)
