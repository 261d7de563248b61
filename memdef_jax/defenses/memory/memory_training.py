"""Training of a whole Memory Defense: classifier-A, its adversarial examples, then the stack."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import store
from memdef_jax.defenses.adversarial_training import check_places
from memdef_jax.defenses.classifier.classifier_defense import ClassifierDefense
from memdef_jax.defenses.examples import adversarial_examples, mixed_batches
from memdef_jax.defenses.memory.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.memory.stack import StackConfig, empty_slot, stack_loss
from memdef_jax.defenses.selector import SelectorConfig, adam, selector_loss
from memdef_jax.defenses.sharing import take_over
from memdef_jax.defenses.store import run_description
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.nn import Bound
from memdef_jax.nn.precision import ComputeDtype, check_compute_dtype
from memdef_jax.training import AXIS, Reporter, Silent, check_batch, make_mesh
from memdef_jax.training.run import open_run, read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryDefenseConfig:
    """A whole Memory Defense.

    Attributes:
      selector: classifier-A.
      stack: encoder, memory, decoder and classifier-B.
      seed: of everything random.
      train_size: use only so many training images, see `data.subset`; None for all.
      save_every: steps between checkpoints.
      compute_dtype: of convolutions and dense layers in training, see `nn.precision`; None for
        float32.
    """

    selector: SelectorConfig = dataclasses.field(default_factory=SelectorConfig)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)
    seed: int = 0
    train_size: int | None = None
    save_every: int = 500
    compute_dtype: ComputeDtype | None = None

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; use 0 or more.")
        if self.save_every < 1:
            raise InputError(f"save_every {self.save_every} is below 1; use 1 or more.")

    def spec(self, image_shape: tuple[int, int, int], classes: int) -> MemoryDefenseSpec:
        """The networks for a dataset.

        Raises:
          InputError: when they do not fit it.
        """
        return MemoryDefenseSpec(
            image_shape=image_shape,
            classes=classes,
            selector=self.selector.architecture,
            memory_rows=self.stack.memory_rows,
            shrink_threshold=self.stack.shrink_threshold,
            shrink_order=self.stack.shrink_order,
            softmax_scale=self.stack.softmax_scale,
        )


def fit(
    config: MemoryDefenseConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
    like: pathlib.Path | None = None,
) -> dict[str, MemoryDefense]:
    """Train, or go on training, and save the defenses under `folder/defenses/<selector>`.

    The stack does not depend on the selector (it is masked by the true labels), so one training
    gives two defenses: one with the benign classifier-A, one with the adversarially trained.

    Args:
      config: what to train.
      dataset: only its training split is used.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.
      like: folder of a run, see `sharing.take_over`.

    Returns:
      Defenses by their selector: "benign", and "offline", "in_loop" or "trained" where that is the
      recipe.

    Raises:
      InputError: before any work, when something does not fit; `TrainingDiverged` later.
    """
    mesh = mesh or make_mesh()
    reporter = reporter or Silent()
    spec = config.spec(dataset.info.image_shape, len(dataset.info.class_names))
    trained = _trained_classifier(config.selector, dataset)
    if trained:
        spec = dataclasses.replace(spec, selector=trained.spec.architecture, head=trained.spec.head)
    split = data.subset(dataset.train, config.train_size)
    for size in {config.selector.batch_size, config.stack.batch_size}:
        check_batch(size, mesh)
        data.steps_per_epoch(len(split), size)
    if config.selector.recipe == "in_loop":
        check_places(config.selector.batch_size, config.selector.clean_share, mesh.devices.size)
    names = tuple(dict.fromkeys(("benign", config.selector.recipe)))
    describe = run_description("memory_defense", dataset, config, names)
    open_run(folder, describe, _space_needed(config, spec, split))
    if like:
        take_over(like, folder, reporter)
    trainer = Trainer.configured(config, split, folder, mesh, backend, reporter)
    training = _Training(config, spec, trainer)
    selectors = {"benign": training.benign_selector()}
    if config.selector.recipe == "offline":
        selectors["offline"] = training.offline_selector(selectors["benign"])
    elif config.selector.recipe == "in_loop":
        selectors["in_loop"] = training.in_loop_selector()
    elif trained:
        selectors["trained"] = trained.variables
    stack = training.stack()
    defenses = {}
    for name, variables in selectors.items():
        host = jax.device_get({"selector": variables, "stack": stack})
        defenses[name] = MemoryDefense(spec, host)
        store.save(defenses[name], folder / "defenses" / name)
    return defenses


@dataclasses.dataclass(frozen=True)
class _Training:
    config: MemoryDefenseConfig
    spec: MemoryDefenseSpec
    trainer: Trainer

    def _selector(
        self, name: str, purpose: int, epochs: int, in_loop: bool = False
    ) -> dict[str, Any]:
        settings = self.config.selector
        module = self.spec.classifier_a(AXIS)
        steps = epochs * data.steps_per_epoch(len(self.trainer.split), settings.batch_size)
        return self.trainer.run(
            name,
            purpose,
            selector_loss(module, settings, in_loop),
            self.spec.init_selector(self.trainer.key(purpose + 100)),
            adam(settings.learning_rate, steps, settings.weight_decay),
            self.trainer.benign_batches(settings.batch_size, purpose),
            steps,
            settings.batch_size,
        )

    def benign_selector(self) -> dict[str, Any]:
        return self._selector("selector_benign", 1, self.config.selector.benign_epochs)

    def in_loop_selector(self) -> dict[str, Any]:
        return self._selector("selector_in_loop", 2, self.config.selector.epochs, in_loop=True)

    def offline_selector(self, benign: dict[str, Any]) -> dict[str, Any]:
        settings, trainer = self.config.selector, self.trainer
        module = self.spec.classifier_a()
        images, success = adversarial_examples(
            lambda index: settings.attack,
            Bound(module, jax.device_get(benign)),
            trainer.split,
            trainer.key(3),
            trainer.folder / "examples",
            trainer.reporter,
        )
        chosen = np.flatnonzero(success) if settings.successful_only else np.arange(len(images))
        half = settings.batch_size // 2
        if len(chosen) < half:
            raise InputError(
                f"batch size {settings.batch_size} cannot be half adversarial with "
                f"{len(chosen)} examples that fool the benign classifier; "
                "use a smaller one, a larger eps, or successful_only=False."
            )
        seeds = (trainer.seed * 10 + 5, trainer.seed * 10 + 4)
        rows = trainer.rows(settings.batch_size)
        trained = self.spec.classifier_a(AXIS)
        fresh = self.spec.init_selector(trainer.key(103))
        steps = settings.epochs * data.steps_per_epoch(len(trainer.split), half)
        return trainer.run(
            "selector_offline",
            5,
            selector_loss(trained, settings, in_loop=False),
            jax.device_get(benign) if settings.warm_start else fresh,
            adam(settings.learning_rate, steps, settings.weight_decay),
            mixed_batches(trainer.split, images, chosen, settings.batch_size, seeds, rows),
            steps,
            settings.batch_size,
        )

    def stack(self) -> dict[str, Any]:
        settings = self.config.stack
        steps = settings.epochs * data.steps_per_epoch(len(self.trainer.split), settings.batch_size)
        return self.trainer.run(
            "stack",
            6,
            stack_loss(self.spec, settings),
            self.spec.init_stack(self.trainer.key(106)),
            adam(settings.learning_rate, steps, settings.weight_decay, settings.cosine),
            self.trainer.benign_batches(settings.batch_size, 6),
            steps,
            settings.batch_size,
            empty_slot(self.spec.shrink_threshold),
        )


def _trained_classifier(config: SelectorConfig, dataset: Dataset) -> ClassifierDefense | None:
    """The classifier that the recipe "trained" takes, of this dataset; None for other recipes."""
    if config.trained is None:
        return None
    folder = pathlib.Path(config.trained)
    found = store.load(folder)
    if not isinstance(found, ClassifierDefense):
        raise InputError(
            f"{folder} holds a {found.kind}, which is no classifier; "
            "give one that train.classifier has trained."
        )
    run = read_run(folder.parents[1])
    if run["fingerprint"] != dataset.info.fingerprint:
        raise InputError(
            f"{folder} was trained on {run['dataset']} with fingerprint {run['fingerprint'][:12]} "
            f"and this {dataset.info.name} has {dataset.info.fingerprint[:12]}; "
            "give a classifier of the same data."
        )
    return found


def _space_needed(config: MemoryDefenseConfig, spec: MemoryDefenseSpec, split: data.Split) -> int:
    """A generous guess in bytes: checkpoints, defenses, and stored examples."""
    selector = jax.tree.leaves(jax.eval_shape(spec.init_selector, jax.random.key(0)))
    checkpoints = 12 * sum(leaf.size * leaf.dtype.itemsize for leaf in selector) + 2.2e8
    examples = 4 * split.images.size if config.selector.recipe == "offline" else 0
    return int(checkpoints + examples)
