"""DeepFool: step onto the closest linearised boundary until it has been crossed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, hyperplanes, objectives
from memdef_jax.attacks.attack import Attack, Number, check_count, check_number, static
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State

# A line search that promises less than this share of a perturbation is not worth its passes.
_TOLERANCE = 0.005


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Walk:
    """Where each sample stands."""

    point: jax.Array  # the iterate, overshoot included, [B, H, W, C]
    move: jax.Array  # sum of the steps without overshoot, [B, H, W, C]
    gap: jax.Array  # margin at the clean image, [B]
    classes: jax.Array | None  # classes to be raised, [B, N]; None when targeted


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Smallest perturbation by linearisation (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

    Algorithm 2, and for Linf its variant of section 3.3: from the iterate cross onto the closest of
    the hyperplanes on which, to first order, another class ties with the label; add up these steps;
    the next iterate is the clean image plus (1 + overshoot) times the sum, clipped to [0, 1]. The
    first iterate that fools is moved back along the line to the clean image where that shortens it
    noticeably (not in the publication; forward passes only), and the sample stops. A failure
    returns the clean image with success False. An image that fools already is returned as it is.

    An iteration costs two forward passes, and one backward pass for each class considered.

    Attributes:
      norm: "linf" or "l2".
      steps: iterations at most.
      overshoot: the published eta, by which the sum of steps is prolonged.
      candidates: consider only so many classes besides the label, those most likely on the clean
        image; None for all. Unused when targeted.
      targeted: labels are targets to be reached: the only hyperplane is that on which the target
        ties with the strongest other class.

    Raises:
      InputError: for an unknown norm or a count below 1.
    """

    norm: str = static("l2")
    steps: int = static(50)
    overshoot: Number = 0.02
    candidates: int | None = static(None)
    targeted: bool = static(False)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        check_count("steps", self.steps)
        if self.candidates is not None:
            check_count("candidates", self.candidates)

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def core(self) -> Attack:
        return replace(self, steps=1)

    def check(self) -> None:
        check_number("overshoot", self.overshoot)

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        logits = fn(x)
        hit = fn.fooled(x, logits, y, self.targeted)
        classes = None
        if not self.targeted:
            classes = objectives.likeliest_others(logits, y, self.candidates)
        gap = objectives.gain("margin", logits, y, self.targeted)
        state = State.blank(x, y).count(1, 0)
        return replace(
            state,
            success=hit,
            done=hit,
            score=jnp.where(hit, 0.0, state.score),
            nan=objectives.has_nan(logits),
            own=_Walk(x, x * 0, gap, classes),
        )

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Walk = state.own
        logits, pull = jax.vjp(fn, own.point)
        if own.classes is None:
            up, down = state.y[:, None], objectives.likeliest_others(logits, state.y, 1)
        else:
            up, down = own.classes, state.y[:, None]
        gradient, value = hyperplanes.closest(logits, pull, up, down, self.norm)
        move = own.move + hyperplanes.cross(gradient, value, self.norm)
        # Kept inside the box, so that a step is never eaten up by what lies outside.
        move = jnp.clip(state.x + move, 0.0, 1.0) - state.x
        point = jnp.clip(state.x + balls.per_image(1.0 + self.overshoot) * move, 0.0, 1.0)
        end = hyperplanes.judge_and_retreat(
            fn, state.x, point, state.y, self.targeted, own.gap, _TOLERANCE
        )
        size = balls.length(end.image - state.x, self.norm)
        state = state.count(1, up.shape[1])
        return replace(
            state,
            image=jnp.where(balls.per_image(end.hit), end.image, state.image),
            success=end.hit,
            score=jnp.where(end.hit, -size, state.score),
            nan=state.nan | end.nan,
            done=end.hit,
            forward=state.forward + end.forward,
            steps=state.steps + 1,
            own=replace(own, point=point, move=move),
        )
