"""Training of robust classifiers, several variants side by side on the same batches."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.attacks import PGD
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.data import Augmentation, Dataset, Split
from memdef_jax.defenses import store
from memdef_jax.defenses.adversarial_training import (
    AdversarialTraining,
    adversarial_loss,
    check_places,
)
from memdef_jax.defenses.classifier.classifier_defense import ClassifierDefense, ClassifierSpec
from memdef_jax.defenses.classifier.robust_validation import (
    CLEAN,
    ROBUST,
    catastrophic_overfitting,
    robust_accuracy,
)
from memdef_jax.defenses.selector import adam
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.files import write_atomic
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import (
    AXIS,
    Reporter,
    Silent,
    Validation,
    check_batch,
    make_mesh,
)
from memdef_jax.training.metrics import read_metrics
from memdef_jax.training.run import open_run

# By variant its head, and whether it is trained with margins. "benign" is trained on clean images
# alone: what transfer attacks are crafted on.
VARIANTS = {
    "linear": ("linear", False),
    "linear_margin": ("linear", True),
    "memory": ("memory", True),
    "benign": ("linear", False),
}
_VALIDATION_SEED = 0  # the same images whatever the seed of the training


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustClassifierConfig:
    """Adversarially trained classifiers.

    Attributes:
      architecture: one of `nn.CLASSIFIERS`.
      variants: some of "linear"; "memory", with `nn.heads.MemoryHead` and margins; "linear_margin",
        the linear head with the same margins, without which nothing can be said of the memory;
        "benign", trained on clean images.
      training: what they are trained on; its margins are those of the variants that have them.
      epochs: over the training images that are not held out.
      batch_size: global.
      learning_rate: of Adam, the peak with `cosine`.
      cosine: decay the rate to zero; constant otherwise.
      weight_decay: L2 regularisation added to the gradient.
      augmentation: applied to every training image before any attack.
      average_decay: of running means of the weights and of BatchNorm's statistics, which are
        validated and saved in their place (see `training.state.averaged`); None for none.
      validation_size: training images held out, the same for every seed, on which the best weights
        are chosen, by PGD accuracy ("plain" ones by accuracy); 0 to keep the last weights.
      validate_every: epochs between validations.
      validation_steps: of the PGD that validates, with steps of eps/4 from a random start; three
        times as many steps of half of eps over their number go from the image itself, and an image
        is right that withstands both.
      seed: of everything else that is random.
      train_size: use only so many of the remaining images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    architecture: str = "small_cnn"
    variants: tuple[str, ...] = ("linear", "linear_margin", "memory")
    training: AdversarialTraining = dataclasses.field(
        default_factory=lambda: AdversarialTraining(margin=4.5, clean_margin=1.5)
    )
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 2e-3
    cosine: bool = True
    weight_decay: float = 0.0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    average_decay: float | None = None
    validation_size: int = 1000
    validate_every: int = 1
    validation_steps: int = 10
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        if not self.variants or set(self.variants) - set(VARIANTS):
            raise InputError(
                f"variants {self.variants} cannot be trained; use some of {', '.join(VARIANTS)}."
            )
        for name in ("epochs", "batch_size", "validate_every", "validation_steps", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")
        for name in ("validation_size", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} is negative; use 0 or more.")
        check_number("learning_rate", self.learning_rate, above_zero=True)
        check_number("weight_decay", self.weight_decay)
        if self.average_decay is not None and not 0.0 < self.average_decay < 1.0:
            raise InputError(
                f"average_decay {self.average_decay:g} is outside (0, 1); "
                "use a number just below 1, or none."
            )

    def spec(self, variant: str, image_shape: tuple[int, int, int], classes: int) -> ClassifierSpec:
        """The network of a variant for a dataset."""
        return ClassifierSpec(
            image_shape=image_shape,
            classes=classes,
            architecture=self.architecture,
            head=VARIANTS[variant][0],
        )

    def recipe(self, variant: str) -> AdversarialTraining:
        """What a variant is trained on."""
        if variant == "benign":
            return AdversarialTraining(recipe="plain", eps=self.training.eps)
        if VARIANTS[variant][1]:
            return self.training
        return dataclasses.replace(self.training, margin=0.0, clean_margin=0.0)


def fit(
    config: RobustClassifierConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
) -> dict[str, ClassifierDefense]:
    """Train, or go on training, and save the variants under `folder/defenses/<variant>`.

    `folder/training.json` says for each variant what validation found, which step was kept and
    whether it overfitted catastrophically.

    Args:
      config: what to train.
      dataset: only its training split is used, for validation too.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.

    Returns:
      Defenses by variant.

    Raises:
      InputError: before any work, when something does not fit; `TrainingDiverged` later.
    """
    mesh = mesh or make_mesh()
    shape, classes = dataset.info.image_shape, len(dataset.info.class_names)
    specs = {name: config.spec(name, shape, classes) for name in config.variants}
    split, held_out = _splits(config, dataset)
    check_batch(config.batch_size, mesh)
    data.steps_per_epoch(len(split), config.batch_size)
    if config.training.recipe in ("pgd", "fgsm_rs"):
        check_places(config.batch_size, config.training.clean_share, mesh.devices.size)
    describe = store.run_description("classifier", dataset, config, config.variants)
    open_run(folder, describe, _space_needed(specs))
    trainer = Trainer.configured(config, split, folder, mesh, backend, reporter or Silent())
    defenses, record = {}, {}
    for name, spec in specs.items():
        variables = jax.device_get(_train(config, name, spec, trainer, held_out))
        defenses[name] = ClassifierDefense(spec, variables)
        store.save(defenses[name], folder / "defenses" / name)
        record[name] = _outcome(folder / name, _score(config.recipe(name)))
        write_atomic(folder / "training.json", json.dumps(record, indent=1))
    return defenses


def _splits(config: RobustClassifierConfig, dataset: Dataset) -> tuple[Split, Split | None]:
    """Images to train on, and those held out."""
    if not config.validation_size:
        return data.subset(dataset.train, config.train_size), None
    split, held_out = data.validation_split(
        dataset, count=config.validation_size, seed=_VALIDATION_SEED
    )
    return data.subset(split, config.train_size), held_out


def _train(
    config: RobustClassifierConfig,
    variant: str,
    spec: ClassifierSpec,
    trainer: Trainer,
    held_out: Split | None,
) -> dict[str, Any]:
    """The variables that are kept of one variant. All variants draw the same random numbers."""
    recipe = config.recipe(variant)
    per_epoch = data.steps_per_epoch(len(trainer.split), config.batch_size)
    steps = config.epochs * per_epoch
    validation = None
    if held_out is not None:
        attacks = _validating(recipe.eps, config.validation_steps)
        measure = robust_accuracy(spec.module(), attacks, held_out, trainer.key(2), trainer.mesh)
        every = config.validate_every * per_epoch
        validation = Validation(every, measure, _score(recipe), catastrophic_overfitting)
    return trainer.run(
        variant,
        1,
        adversarial_loss(spec.module(AXIS), recipe, config.augmentation),
        spec.init(trainer.key(101)),
        adam(config.learning_rate, steps, config.weight_decay, config.cosine),
        trainer.benign_batches(config.batch_size, 1),
        steps,
        config.batch_size,
        average_decay=config.average_decay,
        validation=validation,
    )


def _validating(eps: float, steps: int) -> tuple[PGD, PGD]:
    """The usual attack, and one that goes from the image itself by small steps.

    A network may resist what is far from the image alone, see docs/findings.md.
    """
    usual = PGD(eps=eps, step_size=eps / 4, steps=steps)
    return usual, PGD(eps=eps, step_size=eps / (2 * steps), steps=3 * steps, random_start=False)


def _score(recipe: AdversarialTraining) -> str:
    """Which validation metric decides what is kept."""
    return CLEAN if recipe.recipe == "plain" else ROBUST


def _outcome(stage: pathlib.Path, score: str) -> dict[str, Any]:
    """What `training.json` says of a variant."""
    rows = read_metrics(stage)
    measured = [row for row in rows if score in row]
    best = max(measured, key=lambda row: row[score], default=rows[-1])
    return {
        "steps": rows[-1]["step"],
        "kept_step": best["step"],
        "catastrophic_overfitting": catastrophic_overfitting(measured),
        "validation": measured,
    }


def _space_needed(specs: dict[str, ClassifierSpec]) -> int:
    """A generous guess in bytes: two checkpoints and the defense of each variant."""
    shapes = [jax.eval_shape(spec.init, jax.random.key(0)) for spec in specs.values()]
    return int(30 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) + 2e8)
