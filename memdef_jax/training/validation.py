"""Looking at a network while it trains, and keeping the best of what was seen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from memdef_jax.checks import InputError

History = Sequence[Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Validation:
    """What `training.train` measures now and then; its result is the best of what was measured.

    Attributes:
      every: updates between measurements; the last update is measured too.
      measure: from variables (those of `TrainState.variables`, on the mesh) to metrics.
      score: which of the metrics is to be high. Of equals the first is kept.
      remark: from the metrics of all measured steps so far, those of the training included, to a
        sentence that the user should read, or None; it is passed on once.
    """

    every: int
    measure: Callable[[Any], Mapping[str, float]]
    score: str
    remark: Callable[[History], str | None] = lambda history: None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every {self.every} is below 1; use 1 or more.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The best variables so far, on the host.

    Attributes:
      step: after which they were measured, int32; 0 before any measurement.
      score: theirs, float32.
      variables: {"params", "batch_stats"}.
    """

    step: Any
    score: Any
    variables: Any

    @classmethod
    def of(cls, step: int, score: float, variables: Any) -> Best:
        """A copy, since the training gives away its buffers."""
        return cls(np.int32(step), np.float32(score), jax.tree.map(np.array, variables))


class Validator:
    """Measures, and remembers the best and the history; all of it is in a checkpoint and its log.

    Args:
      validation: what to do.
      best: of the checkpoint, or of nothing.
      history: the logged metrics up to the checkpoint.
      note: told of remarks.
    """

    def __init__(
        self, validation: Validation, best: Best, history: History, note: Callable[[str], None]
    ) -> None:
        self._validation, self._note, self._said = validation, note, ""
        self._history = [row for row in history if validation.score in row]
        self.best = jax.tree.map(np.asarray, best)

    def look(self, step: int, values: Mapping[str, float], variables: Any) -> dict[str, float]:
        """The step's metrics with the measured ones."""
        found = {**values, **self._validation.measure(variables)}
        score = found[self._validation.score]
        if score > self.best.score:  # never with NaN
            self.best = Best.of(step, score, variables)
        self._history.append({"step": step, **found})
        remark = self._validation.remark(self._history)
        if remark and remark != self._said:
            self._note(remark)
            self._said = remark
        return found


def nothing(variables: Any) -> Best:
    """Before any measurement: the initial variables."""
    return Best.of(0, -math.inf, variables)
