"""The Carlini & Wagner Linf attack, its shrinking bound and its Adam in one flat state machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, objectives, tanh_descent
from memdef_jax.attacks.attack import Number, static
from memdef_jax.attacks.carlini_wagner import CarliniWagner
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.minimum_norm import keep_nearest
from memdef_jax.attacks.state import State, where

_SHRINK = 0.1  # the paper multiplies tau by 0.9
_MOST = 0.5
_FINEST = 0.003  # a sample is done when tau could not fall by so much


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Stage:
    """Where each sample stands in its stages and in Adam; all [B] but the descent's images."""

    descent: tanh_descent.Descent
    stage: jax.Array  # stages completed
    c: jax.Array
    tau: jax.Array  # what a pixel may change without a penalty
    shrink: jax.Array  # by which share tau goes below the best success
    refines: jax.Array  # it began at a success
    fooled: jax.Array  # an image of this stage fooled
    reached: jax.Array  # and one did within tau


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(CarliniWagner):
    """Smallest Linf perturbation that fools (Carlini & Wagner 2017, 1608.04644, section VI-C).

    Minimises sum_i max(|x'_i - x_i| - tau, 0) + c * max(0, confidence - margin(x')) by Adam in a
    space where x' cannot leave the box (`tanh_descent`), in stages. After a stage that fooled
    within tau, tau goes 10% below the best success. After one that did not, it goes only half as
    far below as the last time, and c doubles if nothing fooled or halves if it did but beyond tau;
    so the search ends finer than the paper's factor of 0.9, where tau could not fall by 0.3%. Each
    stage starts at the best success clipped to tau; where that suffices by itself, tau goes twice
    as far below as the last time. All of this is per sample. Returned is the smallest success of
    all iterates; a failure returns the clean image with success False. An image that already fools
    with the asked confidence is returned as it is.

    After the first success, a step of Adam is at most tau and falls linearly to zero in each stage.

    Attributes:
      search_steps: most stages, that is, settings of tau and c.
      steps: most iterations of Adam in a stage.
      learning_rate: of Adam, in units of w; the longest step.
      initial_const: first c; times 10 after a stage as long as nothing fooled at all.
      confidence: logit margin by which a success must fool (kappa of the paper).
      targeted: labels are targets to be reached.
      abort_early: end a stage when it has fooled within tau or, before the first success, when at
        a check every steps/10 iterations the lowest loss has not fallen by 0.01%.

    Raises:
      InputError: for a count below 1.
    """

    search_steps: int = static(30)
    steps: int = static(100)
    learning_rate: Number = 1e-2
    initial_const: Number = 1.0
    confidence: Number = 0.0
    targeted: bool = static(False)
    abort_early: bool = static(True)
    norm = "linf"

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        logits = fn(x)
        hit = self._succeeds(fn, x, logits, y)
        zero = y * jnp.float32(0)
        own = _Stage(
            descent=tanh_descent.begin(x),
            stage=state.steps,
            c=zero + self.initial_const,
            tau=zero + 1.0,
            shrink=zero + _SHRINK,
            refines=state.success,
            fooled=state.success,
            reached=state.success,
        )
        state = keep_nearest(state.count(1, 0), x, logits, hit, "linf")
        return replace(state, done=hit, own=own)

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Stage = state.own
        image = tanh_descent.to_image(own.descent.w, state.x)
        hinge, logits, gradient = objectives.value_and_gradient(
            fn, image, lambda logits: own.c * self._shortfall(logits, state.y)
        )
        delta = image - state.x
        excess = jnp.maximum(jnp.abs(delta) - balls.per_image(own.tau), 0.0)
        loss = hinge + jnp.sum(excess, axis=(1, 2, 3))
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        gradient = gradient + jnp.where(excess > 0, jnp.sign(delta), 0.0)
        hit = self._succeeds(fn, image, logits, state.y)
        # Rounding on the way through tanh must not make a start at tau miss it.
        within = jnp.max(excess, axis=(1, 2, 3), initial=0.0) <= 1e-6
        state = keep_nearest(state.count(1, 1), image, logits, hit, "linf")
        # Once there is something to refine, steps that stay as long would swing about tau by more
        # than what is left to gain.
        fine = jnp.minimum(self.learning_rate, own.tau)
        fine = fine * (1.0 - own.descent.iteration / self.steps)
        rate = jnp.where(own.refines, fine, self.learning_rate)
        own = replace(
            own,
            descent=tanh_descent.descend(own.descent, loss, gradient, rate),
            fooled=own.fooled | hit,
            reached=own.reached | (hit & within),
        )
        own = self._end_stage(own, state)
        done = (own.stage >= self.search_steps) | (own.shrink < _FINEST)
        return replace(state, done=done, steps=state.steps + 1, own=own)

    def _end_stage(self, own: _Stage, state: State) -> _Stage:
        """Where a sample's stage is over: next tau and c, and Adam from the best success."""
        descent, ended = tanh_descent.spent(own.descent, self.steps, self.abort_early)
        # While steps become finer, a stall says nothing.
        ended &= ~own.refines | (descent.iteration >= self.steps)
        own = replace(own, descent=descent)
        if self.abort_early:
            ended |= own.reached
        easy = own.reached & (descent.iteration == 1)
        shrink = jnp.where(own.reached | ~state.success, own.shrink, own.shrink / 2)
        shrink = jnp.where(easy, jnp.minimum(2 * shrink, _MOST), shrink)
        factor = jnp.where(state.success, jnp.where(own.fooled, 0.5, 2.0), 10.0)
        tau = jnp.where(state.success, -state.score * (1.0 - shrink), 1.0)
        fresh = _Stage(
            # `image` is the clean one while there is no success.
            descent=tanh_descent.begin(balls.project(state.image, state.x, tau, "linf")),
            stage=own.stage + 1,
            c=own.c * jnp.where(own.reached, 1.0, factor),
            tau=tau,
            shrink=shrink,
            refines=state.success,
            fooled=own.fooled ^ own.fooled,
            reached=own.reached ^ own.reached,
        )
        return where(ended, fresh, own)
