"""The stages in which both denoisers are trained: classifier, adversarial images, denoiser."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.attacks import FGSM, PGD
from memdef_jax.attacks.attack import Attack, check_number
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Dataset, to_float
from memdef_jax.defenses import store
from memdef_jax.defenses.denoiser.denoiser_defense import DenoiserDefense, DenoiserSpec
from memdef_jax.defenses.examples import adversarial_examples, paired_batches
from memdef_jax.defenses.target import ClassifierConfig, check_settings, train_plain
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.nn import Bound
from memdef_jax.training import AXIS, LossFn, Reporter, Silent, check_batch, make_mesh
from memdef_jax.training.run import open_run

ATTACKS = ("fgsm", "pgd")
# From clean and denoised images to the terms of what is minimised, each [B].
Objective = Callable[[jax.Array, jax.Array], Mapping[str, jax.Array]]
# Batches of pairs by global step, and steps an epoch.
Pairs = tuple[Callable[[int], Mapping[str, Any]], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplesConfig:
    """The adversarial images that a denoiser learns from, made once, on the classifier alone.

    The paper of the feature-map denoiser makes them before training, with both of its attacks, and
    trains on nothing else. Whether on those of one attack or of both it does not say; here one
    denoiser learns from all that are named.

    Attributes:
      attacks: of `ATTACKS`, untargeted; each makes one image of a clean one.
      images: clean images that are attacked, the first ones; None for all.
      eps: Linf in [0, 1].
      pgd_steps: iterations of PGD, from a random start, of size
      pgd_step_size: in [0, 1].
    """

    attacks: tuple[str, ...] = ATTACKS
    images: int | None = None
    eps: float = 0.2
    pgd_steps: int = 100
    pgd_step_size: float = 0.1

    def __post_init__(self) -> None:
        if not self.attacks or set(self.attacks) - set(ATTACKS):
            raise InputError(
                f"attacks {self.attacks} cannot be learned from; use some of {', '.join(ATTACKS)}."
            )
        check_eps(self.eps)
        if self.images is not None and self.images < 1:
            raise InputError(f"images {self.images} is below 1; attack 1 or more, or None for all.")
        for name in self.attacks:
            self.attack(name).check()

    def attack(self, name: str) -> Attack:
        """An attack by name, which goes on when an image has fallen."""
        if name == "fgsm":
            return FGSM(eps=self.eps, early_stop=False)
        return PGD(
            eps=self.eps, step_size=self.pgd_step_size, steps=self.pgd_steps, early_stop=False
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The denoiser and its optimiser; the settings are those of the feature-map denoiser's paper.

    Attributes:
      width: factor of the number of its features.
      epochs: over all adversarial images.
      batch_size: global, in pairs.
      learning_rate: of Adam, constant.
      weight_decay: L2 regularisation added to the gradient.
    """

    width: float = 1.0
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        check_settings(self)
        check_number("width", self.width, above_zero=True)
        check_number("weight_decay", self.weight_decay)


def check_run(variants: tuple[str, ...], known: tuple[str, ...], seed: int, every: int) -> None:
    """Check what both configurations share.

    Raises:
      InputError: for unknown variants or none, a negative seed, or steps between checkpoints
        below 1.
    """
    if not variants or set(variants) - set(known):
        raise InputError(f"variants {variants} cannot be trained; use some of {', '.join(known)}.")
    if seed < 0:
        raise InputError(f"seed {seed} is negative; use 0 or more.")
    if every < 1:
        raise InputError(f"save_every {every} is below 1; use 1 or more.")


def denoising_loss(spec: DenoiserSpec, objective: Objective) -> LossFn:
    """The sum of an objective's terms, for clean images and the denoised attacked ones.

    Returns:
      See `training.LossFn`. Metrics: "loss", and each term.
    """
    module = spec.denoiser(AXIS)

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        variables = {"params": params, "batch_stats": batch_stats}
        denoised, updated = module.apply(
            variables, batch["adversarial"], train=True, mutable=["batch_stats"]
        )
        terms = objective(to_float(batch["image"]), denoised)
        metrics = {name: term.mean() for name, term in terms.items()}
        loss = sum(metrics.values(), start=jnp.float32(0.0))
        return loss, (updated.get("batch_stats", batch_stats), {**metrics, "loss": loss})

    return loss_fn


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of both denoisers.

    Attributes:
      spec: the networks.
      trainer: of the run.
      classifier: how the defended classifier is trained.
      examples: what denoisers learn from.
      denoiser: how they are trained.
    """

    spec: DenoiserSpec
    trainer: Trainer
    classifier: ClassifierConfig
    examples: ExamplesConfig
    denoiser: DenoiserConfig

    def target(self) -> dict[str, Any]:
        """The classifier on plain images; variables on the host."""
        start = self.spec.init_classifier(self.trainer.key(101))
        module = self.spec.target(AXIS)
        return train_plain(self.trainer, "classifier", 1, module, start, self.classifier)

    def pairs(self, target: Any) -> Pairs:
        """The adversarial images against the classifier, made or read, beside their clean ones."""
        trainer, examples = self.trainer, self.examples
        split = data.subset(trainer.split, examples.images)
        made: list[np.ndarray | data.Floats] = []
        for name in examples.attacks:

            def attack(index: np.ndarray, name: str = name) -> Attack:
                return examples.attack(name)

            key = jax.random.fold_in(trainer.key(2), ATTACKS.index(name))
            part = trainer.folder / "examples" / name
            fooled = Bound(self.spec.target(), target)
            found = adversarial_examples(attack, fooled, split, key, part, trainer.reporter)
            made += found[0].parts
        size = self.denoiser.batch_size
        images, rows = data.Joined(tuple(made)), trainer.rows(size)
        batch = paired_batches(images, split, size, trainer.seed * 10 + 4, rows)
        return batch, data.steps_per_epoch(len(images), size)

    def train(
        self,
        name: str,
        purpose: int,
        objective: Objective,
        pairs: Pairs,
        target: Any,
        width: float | None = None,
    ) -> DenoiserDefense:
        """Train a denoiser, and save it with the classifier behind it as a variant of the run.

        Args:
          name: of the stage and the variant.
          purpose: of its random numbers.
          objective: what is minimised.
          pairs: see `Stages.pairs`.
          target: variables of the classifier.
          width: of the denoiser, the configuration's for None.
        """
        trainer, config, (batch, per_epoch) = self.trainer, self.denoiser, pairs
        spec = dataclasses.replace(self.spec, width=width or config.width)
        decay = optax.add_decayed_weights(config.weight_decay)
        found = trainer.run(
            name,
            purpose,
            denoising_loss(spec, objective),
            spec.init_denoiser(trainer.key(purpose + 100)),
            optax.chain(decay, optax.adam(config.learning_rate)),
            batch,
            config.epochs * per_epoch,
            config.batch_size,
        )
        defense = DenoiserDefense(spec, {"classifier": target, "denoiser": jax.device_get(found)})
        store.save(defense, trainer.folder / "defenses" / name)
        return defense


def begin(
    kind: str,
    config: Any,
    dataset: Dataset,
    folder: pathlib.Path,
    mesh: Mesh | None,
    backend: str,
    reporter: Reporter | None,
    description: Callable[[dict[str, Any]], dict[str, Any]] = lambda described: described,
) -> Stages:
    """Open a run's folder for a classifier and its denoisers.

    Args:
      kind: of the defense.
      config: its configuration.
      dataset: as for `fit`, like the following four.
      folder: the run's.
      mesh: devices.
      backend: "shard_map" or "pmap".
      reporter: told of progress.
      description: what to change in the description of the run.

    Raises:
      InputError: when something does not fit.
    """
    mesh = mesh or make_mesh()
    spec = DenoiserSpec(
        image_shape=dataset.info.image_shape,
        classes=len(dataset.info.class_names),
        classifier=config.classifier.architecture,
        width=config.denoiser.width,
        kind=kind,
    )
    split = data.subset(dataset.train, config.train_size)
    attacked = data.subset(split, config.examples.images)
    attacks = len(config.examples.attacks)
    for size, images in (
        (config.classifier.batch_size, len(split)),
        (config.denoiser.batch_size, attacks * len(attacked)),
    ):
        check_batch(size, mesh)
        data.steps_per_epoch(images, size)
    described = description(store.run_description(kind, dataset, config, config.variants))
    open_run(folder, described, attacks * 4 * attacked.images.size + 400_000_000)
    trainer = Trainer.configured(config, split, folder, mesh, backend, reporter or Silent())
    return Stages(spec, trainer, config.classifier, config.examples, config.denoiser)
