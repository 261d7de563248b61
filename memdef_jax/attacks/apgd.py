"""Auto-PGD: projected gradient ascent with momentum that sets its own step size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.attack import (
    Attack,
    Number,
    check_budget,
    check_count,
    check_restarts,
    static,
)
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State, where

# Section 3 of the paper and its code: shares of `steps` for the first window, what each next one
# is shorter by, and the shortest; what is kept of a step beside momentum.
_FIRST, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06
_KEPT = 0.75


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Walk:
    """Where each sample stands; all [B] or [B, H, W, C]. The best point is in the state."""

    z: jax.Array  # iterate
    previous: jax.Array  # the iterate before
    gradient: jax.Array  # at z
    best_gradient: jax.Array  # at the best point
    best_loss: jax.Array
    loss: jax.Array  # at the last iterate
    size: jax.Array  # of the step
    iteration: jax.Array
    window: jax.Array  # iterations from the last checkpoint to the next
    since: jax.Array  # iterations since the last
    rises: jax.Array  # of the loss, among those
    checked: jax.Array  # best loss at the last checkpoint
    halved: jax.Array  # whether the step was halved there
    target: jax.Array  # class to reach
    reference: jax.Array | None  # clean logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1).

    Steps of 2*eps with momentum, halved at checkpoints where the loss rose too rarely or its best
    value stood still; the search then goes on from the best point. One start costs steps + 1
    gradient passes. `APGD(loss="dlr")` is the APGD-DLR of AutoAttack, `APGD(loss="dlr",
    targets=9)` its APGD-T.

    Attributes:
      eps: radius of the ball in [0, 1] pixels; a number, or one a sample [B].
      norm: "linf" or "l2".
      steps: iterations of a run.
      random_start: start on the surface of the ball (Linf: uniform noise stretched until it
        touches) instead of the clean image.
      restarts: runs in all, or for each target; more than 1 needs the random start.
      loss: what is raised, one of `objectives.LOSSES`.
      targets: 0, or how many classes to aim at in turn, the likeliest first, until the label is
        left; the losses are then the targeted ones of `objectives`, towards each class.
      rho: share of a window in which the loss must rise for the step to stay.
      targeted: labels are targets to be reached.
      early_stop: stop a sample as soon as it fools. Without it the point of highest loss is
        returned, for images that are judged on another model.

    Raises:
      InputError: for an unknown norm or loss, a count that cannot be, restarts without random
        start, or targets together with `targeted`.
    """

    eps: Number
    norm: str = static("linf")
    steps: int = static(100)
    random_start: bool = static(True)
    restarts: int = static(1)
    loss: str = static("cross_entropy")
    targets: int = static(0)
    rho: Number = 0.75
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self.loss, self.targeted or self.targets > 0)
        objectives.check_targets(self.targets, self.targeted)
        check_count("steps", self.steps)
        check_restarts(self.restarts, self.random_start)

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def repeats(self) -> int:
        return self.restarts * max(self.targets, 1)

    @property
    def settles(self) -> bool:
        return self.early_stop

    @property
    def random(self) -> bool:
        return self.random_start

    def check(self) -> None:
        check_budget(self.eps, self.norm)

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        loss, notes = objectives.for_classes(self.loss, classes)
        targets, more = objectives.targets_for_classes(self.targets, classes)
        return (replace(self, loss=loss, targets=targets),), notes + more

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        target, reference, already = y, None, state.success
        if self.early_stop or self._looks_at_clean:
            logits = fn(x)
            state = replace(state.count(1, 0), nan=objectives.has_nan(logits))
            if self.early_stop:
                already = fn.fooled(x, logits, y, self.targeted)
            if self.targets:
                others = objectives.likeliest_others(logits, y)
                target = jnp.take(others, run % self.targets, axis=-1)
            if self._looks_at_clean:
                reference = logits
        z = x
        if self.random_start:
            z = balls.surface_start(x, self.eps, self.norm, keys)
        loss, logits, gradient = self._climb(fn, z, y, target, reference)
        none = state.steps
        own = _Walk(
            z=z,
            previous=z,
            gradient=gradient,
            best_gradient=gradient,
            best_loss=loss,
            loss=loss,
            size=2.0 * self.eps,
            iteration=none,
            window=none + self._share(_FIRST),
            since=none,
            rises=none,
            checked=loss,
            halved=none == none,
            target=target,
            reference=reference,
        )
        hit = fn.fooled(z, logits, y, self.targeted) | already
        return replace(
            state.count(1, 1),
            image=where(already, x, z),
            success=hit,
            score=jnp.where(hit, jnp.inf, loss) if self.early_stop else loss,
            done=hit if self.early_stop else state.done,
            nan=state.nan | objectives.has_nan(logits),
            own=own,
        )

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Walk = state.own
        moved = self._project(own.z + self._step(own), state)
        keep = balls.per_image(jnp.where(own.iteration == 0, 1.0, _KEPT))
        drift = keep * (moved - own.z) + (1.0 - keep) * (own.z - own.previous)
        z = self._project(own.z + drift, state)
        loss, logits, gradient = self._climb(fn, z, state.y, own.target, own.reference)
        hit = fn.fooled(z, logits, state.y, self.targeted)
        better = loss > own.best_loss
        best, best_gradient, best_loss = where(
            better, (z, gradient, loss), (state.image, own.best_gradient, own.best_loss)
        )
        own = replace(
            own,
            z=z,
            previous=own.z,
            gradient=gradient,
            best_gradient=best_gradient,
            best_loss=best_loss,
            loss=loss,
            iteration=own.iteration + 1,
            since=own.since + 1,
            rises=own.rises + (loss > own.loss),
        )
        state = replace(
            state.count(1, 1),
            nan=state.nan | objectives.has_nan(logits),
            steps=state.steps + 1,
            own=self._checkpoint(own, best),
        )
        if not self.early_stop:
            success = jnp.where(better, hit, state.success)
            return replace(state, image=best, score=best_loss, success=success)
        return replace(
            state,
            image=where(hit, z, best),
            success=hit,
            score=jnp.where(hit, jnp.inf, best_loss),
            done=hit,
        )

    @property
    def _looks_at_clean(self) -> bool:
        towards = self.targets > 0 or self.targeted
        return self.targets > 0 or objectives.needs_reference(self.loss, towards)

    def _climb(
        self, fn: LogitsFunction, z: jax.Array, y: jax.Array, target: jax.Array, reference: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Loss [B], logits [B, K] and the loss's gradient."""

        def objective(logits: jax.Array) -> jax.Array:
            if self.targets:
                return objectives.towards(self.loss, logits, y, target)
            return objectives.gain(self.loss, logits, y, self.targeted, reference)

        return objectives.value_and_gradient(fn, z, objective)

    def _step(self, own: _Walk) -> jax.Array:
        return balls.per_image(own.size) * balls.ascent(own.gradient, self.norm)

    def _project(self, z: jax.Array, state: State) -> jax.Array:
        return balls.project(z, state.x, self.eps, self.norm)

    def _share(self, share: float) -> int:
        return max(int(share * self.steps), 1)

    def _checkpoint(self, own: _Walk, best: jax.Array) -> _Walk:
        """At the end of a window: halve the step where it does not help, and go to the best."""
        due = own.since == own.window
        too_few = own.rises <= self.rho * own.window
        stuck = ~own.halved & (own.checked >= own.best_loss)
        halve = due & (too_few | stuck)
        shorter = jnp.maximum(own.window - self._share(_SHORTER), self._share(_SHORTEST))
        z, gradient = where(halve, (best, own.best_gradient), (own.z, own.gradient))
        return replace(
            own,
            z=z,
            gradient=gradient,
            size=jnp.where(halve, own.size / 2, own.size),
            window=jnp.where(due, shorter, own.window),
            since=jnp.where(due, 0, own.since),
            rises=jnp.where(due, 0, own.rises),
            checked=jnp.where(due, own.best_loss, own.checked),
            halved=jnp.where(due, halve, own.halved),
        )
