"""Minimum-norm attacks that walk along the decision boundary: DDN and FMN.

Both hold a current image and the radius of a ball around the clean one. Each iteration moves the
image along the normalised gradient and back to the ball, which shrinks after an image that fools
and grows after one that does not. The gradient pass of an iteration also judges the image that it
starts from. At the end a few forward passes judge the last image and shorten the best one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, hyperplanes, objectives
from memdef_jax.attacks.attack import Attack, Number, check_count, check_number, static
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State, where

_LAST_RATE = 0.01  # step size at the end, as a share of that at the beginning
_LAST_GAMMA = 1e-3  # as printed for FMN
# The final shortening: so many halvings of the last tenth of the way to the best image.
_HALVINGS = 6
_BRACKET = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Walk:
    """Where each sample is on its walk."""

    image: jax.Array  # [B, H, W, C], to be judged next
    radius: jax.Array  # of the ball around the clean image, [B]
    farthest: jax.Array  # radius that reaches every corner of the box, [B]
    iteration: jax.Array  # int32 [B]


def keep_nearest(
    state: State, image: jax.Array, logits: jax.Array, hit: jax.Array, norm: str
) -> State:
    """Keep an image where it fools (`hit`, [B]) and is nearer to the clean one than the best yet.

    The score of a minimum-norm attack is the negative length of its perturbation.
    """
    size = balls.length(image - state.x, norm)
    better = hit & (size < -state.score)
    return replace(
        state,
        image=where(better, image, state.image),
        success=state.success | hit,
        score=jnp.where(better, -size, state.score),
        nan=state.nan | objectives.has_nan(logits),
    )


class _MinimumNorm(Attack):
    """What they share. They differ in objective, radius and the way back to the ball."""

    steps: int
    gamma: Number

    @property
    def num_steps(self) -> int:
        return self.steps

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        farthest = balls.length(jnp.maximum(x, 1.0 - x), self.norm)
        radius = jnp.minimum(self._first_radius(farthest), farthest)
        return replace(state, own=_Walk(x, radius, farthest, state.steps))

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Walk = state.own
        value, logits, gradient = objectives.value_and_gradient(
            fn, own.image, lambda logits: self._gain(logits, state)
        )
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        state, hit = self._judge(fn, state, own.image, logits)
        # Nothing but the clean image is at no distance.
        done = hit & (state.score == 0)
        radius = self._next_radius(state, value, gradient, hit)
        radius = jnp.minimum(radius, own.farthest)
        falling = (1.0 + jnp.cos(jnp.pi * own.iteration / self.steps)) / 2.0
        rate = self._first_rate * (_LAST_RATE + (1.0 - _LAST_RATE) * falling)
        step = balls.per_image(rate * self._step_unit(radius))
        moved = own.image + step * balls.ascent(gradient, self.norm)
        image = self._into_ball(moved, state.x, radius)
        own = replace(own, image=image, radius=radius, iteration=own.iteration + 1)
        return replace(state.count(1, 1), done=done, steps=state.steps + ~done, own=own)

    def finish(self, fn: LogitsFunction, state: State) -> State:
        last = state.own.image
        state, _ = self._judge(fn, state, last, fn(last))
        best, size = state.image, -state.score

        def halve(_: int, carry: tuple[State, jax.Array, jax.Array]) -> Any:
            state, low, high = carry
            middle = (low + high) / 2
            image = balls.project(best, state.x, middle, self.norm)
            state, hit = self._judge(fn, state, image, fn(image))
            return state, jnp.where(hit, low, middle), jnp.where(hit, middle, high)

        low = (1.0 - _BRACKET) * size
        state, _, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (state, low, size))
        return state.count(1 + _HALVINGS, 0)

    def _judge(
        self, fn: LogitsFunction, state: State, image: jax.Array, logits: jax.Array
    ) -> tuple[State, jax.Array]:
        """Keep the image if it is the best; whether it fools, [B]."""
        hit = fn.fooled(image, logits, state.y, self.targeted)
        return keep_nearest(state, image, logits, hit, self.norm), hit

    @property
    def _first_rate(self) -> Number:
        """Length of the first step."""
        raise NotImplementedError

    def _step_unit(self, radius: jax.Array) -> Number:
        """In what the first rate is measured."""
        return 1.0

    def _first_radius(self, farthest: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _gain(self, logits: jax.Array, state: State) -> jax.Array:
        """What is raised, [B]."""
        raise NotImplementedError

    def _next_radius(
        self, state: State, value: jax.Array, gradient: jax.Array, hit: jax.Array
    ) -> jax.Array:
        """Radius [B], from the gain, its gradient and whether the current image fools."""
        raise NotImplementedError

    def _into_ball(self, image: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """Bring an image to the ball and into [0, 1]."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DDN(_MinimumNorm):
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600, algorithm 1), for L2.

    Each iteration takes a step of length 1, falling to 0.01 by a cosine, along the normalised
    gradient of the cross-entropy, and then puts the image on the sphere whose radius shrinks by
    gamma after an image that fools and grows by gamma otherwise. Returned is the smallest success
    of all iterates, shortened further towards the clean image as long as it fools, which takes
    seven forward passes; a failure returns the clean image with success False.

    Where the cross-entropy saturates, its gradient vanishes; that of the log-odds has the same
    direction everywhere and does not, so that is what is followed. It points between the other
    classes, which helps to find the nearest and hinders in reaching it (on linear models with ten
    classes and small logits the perturbations were a third too large): so the second half of the
    iterations follows the margin. Images are not quantised.

    Attributes:
      steps: iterations, of one forward and one backward pass each.
      gamma: by which share the radius changes.
      init_norm: first radius, in L2 of [0, 1] pixels.
      targeted: labels are targets to be reached.

    Raises:
      InputError: for steps below 1.
    """

    steps: int = static(100)
    gamma: Number = 0.05
    init_norm: Number = 1.0
    targeted: bool = static(False)
    norm = "l2"
    _first_rate = 1.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def check(self) -> None:
        check_number("gamma", self.gamma)
        check_number("init_norm", self.init_norm, above_zero=True)

    def _first_radius(self, farthest: jax.Array) -> jax.Array:
        return self.init_norm

    def _gain(self, logits: jax.Array, state: State) -> jax.Array:
        odds = _log_odds_against(logits, state.y)
        margin = objectives.margin(logits, state.y)
        value = jnp.where(state.own.iteration < self.steps // 2, odds, margin)
        return -value if self.targeted else value

    def _next_radius(
        self, state: State, value: jax.Array, gradient: jax.Array, hit: jax.Array
    ) -> jax.Array:
        return state.own.radius * jnp.where(hit, 1.0 - self.gamma, 1.0 + self.gamma)

    def _into_ball(self, image: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        delta = image - x
        size = balls.length(delta, "l2")
        scale = radius / jnp.where(size > 0, size, 1.0)
        return jnp.clip(x + delta * balls.per_image(scale), 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FMN(_MinimumNorm):
    """Fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827, algorithm 1).

    Each iteration takes a step up the margin and projects the image to the ball. Until a first
    success the radius is the distance at which the linearised model changes its mind, but grows by
    gamma at least; from then on it shrinks by gamma after an image that fools and grows by gamma
    otherwise. Step size and gamma fall by a cosine. Returned is the smallest success of all
    iterates, drawn closer to the clean image as long as it fools, which takes seven forward
    passes; a failure returns the clean image with success False.

    For Linf the step goes along the sign of the gradient and is measured in radii. Normalised in
    L2 for every norm, as printed, it leaves pixels of small gradient behind; on an adversarially
    trained network the perturbations were then a quarter larger.

    Attributes:
      norm: "linf" or "l2".
      steps: iterations, of one forward and one backward pass each.
      alpha: length of the first step: in [0, 1] pixels for "l2", in radii for "linf"; the last is
        100 times shorter.
      gamma: by which share the radius changes at first; in the end it is 0.001.
      targeted: labels are targets to be reached.

    Raises:
      InputError: for an unknown norm or steps below 1.
    """

    norm: str = static("linf")
    steps: int = static(100)
    alpha: Number = 1.0
    gamma: Number = 0.05
    targeted: bool = static(False)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        check_count("steps", self.steps)

    def check(self) -> None:
        check_number("alpha", self.alpha, above_zero=True)
        check_number("gamma", self.gamma)

    @property
    def _first_rate(self) -> Number:
        return self.alpha

    def _first_radius(self, farthest: jax.Array) -> jax.Array:
        return farthest * 0.0

    def _gain(self, logits: jax.Array, state: State) -> jax.Array:
        return objectives.gain("margin", logits, state.y, self.targeted)

    def _next_radius(
        self, state: State, value: jax.Array, gradient: jax.Array, hit: jax.Array
    ) -> jax.Array:
        own = state.own
        falling = (1.0 + jnp.cos(jnp.pi * own.iteration / self.steps)) / 2.0
        gamma = _LAST_GAMMA + (self.gamma - _LAST_GAMMA) * falling
        slope = hyperplanes.dual_length(gradient, self.norm)
        gap = jnp.where(slope > 0, jnp.abs(value) / slope, jnp.inf)
        reach = balls.length(own.image - state.x, self.norm) + gap
        reach = jnp.where(jnp.isnan(reach), jnp.inf, reach)
        inside = jnp.minimum(own.radius * (1.0 - gamma), -state.score)
        outside = own.radius * (1.0 + gamma)
        outside = jnp.where(state.success, outside, jnp.maximum(outside, reach))
        return jnp.where(hit, inside, outside)

    def _step_unit(self, radius: jax.Array) -> Number:
        return radius if self.norm == "linf" else 1.0

    def _into_ball(self, image: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        return balls.project(image, x, radius, self.norm)


def _log_odds_against(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log of the odds against the label, [B]: the cross-entropy is softplus of it."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.where(own, -jnp.inf, logits)
    return jax.nn.logsumexp(others, axis=-1) - objectives.pick(logits, labels)
