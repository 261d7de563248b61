"""Defense-VAE (arXiv 1812.06570): training of the purifier and of its variants."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import store
from memdef_jax.defenses.sharing import take_over
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.defenses.vae.pairs import Mixture
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.defenses.vae.vae_losses import Terms, VAEConfig, reading_loss
from memdef_jax.defenses.vae.vae_training import ClassifierConfig, Pairs, Stages
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import Reporter, Silent, check_batch, make_mesh
from memdef_jax.training.run import open_run

VARIANTS = ("vae", "rec", "e2e", "e2e_scratch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseVAEConfig:
    """A whole Defense-VAE.

    Attributes:
      classifier: what is defended.
      mixture: the attacks that the purifier learns to undo.
      vae: the purifier.
      variants: of `VARIANTS`: "vae", the purifier before the classifier as it is; "rec", before one
        trained on purified images; "e2e", both trained on from there together; "e2e_scratch", both
        trained together from the beginning.
      end_to_end_weight: lambda of Equation 5, which the paper does not give.
      end_to_end_epochs: of "e2e".
      seed: of everything random.
      train_size: use only so many training images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    mixture: Mixture = dataclasses.field(default_factory=Mixture)
    vae: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    variants: tuple[str, ...] = VARIANTS
    end_to_end_weight: float = 1.0
    end_to_end_epochs: int = 5
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_variants(self.variants, VARIANTS)
        check_compute_dtype(self.compute_dtype)
        check_number("end_to_end_weight", self.end_to_end_weight, above_zero=True)
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; use 0 or more.")
        for name in ("end_to_end_epochs", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")


def check_variants(given: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Check that variants are some of those known.

    Raises:
      InputError: if not.
    """
    if not given or set(given) - set(known):
        raise InputError(f"variants {given} cannot be trained; use some of {', '.join(known)}.")


def fit(
    config: DefenseVAEConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
    like: pathlib.Path | None = None,
) -> dict[str, VAEDefense]:
    """Train, or go on training, and save the variants under `folder/defenses/<variant>`.

    Args:
      config: what to train.
      dataset: only its training split is used.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.
      like: folder of a run, see `sharing.take_over`.

    Returns:
      Defenses by variant.

    Raises:
      InputError: before any work, when something does not fit; `TrainingDiverged` later.
    """
    stages = begin("defense_vae", config, dataset, folder, mesh, backend, reporter, like)
    undefended = stages.undefended()
    pairs = stages.pairs(undefended)
    found: dict[str, dict[str, Any]] = {}
    if set(config.variants) & {"vae", "rec", "e2e"}:
        vae = stages.purifier("vae", 4, Terms(), undefended, pairs)["vae"]
        found["vae"] = {"vae": vae, "classifier": undefended}
    if set(config.variants) & {"rec", "e2e"}:
        found["rec"] = {"vae": vae, "classifier": _reader(stages, undefended, vae, pairs)}
    together = Terms(classification=config.end_to_end_weight, trained=True)
    if "e2e" in config.variants:
        found["e2e"] = stages.purifier(
            "e2e", 6, together, undefended, pairs, found["rec"], epochs=config.end_to_end_epochs
        )
    if "e2e_scratch" in config.variants:
        found["e2e_scratch"] = stages.purifier("e2e_scratch", 7, together, undefended, pairs)
    chosen = {name: found[name] for name in config.variants}
    return finish(stages, chosen, undefended)


def begin(
    kind: str,
    config: Any,
    dataset: Dataset,
    folder: pathlib.Path,
    mesh: Mesh | None,
    backend: str,
    reporter: Reporter | None,
    like: pathlib.Path | None,
) -> Stages:
    """Open a run's folder for a defense of one classifier and a VAE; `config` as for `fit`."""
    mesh = mesh or make_mesh()
    spec = VAEDefenseSpec(
        image_shape=dataset.info.image_shape,
        classes=len(dataset.info.class_names),
        classifier=config.classifier.architecture,
        latent_size=config.vae.latent_size,
        kind=kind,
    )
    split = data.subset(dataset.train, config.train_size)
    for size in (config.classifier.batch_size, config.vae.batch_size):
        check_batch(size, mesh)
        data.steps_per_epoch(len(split), size)
    attacked = data.subset(split, config.mixture.images)
    stored = 0 if config.mixture.streamed else config.mixture.per_image * 4 * attacked.images.size
    describe = store.run_description(kind, dataset, config, config.variants)
    open_run(folder, describe, stored + 400_000_000)
    reporter = reporter or Silent()
    if like:
        take_over(like, folder, reporter)
    trainer = Trainer.configured(config, split, folder, mesh, backend, reporter)
    return Stages(spec, trainer, config.classifier, config.vae, config.mixture)


def finish(
    stages: Stages, found: dict[str, dict[str, Any]], undefended: dict[str, Any]
) -> dict[str, VAEDefense]:
    """Save what was trained, by variant its "vae" and "classifier"."""
    defenses = {}
    for name, parts in found.items():
        defenses[name] = VAEDefense(stages.spec, {"undefended": undefended, **parts})
        store.save(defenses[name], stages.trainer.folder / "defenses" / name)
    return defenses


def _reader(
    stages: Stages, undefended: dict[str, Any], vae: dict[str, Any], pairs: Pairs
) -> dict[str, Any]:
    """The classifier trained anew on purified images (Defense-VAE-REC)."""
    trainer, config = stages.trainer, stages.classifier
    batch, per_epoch = pairs(config.batch_size)
    found = trainer.run(
        "rec",
        5,
        reading_loss(stages.spec, stages.mixture, undefended, vae),
        stages.spec.init_classifier(trainer.key(105)),
        optax.adam(config.learning_rate),
        batch,
        config.epochs * per_epoch,
        config.batch_size,
    )
    return jax.device_get(found)
