"""What the training of every defense shares: a run's folder, its keys, batches and stages."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from memdef_jax import data
from memdef_jax.nn.precision import ComputeDtype, lowered
from memdef_jax.training import (
    Gathered,
    LossFn,
    Metrics,
    Reporter,
    Stage,
    TrainState,
    Validation,
    make_step,
    process_rows,
    scanned,
    shard,
    train,
)


class Settings(Protocol):
    """What the configuration of every training has; see `Trainer`."""

    @property
    def seed(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def compute_dtype(self) -> ComputeDtype | None: ...


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Runs the stages of one training, each with checkpoints in a folder of its own.

    Attributes:
      split: training images.
      folder: the run's.
      seed: of everything random.
      save_every: steps between checkpoints.
      mesh: devices.
      backend: "shard_map" or "pmap".
      reporter: told of progress.
      compute_dtype: of convolutions and dense layers while they are trained, see `nn.precision`;
        None for float32. What is trained is float32, and what is frozen computes in it.
      scan: many steps at once, see `training.scanned`; None for where it is faster.
    """

    split: data.Split
    folder: pathlib.Path
    seed: int
    save_every: int
    mesh: Mesh
    backend: str
    reporter: Reporter
    compute_dtype: ComputeDtype | None = None
    scan: bool | None = None

    @classmethod
    def configured(
        cls,
        config: Settings,
        split: data.Split,
        folder: pathlib.Path,
        mesh: Mesh,
        backend: str,
        reporter: Reporter,
    ) -> Trainer:
        """With what every configuration of a training says of it."""
        saved, dtype = config.save_every, config.compute_dtype
        return cls(split, folder, config.seed, saved, mesh, backend, reporter, dtype)

    def key(self, purpose: int) -> jax.Array:
        """A typed key of this run for one purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    def run(
        self,
        name: str,
        purpose: int,
        loss_fn: LossFn,
        variables: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        batch: Callable[[int], Any],
        steps: int,
        batch_size: int,
        guard: Callable[[Mapping[str, float]], str | None] | None = None,
        average_decay: float | None = None,
        validation: Validation | None = None,
    ) -> dict[str, Any]:
        """Train one stage, or go on with it.

        Args:
          name: of the stage and its folder.
          purpose: of its random numbers.
          loss_fn: see `training.LossFn`.
          variables: initial, {"params", "batch_stats"}.
          optimizer: of the parameters.
          batch: the host batch of a global step, of this process's `rows` alone.
          steps: updates to do.
          batch_size: images an update.
          guard: see `training.Stage`.
          average_decay: of running means of the variables, None for none.
          validation: what to measure now and then, see `training.Stage`.

        Returns:
          The trained variables: the best validated, else the running means, else the last.
        """
        step = make_step(_computed_in(loss_fn, self.compute_dtype), optimizer, decay=average_decay)
        stage = Stage(
            name=name,
            step=shard(step, self.mesh, self.backend),
            batch=batch,
            total_steps=steps,
            batch_size=batch_size,
            save_every=self.save_every,
            validation=validation,
            scan=scanned(step, batch, self.mesh, self.backend, self.scan),
            **({"guard": guard} if guard else {}),
        )
        state = TrainState.create(variables, optimizer, average=average_decay is not None)
        key = self.key(purpose)
        return train(stage, state, key, self.folder / name, self.mesh, self.reporter).variables

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process makes."""
        return process_rows(batch_size, self.mesh)

    def benign_batches(self, batch_size: int, purpose: int) -> Gathered:
        """Shuffled batches of the training images by global step, this process's rows of them."""
        seed, rows = self.seed * 10 + purpose, self.rows(batch_size)

        def indices(step: int) -> dict[str, np.ndarray]:
            index = data.batch_indices(len(self.split), step, batch_size, seed)[rows]
            return {"image": index, "label": index}

        return Gathered({"image": self.split.images, "label": self.split.labels}, indices)


def _computed_in(loss_fn: LossFn, dtype: ComputeDtype | None) -> LossFn:
    """A loss, and what attacks in it see, with convolutions and dense layers in a dtype."""
    if dtype is None:
        return loss_fn

    def computed(
        params: Any, batch_stats: Any, batch: Any, keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        return loss_fn(lowered(params, dtype), batch_stats, batch, keys)

    return computed
