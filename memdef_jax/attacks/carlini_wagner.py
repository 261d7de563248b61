"""The Carlini & Wagner L2 attack, its binary search and its Adam in one flat state machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import objectives, tanh_descent
from memdef_jax.attacks.attack import Attack, Number, check_count, check_number, static
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.minimum_norm import keep_nearest
from memdef_jax.attacks.state import State, where

_NO_BOUND = 1e10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Search:
    """Where each sample stands in its search for c and in Adam; all [B] or [B, H, W, C]."""

    descent: tanh_descent.Descent  # its iteration is that within the search step
    search: jax.Array  # search steps completed
    c: jax.Array
    lower: jax.Array  # largest c that failed
    upper: jax.Array  # smallest c that succeeded
    found: jax.Array  # success within this search step


class CarliniWagner(Attack):
    """What both share: settings and their checks, and when an image is fooled enough."""

    search_steps: int
    steps: int
    learning_rate: Number
    initial_const: Number
    confidence: Number

    def __post_init__(self) -> None:
        check_count("search_steps", self.search_steps)
        check_count("steps", self.steps)

    @property
    def num_steps(self) -> int:
        return self.search_steps * self.steps

    def check(self) -> None:
        check_number("learning_rate", self.learning_rate, above_zero=True)
        check_number("initial_const", self.initial_const, above_zero=True)
        check_number("confidence", self.confidence)

    def _succeeds(
        self, fn: LogitsFunction, image: jax.Array, logits: jax.Array, y: jax.Array
    ) -> jax.Array:
        sure = objectives.gain("margin", logits, y, self.targeted) >= self.confidence
        return sure & fn.fooled(image, logits, y, self.targeted)

    def _shortfall(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        """By how much the asked confidence is missed, [B]."""
        gap = objectives.gain("margin", logits, y, self.targeted)
        return jnp.maximum(self.confidence - gap, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(CarliniWagner):
    """Smallest L2 perturbation that fools (Carlini & Wagner 2017, arXiv 1608.04644, section VI-A).

    Minimises ||x' - x||^2 + c * max(0, confidence - margin(x')) by Adam in a space where x' cannot
    leave the box (`tanh_descent`), with a binary search over c. Everything is per sample: c and its
    bounds, Adam's state (fresh in each search step), the check for a stalled loss. A sample that
    stalls goes on to its next search step at once, so it costs fewer iterations, not idle ones.
    Returned is the smallest success of all iterates; a failure returns the clean image with
    success False. An image that already fools with the asked confidence is returned as it is.

    Defaults are those of Memory Defense (arXiv 2202.02595) and of CleverHans.

    Attributes:
      search_steps: values of c tried.
      steps: iterations of Adam for each c.
      learning_rate: of Adam, in units of w.
      initial_const: first c; times 10 until a success, then bisection.
      confidence: logit margin by which a success must fool (kappa of the paper).
      targeted: labels are targets to be reached.
      abort_early: end a search step when, at a check every steps/10 iterations, the lowest loss
        has not fallen by 0.01%.

    Raises:
      InputError: for a count below 1.
    """

    search_steps: int = static(5)
    steps: int = static(1000)
    learning_rate: Number = 5e-3
    initial_const: Number = 1e-2
    confidence: Number = 0.0
    targeted: bool = static(False)
    abort_early: bool = static(True)
    norm = "l2"

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        logits = fn(x)
        hit = self._succeeds(fn, x, logits, y)
        none, zero = state.steps, y * jnp.float32(0)
        own = _Search(
            descent=tanh_descent.begin(x),
            search=none,
            c=zero + self.initial_const,
            lower=zero,
            upper=zero + _NO_BOUND,
            found=state.success,
        )
        score = jnp.where(hit, 0.0, state.score)
        nan = objectives.has_nan(logits)
        return replace(state.count(1, 0), success=hit, done=hit, score=score, nan=nan, own=own)

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Search = state.own
        image = tanh_descent.to_image(own.descent.w, state.x)
        hinge, logits, gradient = objectives.value_and_gradient(
            fn, image, lambda logits: own.c * self._shortfall(logits, state.y)
        )
        delta = image - state.x
        loss = hinge + jnp.sum(delta**2, axis=(1, 2, 3))
        gradient = 2.0 * delta + jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        hit = self._succeeds(fn, image, logits, state.y)
        descent = tanh_descent.descend(own.descent, loss, gradient, self.learning_rate)
        own = replace(own, descent=descent, found=own.found | hit)
        own = self._end_search_step(own, state.x)
        state = keep_nearest(state.count(1, 1), image, logits, hit, "l2")
        done = own.search >= self.search_steps
        return replace(state, done=done, steps=state.steps + 1, own=own)

    def _end_search_step(self, own: _Search, x: jax.Array) -> _Search:
        """Where a sample has used its iterations or stalled: next c, and Adam from the start."""
        descent, ended = tanh_descent.spent(own.descent, self.steps, self.abort_early)
        own = replace(own, descent=descent)
        lower = jnp.where(own.found, own.lower, jnp.maximum(own.lower, own.c))
        upper = jnp.where(own.found, jnp.minimum(own.upper, own.c), own.upper)
        fresh = _Search(
            descent=tanh_descent.begin(x),
            search=own.search + 1,
            c=jnp.where(upper < _NO_BOUND, (lower + upper) / 2, own.c * 10),
            lower=lower,
            upper=upper,
            found=jnp.zeros_like(own.found),
        )
        return where(ended, fresh, own)
