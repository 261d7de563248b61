"""Noise without any search for a direction: what every real attack must beat."""

from __future__ import annotations

import math
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
    judge_clean,
    static,
)
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError

KINDS = ("uniform", "gaussian")
_BISECTIONS = 10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Draws:
    key: jax.Array  # typed keys [B]
    iteration: jax.Array  # int32 [B]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Random noise within a ball, drawn again until it fools.

    Without gradients or search, it shows what a budget does by size alone: a model that falls to
    it has not been attacked, and an attack that does not beat it is broken. One forward pass a
    draw, and one for the clean image, which is left alone when it fools by itself. A failure
    returns the last draw; the record's `run` counts draws from 0.

    Attributes:
      kind: "uniform" in the ball, or "gaussian", with standard deviation eps (Linf) or
        eps / sqrt(H * W * C) (L2, for an expected length of about eps), projected to the ball.
      eps: radius of the ball in [0, 1] pixels; a number, or one a sample [B].
      norm: "linf" or "l2".
      restarts: draws at most.
      targeted: labels are targets to be reached.

    Raises:
      InputError: for an unknown kind or norm, or restarts below 1.
    """

    kind: str = static("uniform")
    eps: Number
    norm: str = static("linf")
    restarts: int = static(1)
    targeted: bool = static(False)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        check_count("restarts", self.restarts)
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}.")

    @property
    def num_steps(self) -> int:
        # Draws are steps and not runs, so that the clean image is judged once.
        return self.restarts

    @property
    def random(self) -> bool:
        return True

    @property
    def gradient_free(self) -> bool:
        return True

    @property
    def core(self) -> Attack:
        return replace(self, restarts=1)

    def check(self) -> None:
        check_budget(self.eps, self.norm)

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = judge_clean(fn, State.blank(x, y), self.targeted)
        return replace(state, own=_Draws(keys, state.steps))

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Draws = state.own
        image = self._draw(state.x, jax.vmap(jax.random.fold_in)(own.key, own.iteration))
        logits = fn(image)
        hit = fn.fooled(image, logits, state.y, self.targeted)
        return replace(
            state.count(1, 0),
            image=image,
            success=hit,
            score=jnp.where(hit, jnp.inf, 0.0),
            run=own.iteration,
            done=hit,
            nan=state.nan | objectives.has_nan(logits),
            steps=state.steps + 1,
            own=replace(own, iteration=own.iteration + 1),
        )

    def _draw(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        if self.kind == "uniform":
            return balls.random_start(x, self.eps, self.norm, keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        if self.norm == "l2":
            noise = noise / max(math.prod(x.shape[1:]), 1) ** 0.5
        return balls.project(x + balls.per_image(self.eps) * noise, x, self.eps, self.norm)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Line:
    """The line from the image to noise, walked in shares of its length."""

    noise: jax.Array  # [B, H, W, C]
    iteration: jax.Array  # int32 [B]
    low: jax.Array  # largest share known not to fool, [B]
    high: jax.Array  # smallest share known to fool, infinite while none is


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BlendedUniform(Attack):
    """The shortest way to fool on the line to a uniform noise image, a minimum-norm baseline.

    The image is blended towards noise in `steps` equal shares until it fools, then the last share
    is halved 10 times. Repeated towards other noise images, of which the shortest way is returned.
    One forward pass a step, and in each run one for the clean image. Where nothing fools, the
    clean image is returned with success False.

    Attributes:
      steps: shares of the linear scan.
      restarts: noise images.
      norm: "l2" or "linf", in which lengths are compared and reported.
      targeted: labels are targets to be reached.

    Raises:
      InputError: for an unknown norm, or a count below 1.
    """

    steps: int = static(100)
    restarts: int = static(1)
    norm: str = static("l2")
    targeted: bool = static(False)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    @property
    def num_steps(self) -> int:
        return self.steps + _BISECTIONS

    @property
    def repeats(self) -> int:
        return self.restarts

    @property
    def settles(self) -> bool:
        return False

    @property
    def random(self) -> bool:
        return True

    @property
    def gradient_free(self) -> bool:
        return True

    @property
    def core(self) -> Attack:
        return replace(self, restarts=1)

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = judge_clean(fn, State.blank(x, y), self.targeted)
        state = replace(state, score=jnp.where(state.success, 0.0, state.score))
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
        zero = y * jnp.float32(0)
        return replace(state, own=_Line(noise, state.steps, zero, zero + jnp.inf))

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Line = state.own
        found = state.success
        scan = (own.iteration + 1) / self.steps
        share = jnp.where(found, (own.low + jnp.where(found, own.high, 0.0)) / 2, scan)
        image = jnp.clip(state.x + balls.per_image(share) * (own.noise - state.x), 0.0, 1.0)
        logits = fn(image)
        hit = fn.fooled(image, logits, state.y, self.targeted)
        # While scanning it counts shares, from the first that fools on halvings.
        iteration = jnp.where(hit & ~found, 0, own.iteration + 1)
        size = balls.length(image - state.x, self.norm)
        return replace(
            state.count(1, 0),
            image=jnp.where(balls.per_image(hit), image, state.image),
            success=found | hit,
            score=jnp.where(hit, -size, state.score),
            done=iteration >= jnp.where(found | hit, _BISECTIONS, self.steps),
            nan=state.nan | objectives.has_nan(logits),
            steps=state.steps + 1,
            own=replace(
                own,
                iteration=iteration,
                low=jnp.where(hit, own.low, share),
                high=jnp.where(hit, share, own.high),
            ),
        )
