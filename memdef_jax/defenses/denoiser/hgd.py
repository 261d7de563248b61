"""The high-level representation guided denoiser (HGD, arXiv 1712.02976), and its training.

A U-Net learns what to take from adversarial images, judged by what the defended classifier then
makes of them. It is the baseline of the feature-map denoiser's tables, and learns from the same
adversarial images here.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
from jax.sharding import Mesh

from memdef_jax.data import Dataset
from memdef_jax.defenses.denoiser.denoiser_defense import DenoiserDefense
from memdef_jax.defenses.denoiser.denoiser_training import (
    DenoiserConfig,
    ExamplesConfig,
    begin,
    check_run,
)
from memdef_jax.defenses.target import ClassifierConfig
from memdef_jax.nn import Bound
from memdef_jax.nn.perceptual import guidance
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import Reporter

VARIANTS = ("logits", "features")


def _lenet() -> ClassifierConfig:
    return ClassifierConfig(architecture="lenet")


# Batches of 60 for 20 to 30 epochs, as published; the rate does not decay at the end as there.
def _denoiser() -> DenoiserConfig:
    return DenoiserConfig(epochs=30, batch_size=60, weight_decay=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HGDConfig:
    """A whole HGD.

    Attributes:
      classifier: what is defended.
      examples: the adversarial images that are learned from.
      denoiser: the U-Net.
      variants: of `VARIANTS`: "logits", guided by the classifier's logits (LGD, the paper's best);
        "features", by what its last dense layer reads (FGD).
      seed: of everything random.
      train_size: use only so many training images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    classifier: ClassifierConfig = dataclasses.field(default_factory=_lenet)
    examples: ExamplesConfig = dataclasses.field(default_factory=ExamplesConfig)
    denoiser: DenoiserConfig = dataclasses.field(default_factory=_denoiser)
    variants: tuple[str, ...] = ("logits",)
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_run(self.variants, VARIANTS, self.seed, self.save_every)
        check_compute_dtype(self.compute_dtype)


def fit(
    config: HGDConfig,
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
      dataset: only its training split is used.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.

    Returns:
      Defenses by variant.

    Raises:
      InputError: before any work, when something does not fit; `TrainingDiverged` later.
    """
    stages = begin("hgd", config, dataset, folder, mesh, backend, reporter)
    target = stages.target()
    pairs, guide = stages.pairs(target), Bound(stages.spec.target(), target)
    found = {}
    for name in config.variants:

        def objective(x: jax.Array, denoised: jax.Array, level: str = name) -> dict[str, jax.Array]:
            return {"guidance": guidance(guide, level, x, denoised)}

        found[name] = stages.train(name, 4 + VARIANTS.index(name), objective, pairs, target)
    return found
