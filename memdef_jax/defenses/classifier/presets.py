"""Named configurations of robust classifiers, each with the linear control of the memory head.

"quick": minutes on a CPU; a small CNN, half clean images and half PGD of three steps, for grey
images at eps 0.1. "fast": the same time with FGSM from a random start, on attacked images alone.
"trades": TRADES with five steps. "paper": ResNet-18 with flips and crops, averaged weights and
PGD of ten steps, for a GPU. Colour images have eps 8/255.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from memdef_jax.data import Augmentation
from memdef_jax.defenses.adversarial_training import AdversarialTraining
from memdef_jax.defenses.classifier.classifier_training import RobustClassifierConfig


def _training(image_shape: tuple[int, int, int], **changes: Any) -> AdversarialTraining:
    eps = 8 / 255 if image_shape[-1] == 3 else 0.1
    return dataclasses.replace(RobustClassifierConfig().training, eps=eps, **changes)


def _quick(image_shape: tuple[int, int, int], train_size: int) -> RobustClassifierConfig:
    return RobustClassifierConfig(
        # From random starts one seed of three resisted what is far from the image alone.
        training=_training(image_shape, random_start=False),
        # A small dataset needs more epochs for about as many updates of 128 images.
        epochs=max(8, -(-200_000 // train_size)),
        validation_size=min(1000, train_size // 10),
        validate_every=max(1, 25_000 // train_size),
    )


def _fast(image_shape: tuple[int, int, int], train_size: int) -> RobustClassifierConfig:
    training = _training(image_shape, recipe="fgsm_rs", clean_share=0.0)
    return dataclasses.replace(_quick(image_shape, train_size), training=training)


def _trades(image_shape: tuple[int, int, int], train_size: int) -> RobustClassifierConfig:
    training = _training(image_shape, recipe="trades", attack_steps=5)
    return dataclasses.replace(_quick(image_shape, train_size), training=training)


def _paper(image_shape: tuple[int, int, int], train_size: int) -> RobustClassifierConfig:
    colour = image_shape[-1] == 3
    training = _training(image_shape, attack_steps=10, clean_share=0.0)
    return RobustClassifierConfig(
        architecture="resnet18",
        training=dataclasses.replace(training, step_size=training.eps / 4),
        epochs=100 if colour else 40,
        learning_rate=1e-3,
        weight_decay=5e-5,
        augmentation=Augmentation(crop_padding=4 if colour else 2, horizontal_flip=True),
        average_decay=0.999,
        validation_size=min(1000, train_size // 10),
    )


CLASSIFIER = {"quick": _quick, "fast": _fast, "trades": _trades, "paper": _paper}
