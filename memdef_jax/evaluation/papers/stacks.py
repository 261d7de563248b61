"""Stacks that differ in their settings alone, over shared classifiers-A.

The stack is trained without classifier-A, so any number of them can share one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from functools import partial

import jax
import numpy as np

from memdef_jax import data, processes
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import (
    MemoryDefense,
    MemoryDefenseConfig,
    PlainDefense,
    SelectorConfig,
    StackConfig,
    fit,
    preset,
)
from memdef_jax.defenses.selector import Recipe, adam, selector_loss
from memdef_jax.defenses.sharing import SELECTORS, copy_parts
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.evaluation.papers.tables import TARGET
from memdef_jax.nn import Bound, ClassifierB
from memdef_jax.training import Reporter, Silent, TrainingDiverged, make_mesh
from memdef_jax.training.run import open_run, read_run


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of several stacks over the same classifiers-A.

    Attributes:
      name: of its folder.
      folder: its run's.
      config: what it was trained with.
      defenses: by selector; empty if the training had to stop.
      stopped: why it had to.
    """

    name: str
    folder: pathlib.Path
    config: MemoryDefenseConfig
    defenses: Mapping[str, MemoryDefense]
    stopped: str | None = None

    @property
    def deployed(self) -> MemoryDefense:
        """The defense with the selector of the configured recipe."""
        return self.defenses[self.config.selector.recipe]


def study_config(
    dataset: Dataset, recipe: Recipe, train_size: int | None = None, epochs: int | None = None
) -> MemoryDefenseConfig:
    """The quick preset for a part of the training images.

    Args:
      dataset: what is trained on.
      recipe: of the shared classifier-A.
      train_size: first training images, all for None; the preset adds epochs where they are few.
      epochs: of every training, the preset's for None.

    Raises:
      InputError: when the images have no architecture, or an argument is out of range.
    """
    size = len(dataset.train) if train_size is None else train_size
    if size < 1:
        raise InputError(f"train_size {size} is below 1; use 1 or more.")
    config = preset("quick", dataset.info.image_shape, size)
    selector, stack = dataclasses.replace(config.selector, recipe=recipe), config.stack
    if epochs is not None:
        selector = dataclasses.replace(selector, benign_epochs=epochs, epochs=epochs)
        stack = dataclasses.replace(stack, epochs=epochs)
    return dataclasses.replace(config, selector=selector, stack=stack, train_size=train_size)


def fit_variants(
    config: MemoryDefenseConfig,
    stacks: Mapping[str, StackConfig],
    dataset: Dataset,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> Iterator[Variant]:
    """Train stacks over shared classifiers-A, each in a run's folder of its own, or go on.

    The first is trained whole; the others begin with its classifiers-A. Each folder ends as `fit`
    alone would have left it, so every program takes it.

    Args:
      config: of all but the stack.
      stacks: by the name of the variant.
      dataset: its training split.
      folder: of the variants' folders.
      reporter: told of progress.

    Yields:
      Each as it is trained; a training that diverges or loses its memory rows is told as such.

    Raises:
      InputError: before any work, when a configuration does not fit the dataset.
    """
    shape, classes = dataset.info.image_shape, len(dataset.info.class_names)
    configs = {n: dataclasses.replace(config, stack=stack) for n, stack in stacks.items()}
    for own in configs.values():
        own.spec(shape, classes)
    first: pathlib.Path | None = None
    for name, own in configs.items():
        if first is not None:
            open_run(folder / name, {**read_run(first), "config": dataclasses.asdict(own)})
            processes.by_one(partial(copy_parts, first, folder / name, SELECTORS))
        first = first or folder / name
        try:
            trained = fit(own, dataset, folder / name, reporter=reporter)
        except TrainingDiverged as stopped:
            yield Variant(name, folder / name, own, {}, str(stopped))
        else:
            yield Variant(name, folder / name, own, trained)


def fit_target(
    config: MemoryDefenseConfig,
    dataset: Dataset,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> PlainDefense:
    """Train classifier-B on plain images, or go on: the target classifier alone of Table 5.

    With the stack's epochs, rate, batches and augmentation, without dropout and noise.

    Raises:
      InputError: when something does not fit.
    """
    shape, settings = dataset.info.image_shape, config.stack
    module, split = (
        ClassifierB(len(dataset.info.class_names), dropout_rate=0.0),
        data.subset(dataset.train, config.train_size),
    )
    trainer = Trainer.configured(
        config, split, folder, make_mesh(), "shard_map", reporter or Silent()
    )
    start = jax.jit(module.init)(trainer.key(1), np.zeros((1, *shape), np.float32))
    info = {"dataset": dataset.info.name, "fingerprint": dataset.info.fingerprint}
    described = {"kind": TARGET, **info, "config": dataclasses.asdict(config), "stages": [TARGET]}
    open_run(folder, described)
    steps = settings.epochs * data.steps_per_epoch(len(split), settings.batch_size)
    trained = trainer.run(
        TARGET,
        0,
        selector_loss(module, SelectorConfig(augmentation=settings.augmentation), in_loop=False),
        {"params": start["params"], "batch_stats": {}},
        adam(settings.learning_rate, steps, settings.weight_decay, settings.cosine),
        trainer.benign_batches(settings.batch_size, 0),
        steps,
        settings.batch_size,
    )
    bound = Bound(module, jax.device_get({"params": trained["params"]}))
    return PlainDefense.of(bound, shape, undefended=bound)
