"""MAD-VAE (arXiv 2011.01755): Defense-VAE's purifier with losses that shape its latent space."""

from __future__ import annotations

import dataclasses
import pathlib

from jax.sharding import Mesh

from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses.vae.defense_vae import begin, check_variants, finish
from memdef_jax.defenses.vae.pairs import Mixture
from memdef_jax.defenses.vae.vae_defense import VAEDefense
from memdef_jax.defenses.vae.vae_losses import Terms, VAEConfig
from memdef_jax.defenses.vae.vae_training import ClassifierConfig
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import Reporter

VARIANTS = ("identity", "vanilla", "classification", "proximity_distance", "combined")


def _classifier() -> ClassifierConfig:
    return ClassifierConfig(architecture="magnet")


def _mixture() -> Mixture:
    return Mixture(
        eps=(0.25, 0.3, 0.35),
        noise="gaussian",
        cw_learning_rates=(0.01,),
        cw_confidences=(5.0, 10.0, 15.0),
        cw_steps=1000,
        cw_search_steps=9,
        cw_initial_const=1e-3,
    )


def _vae() -> VAEConfig:
    return VAEConfig(
        reduction="mean",
        kl_weight=0.1,
        batch_size=512,
        learning_rate=1e-3,
        decay=0.998,
        lowest_rate=1e-5,
        clip=1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MADVAEConfig:
    """A whole MAD-VAE: one classifier, and a purifier for each objective.

    Attributes:
      classifier: what is defended; by default the paper's, that of MagNet.
      mixture: the attacks that the purifiers learn to undo.
      vae: the purifiers.
      variants: of `VARIANTS`: "identity", trained on clean images alone, the baseline of Table 3;
        "vanilla", Defense-VAE; and the paper's three objectives.
      classification_weight: alpha of section 2.2.1, in "classification".
      combined_weight: gamma of section 2.2.3, in "combined".
      proximity_weight: alpha of section 2.2.2.
      distance_weight: sigma there.
      between_centres: the distance loss also counts how far centres are from each other, as the
        paper prints it; the published code does not.
      centres_rate: of the centres' gradient descent.
      classification_epochs: of "classification" and "combined", which converge later.
      seed: of everything random.
      train_size: use only so many training images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    classifier: ClassifierConfig = dataclasses.field(default_factory=_classifier)
    mixture: Mixture = dataclasses.field(default_factory=_mixture)
    vae: VAEConfig = dataclasses.field(default_factory=_vae)
    variants: tuple[str, ...] = VARIANTS
    classification_weight: float = 0.01
    combined_weight: float = 0.1
    proximity_weight: float = 0.01
    distance_weight: float = 1e-5
    between_centres: bool = True
    centres_rate: float = 0.5
    classification_epochs: int = 10
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_variants(self.variants, VARIANTS)
        check_compute_dtype(self.compute_dtype)
        for name in ("classification_weight", "combined_weight", "centres_rate"):
            check_number(name, getattr(self, name), above_zero=True)
        for name in ("proximity_weight", "distance_weight"):
            check_number(name, getattr(self, name), above_zero=True)
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; use 0 or more.")
        for name in ("classification_epochs", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")

    def terms(self, variant: str) -> Terms:
        """The objective of a variant."""
        near = Terms(
            proximity=self.proximity_weight,
            distance=self.distance_weight,
            between_centres=self.between_centres,
        )
        return {
            "identity": Terms(identity=True),
            "vanilla": Terms(),
            "classification": Terms(classification=self.classification_weight),
            "proximity_distance": near,
            "combined": dataclasses.replace(near, classification=self.combined_weight),
        }[variant]


def fit(
    config: MADVAEConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
    like: pathlib.Path | None = None,
) -> dict[str, VAEDefense]:
    """Train, or go on training, and save the variants under `folder/defenses/<variant>`.

    Arguments, result and errors as for `defense_vae.fit`.
    """
    stages = begin("mad_vae", config, dataset, folder, mesh, backend, reporter, like)
    undefended = stages.undefended()
    pairs = stages.pairs(undefended)
    found = {}
    for name in config.variants:
        terms = config.terms(name)
        vae = stages.purifier(
            name,
            10 + VARIANTS.index(name),
            terms,
            undefended,
            pairs,
            centres_rate=config.centres_rate,
            epochs=config.classification_epochs if terms.classification else None,
        )["vae"]
        found[name] = {"vae": vae, "classifier": undefended}
    return finish(stages, found, undefended)
