"""The feature-map denoising autoencoder: training of it and of its variants.

An autoencoder learns to make adversarial images clean, judged by the feature maps of a frozen loss
network beside the pixels (`nn.perceptual`). The public scripts of the paper do otherwise: they
train from clean images to clean ones, and their terms of feature maps have no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.attacks.attack import check_number
from memdef_jax.data import Dataset
from memdef_jax.defenses.denoiser import loss_network
from memdef_jax.defenses.denoiser.denoiser_defense import DenoiserDefense
from memdef_jax.defenses.denoiser.denoiser_training import (
    DenoiserConfig,
    ExamplesConfig,
    begin,
    check_run,
)
from memdef_jax.defenses.denoiser.loss_network import LossNetworkConfig
from memdef_jax.defenses.target import ClassifierConfig
from memdef_jax.nn.perceptual import no_features, perceptual_terms, vgg_features
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import Reporter, check_batch, make_mesh

VARIANTS = ("perceptual", "pixel", "wide")


def _lenet() -> ClassifierConfig:
    return ClassifierConfig(architecture="lenet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureDenoiserConfig:
    """A whole feature-map denoiser.

    Attributes:
      classifier: what is defended.
      examples: the adversarial images that are learned from.
      loss_network: whose feature maps are compared.
      denoiser: the autoencoder.
      variants: of `VARIANTS`: "perceptual", the paper's; "pixel", trained on the pixels alone, the
        ablation of its claim; "wide", as the paper's but with more features.
      wide_width: factor of the number of features of "wide".
      seed: of everything random.
      train_size: use only so many training images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    classifier: ClassifierConfig = dataclasses.field(default_factory=_lenet)
    examples: ExamplesConfig = dataclasses.field(default_factory=ExamplesConfig)
    loss_network: LossNetworkConfig = dataclasses.field(default_factory=LossNetworkConfig)
    denoiser: DenoiserConfig = dataclasses.field(default_factory=DenoiserConfig)
    variants: tuple[str, ...] = ("perceptual", "pixel")
    wide_width: float = 8.0
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_run(self.variants, VARIANTS, self.seed, self.save_every)
        check_compute_dtype(self.compute_dtype)
        check_number("wide_width", self.wide_width, above_zero=True)

    @property
    def perceptual(self) -> bool:
        """Whether any variant compares feature maps."""
        return set(self.variants) != {"pixel"}


def fit(
    config: FeatureDenoiserConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
) -> dict[str, DenoiserDefense]:
    """Train, or go on training, and save the variants under `folder/defenses/<variant>`.

    Args:
      config: what to train.
      dataset: only its training split is used; of 28x28x1 images.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.

    Returns:
      Defenses by variant.

    Raises:
      InputError: before any work, when something does not fit; `TrainingDiverged` later.
    """
    mesh, network = mesh or make_mesh(), config.loss_network
    weights = loss_network.imported(network) if config.perceptual else None
    if config.perceptual and weights is None:
        split = data.subset(dataset.train, config.train_size)
        check_batch(network.batch_size, mesh)
        data.steps_per_epoch(len(data.subset(split, network.images)), network.batch_size)

    def description(described: dict[str, Any]) -> dict[str, Any]:
        if network.path is not None:  # where the file lay is no part of what was trained
            described["config"]["loss_network"]["weights"] = network.path.name
        if config.perceptual:
            described["loss_network"] = loss_network.described(network, dataset.info.name)
        return described

    stages = begin(
        "feature_denoiser", config, dataset, folder, mesh, backend, reporter, description
    )
    target = stages.target()
    pairs = stages.pairs(target)
    if config.perceptual and weights is None:
        spec = stages.spec
        weights = loss_network.trained(network, stages.trainer, 3, spec.image_shape, spec.classes)
    maps = vgg_features(weights, network.width, network.layers)
    found = {}
    for name in config.variants:
        objective = functools.partial(perceptual_terms, no_features if name == "pixel" else maps)
        width = config.wide_width if name == "wide" else None
        found[name] = stages.train(name, 4 + VARIANTS.index(name), objective, pairs, target, width)
    return found
