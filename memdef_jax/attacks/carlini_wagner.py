"""The Carlini & Wagner L2 attack, its binary search and its Adam in one flat state machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.attack import Attack, Number, check_count, check_number, static
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State, where

# Distance kept from the ends of tanh, as in the authors' code: pixels at exactly 0 or 1 would
# otherwise sit at infinity and never move.
_MARGIN = 1e-6
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8
_NO_BOUND = 1e10
_STALL = 0.9999


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Search:
    """Where each sample stands in its search for c and in Adam; all [B] or [B, H, W, C]."""

    w: jax.Array  # the image before tanh
    m: jax.Array  # Adam's first moment
    v: jax.Array  # and second
    iteration: jax.Array  # within the search step
    search: jax.Array  # search steps completed
    c: jax.Array
    lower: jax.Array  # largest c that failed
    upper: jax.Array  # smallest c that succeeded
    previous: jax.Array  # loss at the last stall check
    found: jax.Array  # success within this search step


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(Attack):
    """Smallest L2 perturbation that fools (Carlini & Wagner 2017, arXiv 1608.04644, section VI-A).

    Minimises ||x' - x||^2 + c * max(0, confidence - margin(x')) over w, x' = (tanh(w) + 1) / 2, by
    Adam, with a binary search over c. Everything is per sample: c and its bounds, Adam's state
    (fresh in each search step), the check for a stalled loss. A sample that stalls goes on to its
    next search step at once, so it costs fewer iterations, not idle ones. Returned is the smallest
    success of all iterates; a failure returns the clean image with success False. An image that
    already fools with the asked confidence is returned as it is.

    Defaults are those of Memory Defense (arXiv 2202.02595) and of CleverHans.

    Attributes:
      search_steps: values of c tried.
      steps: iterations of Adam for each c.
      learning_rate: of Adam, in units of w.
      initial_const: first c; times 10 until a success, then bisection.
      confidence: logit margin by which a success must fool (kappa of the paper).
      targeted: labels are targets to be reached.
      abort_early: end a search step when, at a check every steps/10 iterations, the loss has not
        fallen by 0.01%.

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

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        logits = fn(x)
        hit = self._succeeds(logits, y)
        none, zero = state.steps, y * jnp.float32(0)
        own = _Search(
            w=_to_tanh_space(x),
            m=x * 0,
            v=x * 0,
            iteration=none,
            search=none,
            c=zero + self.initial_const,
            lower=zero,
            upper=zero + _NO_BOUND,
            previous=zero + jnp.inf,
            found=state.success,
        )
        score = jnp.where(hit, 0.0, state.score)
        nan = objectives.has_nan(logits)
        return replace(state.count(1, 0), success=hit, done=hit, score=score, nan=nan, own=own)

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Search = state.own
        loss, image, logits, gradient = self._loss_and_gradient(fn, state)
        hit = self._succeeds(logits, state.y)
        size = balls.length(image - state.x, "l2")
        better = hit & (size < -state.score)
        own = replace(_adam(own, gradient, self.learning_rate), found=own.found | hit)
        own = self._end_search_step(own, loss, state.x)
        return replace(
            state.count(1, 1),
            image=where(better, image, state.image),
            success=state.success | hit,
            score=jnp.where(better, -size, state.score),
            nan=state.nan | objectives.has_nan(logits),
            done=own.search >= self.search_steps,
            steps=state.steps + 1,
            own=own,
        )

    def _succeeds(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        gap = objectives.gain("margin", logits, y, self.targeted)
        return objectives.fooled(logits, y, self.targeted) & (gap >= self.confidence)

    def _loss_and_gradient(
        self, fn: LogitsFunction, state: State
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Loss [B], image, logits and the loss's gradient with respect to w."""

        # Measured from where w starts, within 1e-6 of the clean image, so that rounding gives Adam
        # no direction to follow while the model gives none.
        origin = _to_image(_to_tanh_space(state.x))

        def total(w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            image = _to_image(w)
            logits = fn(image)
            gap = objectives.gain("margin", logits, state.y, self.targeted)
            distance = jnp.sum((image - origin) ** 2, axis=(1, 2, 3))
            loss = distance + state.own.c * jnp.maximum(self.confidence - gap, 0.0)
            return jnp.sum(loss), (loss, image, logits)

        (_, (loss, image, logits)), gradient = jax.value_and_grad(total, has_aux=True)(state.own.w)
        return loss, image, logits, jnp.where(jnp.isfinite(gradient), gradient, 0.0)

    def _end_search_step(self, own: _Search, loss: jax.Array, x: jax.Array) -> _Search:
        """Where a sample has used its iterations or stalled: next c, and Adam from the start."""
        ended = own.iteration >= self.steps
        if self.abort_early:
            check = own.iteration % max(self.steps // 10, 1) == 0
            ended |= check & (loss > _STALL * own.previous)
            own = replace(own, previous=jnp.where(check, loss, own.previous))
        lower = jnp.where(own.found, own.lower, jnp.maximum(own.lower, own.c))
        upper = jnp.where(own.found, jnp.minimum(own.upper, own.c), own.upper)
        fresh = _Search(
            w=_to_tanh_space(x),
            m=jnp.zeros_like(own.m),
            v=jnp.zeros_like(own.v),
            iteration=jnp.zeros_like(own.iteration),
            search=own.search + 1,
            c=jnp.where(upper < _NO_BOUND, (lower + upper) / 2, own.c * 10),
            lower=lower,
            upper=upper,
            previous=jnp.full_like(own.previous, jnp.inf),
            found=jnp.zeros_like(own.found),
        )
        return where(ended, fresh, own)


def _to_tanh_space(x: jax.Array) -> jax.Array:
    return jnp.arctanh((2.0 * x - 1.0) * (1.0 - _MARGIN))


def _to_image(w: jax.Array) -> jax.Array:
    return (jnp.tanh(w) + 1.0) / 2.0


def _adam(own: _Search, gradient: jax.Array, rate: jax.Array) -> _Search:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), each sample at its own iteration."""
    iteration = own.iteration + 1
    m = _BETA1 * own.m + (1 - _BETA1) * gradient
    v = _BETA2 * own.v + (1 - _BETA2) * gradient**2
    rate = balls.per_image(rate / (1 - _BETA1**iteration))
    correction = balls.per_image(1 - _BETA2**iteration)
    w = own.w - rate * m / (jnp.sqrt(v / correction) + _TINY)
    return replace(own, w=w, m=m, v=v, iteration=iteration)
