"""Named configurations of the feature-map denoiser and of HGD.

"quick": minutes on a CPU; a part of the images, fewer iterations of PGD in those that are learned
from, narrower networks. "paper": the paper's settings, for a GPU; without a file of ImageNet's
weights (--config.loss-network.weights) the loss network is trained on the dataset.
"""

from __future__ import annotations

import dataclasses

from memdef_jax.defenses.denoiser.denoiser_training import ExamplesConfig
from memdef_jax.defenses.denoiser.feature_denoiser import FeatureDenoiserConfig
from memdef_jax.defenses.denoiser.hgd import HGDConfig
from memdef_jax.defenses.target import ClassifierConfig


def _quick_parts(train_size: int) -> tuple[ClassifierConfig, ExamplesConfig, int]:
    """Classifier, adversarial images, and how many clean ones these are made of."""
    images = min(6000, train_size)
    classifier = ClassifierConfig(architecture="lenet", epochs=-(-60_000 // train_size))
    return classifier, ExamplesConfig(images=images, pgd_steps=10), images


def _quick_feature_denoiser(
    image_shape: tuple[int, int, int], train_size: int
) -> FeatureDenoiserConfig:
    paper = FeatureDenoiserConfig()
    classifier, examples, images = _quick_parts(train_size)
    seen = min(12_000, train_size)
    return dataclasses.replace(
        paper,
        classifier=classifier,
        examples=examples,
        loss_network=dataclasses.replace(
            paper.loss_network,
            width=0.125,
            images=seen,
            epochs=-(-24_000 // seen),
            learning_rate=1e-3,
        ),
        denoiser=dataclasses.replace(
            paper.denoiser, epochs=-(-48_000 // images), batch_size=32, learning_rate=3e-3
        ),
    )


def _quick_hgd(image_shape: tuple[int, int, int], train_size: int) -> HGDConfig:
    paper = HGDConfig()
    classifier, examples, images = _quick_parts(train_size)
    denoiser = dataclasses.replace(paper.denoiser, width=0.125, epochs=-(-12_000 // images))
    return dataclasses.replace(paper, classifier=classifier, examples=examples, denoiser=denoiser)


FEATURE_DENOISER = {
    "quick": _quick_feature_denoiser,
    "paper": lambda image_shape, train_size: FeatureDenoiserConfig(),
}
HGD = {"quick": _quick_hgd, "paper": lambda image_shape, train_size: HGDConfig()}
