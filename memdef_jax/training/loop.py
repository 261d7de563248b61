"""The training loop: feeds a step, watches its metrics, saves, and can be killed at any moment."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from memdef_jax.checks import InputError
from memdef_jax.training import checkpoints
from memdef_jax.training.metrics import MetricsLog
from memdef_jax.training.state import Step, TrainState, check_batch, put_batch, replicate


class TrainingDiverged(InputError):
    """A loss term or the gradient is NaN or infinite, or a guard stopped the training."""


class Reporter(Protocol):
    """How long work tells its caller what it does; `memdef_jax.console` has one for terminals."""

    def start(self, stage: str, done: int, total: int, items_per_step: int) -> None:
        """A stage of `total` steps begins, `done` of which an earlier run has made."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """So many steps are done."""

    def note(self, text: str) -> None:
        """Something happened that the user should read."""


class Silent:
    """A reporter that keeps quiet."""

    def start(self, stage: str, done: int, total: int, items_per_step: int) -> None:
        """Ignore it."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
      name: shown to the user, and the folder of its metrics and checkpoints.
      step: from `training.shard`.
      batch: the host batch of a global step, a pure function of it so that a resumed run sees
        the same data.
      total_steps: updates to do.
      batch_size: images an update, for the throughput.
      save_every: updates between checkpoints.
      guard: looks at the metrics of a step and returns a sentence that stops the training, or None.
    """

    name: str
    step: Step
    batch: Callable[[int], Any]
    total_steps: int
    batch_size: int
    save_every: int
    guard: Callable[[Mapping[str, float]], str | None] = lambda metrics: None

    def __post_init__(self) -> None:
        for name in ("total_steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")


def train(
    stage: Stage,
    state: TrainState,
    key: jax.Array,
    folder: pathlib.Path,
    mesh: Mesh,
    reporter: Reporter | None = None,
) -> TrainState:
    """Train until `stage.total_steps`, from the newest good checkpoint in `folder` if there is one.

    The metrics of a step are looked at after the next step is dispatched, so the device never waits
    for the host; before a checkpoint they are all looked at, so no diverged state is ever saved.

    Args:
      stage: what to do.
      state: the initial state, replaced by the checkpoint's where there is one.
      key: typed key; the randomness of step s is folded from it and s.
      folder: for `checkpoints/`, `metrics.jsonl` and TensorBoard's files.
      mesh: devices to use.
      reporter: told of progress.

    Returns:
      The final state.

    Raises:
      TrainingDiverged: when a metric is not finite or the guard objects; names the step, the term
        and the last good checkpoint, which is kept.
      InputError: when the batch does not split over the mesh, a checkpoint is of another model, or
        the folder cannot be written.
    """
    check_batch(stage.batch_size, mesh)
    reporter = reporter or Silent()
    store = folder / "checkpoints"
    restored = checkpoints.restore_latest(store, state)
    for text in restored.notes:
        reporter.note(f"{stage.name}: {text}")
    if restored.notes and restored.step is None:
        reporter.note(f"{stage.name}: no checkpoint is left, so the training starts anew.")
    state = replicate(restored.tree if restored.step is not None else state, mesh)
    first = restored.step or 0
    reporter.start(stage.name, first, stage.total_steps, stage.batch_size)
    saved = restored.step

    def look(step: int, metrics: Mapping[str, jax.Array], log: MetricsLog) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        kept = "none was saved yet" if saved is None else f"that of step {saved} is kept"
        if bad:
            raise TrainingDiverged(
                f"{stage.name}: {bad[0]} is {values[bad[0]]} at step {step}; "
                f"last good checkpoint: {kept}; lower the learning rate or check the data."
            )
        problem = stage.guard(values)
        if problem:
            raise TrainingDiverged(
                f"{stage.name}, step {step}: {problem} Last good checkpoint: {kept}."
            )
        log.write(step, values)
        reporter.update(step, values)

    with MetricsLog(folder, first) as log:
        pending: tuple[int, Mapping[str, jax.Array]] | None = None
        for done in range(first + 1, stage.total_steps + 1):
            batch = put_batch(stage.batch(done - 1), mesh)
            state, metrics = stage.step(state, batch, key)
            if pending:
                look(*pending, log)
            pending = (done, metrics)
            if done % stage.save_every == 0 or done == stage.total_steps:
                look(*pending, log)
                pending = None
                log.flush()
                checkpoints.save(store, done, state)
                saved = done
    return state
