"""The training loop: feeds a step, watches its metrics, saves, and can be killed at any moment."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from memdef_jax import processes
from memdef_jax.checks import InputError
from memdef_jax.preemption import Preempted, saving_first
from memdef_jax.training import checkpoints
from memdef_jax.training.metrics import MetricsLog, open_metrics, read_metrics
from memdef_jax.training.resident import Scan
from memdef_jax.training.state import Metrics, Step, TrainState, check_batch, replicate, step_batch
from memdef_jax.training.validation import Validation, Validator, nothing


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
        the same data; of several processes each gives its `process_rows` alone.
      total_steps: updates to do.
      batch_size: images an update, for the throughput.
      save_every: updates between checkpoints.
      guard: looks at the metrics of a step and returns a sentence that stops the training, or None.
      validation: what to measure now and then, to keep the best; None to keep the last.
      scan: many steps at once, of the same batches, taken where neither a checkpoint nor a
        validation comes between; None to go step by step.
    """

    name: str
    step: Step
    batch: Callable[[int], Any]
    total_steps: int
    batch_size: int
    save_every: int
    guard: Callable[[Mapping[str, float]], str | None] = lambda metrics: None
    validation: Validation | None = None
    scan: Scan | None = None

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
    for the host (with a `scan`: after its next steps are); before a checkpoint they are all looked
    at, so no diverged state is ever saved.
    What validation measures is logged with the metrics of its step, and the best it has seen is
    part of every checkpoint.

    Several processes train together when each calls this. The first logs and saves; they stop
    together at the same step, also when only one of them is asked to.

    Args:
      stage: what to do.
      state: the initial state, replaced by the checkpoint's where there is one.
      key: typed key; the randomness of step s is folded from it and s.
      folder: for `checkpoints/`, `metrics.jsonl` and TensorBoard's files.
      mesh: devices to use.
      reporter: told of progress.

    Returns:
      The final state; with a validation its `best`, and so its `variables`, are the best ones.

    Raises:
      TrainingDiverged: when a metric is not finite or the guard objects; names the step, the term
        and the last good checkpoint, which is kept.
      InputError: when the batch does not split over the mesh, a checkpoint is of another model, or
        the folder cannot be written.
      Preempted: on SIGTERM, where the program listens to it, after a checkpoint of the step.
    """
    check_batch(stage.batch_size, mesh)
    reporter = reporter or Silent()
    if stage.validation:
        state = dataclasses.replace(state, best=nothing(state.variables))
    saved, state = _restored(stage, state, folder / "checkpoints", reporter)
    best, state = state.best, replicate(dataclasses.replace(state, best=None), mesh)
    key = replicate(key, mesh)
    first = saved or 0
    reporter.start(stage.name, first, stage.total_steps, stage.batch_size)
    validator = None
    with open_metrics(folder, first) as log, saving_first() as asked_to_stop:
        if stage.validation:
            history = processes.by_one(lambda: read_metrics(folder))
            validator = Validator(stage.validation, best, history, reporter.note)
        pending: tuple[int, Metrics] | None = None
        done = first

        def tell(step: int, values: Mapping[str, float]) -> None:
            log.write(step, values)
            reporter.update(step, values)

        while done < stage.total_steps:
            count, state, metrics = _advanced(stage, state, done, key, mesh)
            if pending:
                for step, values in _checked(stage, *pending, saved):
                    tell(step, values)
            done += count
            pending = (done, metrics)
            validates, saves = _due(stage, done)
            stops = processes.stops(asked_to_stop(), done)
            if validates or saves or stops:
                for step, values in _checked(stage, *pending, saved):
                    if validator and validates and step == done:
                        values = validator.look(done, values, state.variables)
                    tell(step, values)
                pending = None
            if saves or stops:
                kept = dataclasses.replace(state, best=validator and validator.best)
                _save(log, folder / "checkpoints", done, kept)
                saved = done
            # After the last step all have met to save, so each knows of the others' requests.
            if stops or (done == stage.total_steps and processes.stop_was_asked()):
                raise Preempted(f"{stage.name}: stopped by SIGTERM at step {done}; saved")
    return dataclasses.replace(state, best=validator and validator.best)


def _advanced(
    stage: Stage, state: TrainState, done: int, key: jax.Array, mesh: Mesh
) -> tuple[int, TrainState, Metrics]:
    """How many steps follow at once, the state after them and their metrics."""
    scan = stage.scan
    if scan and not any(any(_due(stage, done + more)) for more in range(1, scan.length)):
        return scan.length, *scan(state, done, key)
    return 1, *stage.step(state, step_batch(stage.batch(done), mesh), key)


def _save(log: MetricsLog, store: pathlib.Path, step: int, state: TrainState) -> None:
    """By the first process, while the others wait: none is ahead of what is on the disk."""
    parts = jax.device_get(state.parts)

    def save() -> None:
        log.flush()
        checkpoints.save(store, step, parts)

    processes.by_one(save)


def _due(stage: Stage, step: int) -> tuple[bool, bool]:
    """Whether a step is followed by validation, and by a checkpoint."""
    last = step == stage.total_steps
    validates = stage.validation is not None and (last or step % stage.validation.every == 0)
    return validates, last or step % stage.save_every == 0


def _restored(
    stage: Stage, state: TrainState, store: pathlib.Path, reporter: Reporter
) -> tuple[int | None, TrainState]:
    """The newest good checkpoint's step and state; None and the given state without one."""
    restored = checkpoints.restore_latest(store, state.parts)
    for text in restored.notes:
        reporter.note(f"{stage.name}: {text}")
    processes.agree(f"the newest checkpoint in {store}", restored.step)
    if restored.step is not None:
        return restored.step, TrainState(**restored.tree)
    if restored.notes:
        reporter.note(f"{stage.name}: no checkpoint is left, so the training starts anew.")
    return None, state


def _checked(
    stage: Stage, last: int, metrics: Metrics, saved: int | None
) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps up to the last one with their metrics as numbers, finite and to the guard's liking."""
    found = {name: np.atleast_1d(value) for name, value in jax.device_get(dict(metrics)).items()}
    count = max(map(len, found.values()), default=1)
    kept = "none was saved yet" if saved is None else f"that of step {saved} is kept"
    for place in range(count):
        step = last - count + 1 + place
        values = {name: float(value[place]) for name, value in found.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
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
        yield step, values
