"""FAB: walk along the decision boundary towards the clean image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, hyperplanes, objectives
from memdef_jax.attacks.attack import (
    Attack,
    Number,
    check_budget,
    check_count,
    check_number,
    static,
)
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError

# Twice the distance of random starts where no eps is given, as in the authors' code.
_RADIUS = {"linf": 0.3, "l2": 1.0}
_TOLERANCE = 0.001  # of the final search, as a share of the perturbation
_TINY = 1e-8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Walk:
    """Where each sample stands."""

    point: jax.Array  # the iterate, [B, H, W, C]
    found: jax.Array  # the closest image that fools so far, [B, H, W, C]
    size: jax.Array  # its distance, infinite while there is none, [B]
    gap: jax.Array  # margin of the clean image, [B]
    up: jax.Array | None  # classes to be raised, [B, N]; None when targeted


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary attack (Croce & Hein 2020, arXiv 1907.02044, algorithm 1).

    Seeks the smallest perturbation. In each iteration the iterate and the clean image are both
    projected onto the linearised boundary within [0, 1], and the next iterate is a mixture of the
    two points, each overshot by eta, that leans to the clean image the more the farther away the
    iterate is. An iterate that fools is remembered and then drawn back towards the clean image by
    beta. At the end the closest one found is moved along the line to the clean image (the paper's
    final search, a few forward passes). Failures return the clean image with success False. An
    image that fools already is returned as it is.

    Without eps every run is made and the smallest success is returned. With eps, the form that
    AutoAttack uses, only perturbations of length at most eps count; a sample stops at its first.

    Attributes:
      norm: "linf" or "l2".
      eps: largest length that counts, in [0, 1] pixels; a number, one a sample [B], or None.
      steps: iterations in each run.
      restarts: runs in all, for each target; the first starts at the clean image, others at a
        random point at distance eps/2 (without eps: 0.15 for Linf, 0.5 for L2).
      targets: 0 approaches the closest boundary to any class, for as many backward passes an
        iteration as there are other classes. n > 0 is FAB-T (AutoAttack's, arXiv 2003.01690):
        n runs, run r towards the (r mod n)-th most likely other class of the clean
        image, for one backward pass; an image of any wrong class counts.
      alpha_max: largest weight of the clean image's projection.
      eta: factor by which projections are prolonged.
      beta: what is kept of a perturbation that fooled.
      targeted: labels are targets to be reached; the boundary is that between the target and the
        strongest other class at the iterate.

    Raises:
      InputError: for an unknown norm, a bad count, or targets together with targeted.
    """

    norm: str = static("linf")
    eps: Number | None = None
    steps: int = static(100)
    restarts: int = static(1)
    targets: int = static(0)
    alpha_max: Number = 0.1
    eta: Number = 1.05
    beta: Number = 0.9
    targeted: bool = static(False)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.targets != 0:
            check_count("targets", self.targets)
        if self.targets and self.targeted:
            raise InputError(
                f"targets {self.targets} names wrong classes to try, but targeted=True gives each "
                "image one to reach; set targets=0."
            )

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def repeats(self) -> int:
        return self.restarts * max(self.targets, 1)

    @property
    def settles(self) -> bool:
        return self.eps is not None

    @property
    def random(self) -> bool:
        return self.restarts > 1

    @property
    def core(self) -> Attack:
        return replace(self, steps=1, restarts=1)

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        targets, notes = objectives.targets_for_classes(self.targets, classes)
        return (replace(self, targets=targets),), notes

    def check(self) -> None:
        if self.eps is not None:
            check_budget(self.eps, self.norm)
        check_number("alpha_max", self.alpha_max)
        check_number("eta", self.eta, above_zero=True)
        check_number("beta", self.beta)

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        logits = fn(x)
        hit = fn.fooled(x, logits, y, self.targeted)
        up = None
        if not self.targeted:
            up = objectives.likeliest_others(logits, y)
        if up is not None and self.targets:
            up = jax.lax.dynamic_slice_in_dim(up, run % self.targets, 1, axis=1)
        point = x
        if keys is not None:
            first = run < max(self.targets, 1)
            point = jnp.where(first, x, self._start(x, keys))
        gap = objectives.gain("margin", logits, y, self.targeted)
        own = _Walk(point, x, jnp.full_like(gap, jnp.inf), gap, up)
        state = State.blank(x, y).count(1, 0)
        score = jnp.where(hit, 0.0, state.score)
        nan = objectives.has_nan(logits)
        return replace(state, success=hit, done=hit, score=score, nan=nan, own=own)

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Walk = state.own
        logits, pull = jax.vjp(fn, own.point)
        if own.up is None:
            up, down = state.y[:, None], objectives.likeliest_others(logits, state.y, 1)
        else:
            up, down = own.up, state.y[:, None]
        gradient, value = hyperplanes.closest(logits, pull, up, down, self.norm)
        image = self._between(state.x, own.point, gradient, value)
        logits = fn(image)
        hit = hyperplanes.clear_hit(fn, image, logits, state.y, self.targeted)
        back = state.x + balls.per_image(self.beta) * (image - state.x)
        own = replace(own, point=jnp.where(balls.per_image(hit), back, image))
        state = replace(
            state.count(2, up.shape[1]),
            nan=state.nan | objectives.has_nan(logits),
            steps=state.steps + 1,
            own=own,
        )
        return self._remember(state, image, hit)

    def finish(self, fn: LogitsFunction, state: State) -> State:
        own: _Walk = state.own
        end = hyperplanes.judge_and_retreat(
            fn, state.x, own.found, state.y, self.targeted, own.gap, _TOLERANCE
        )
        state = replace(state, forward=state.forward + end.forward, nan=state.nan | end.nan)
        return self._remember(state, end.image, end.hit)

    def _start(self, x: jax.Array, keys: Any) -> jax.Array:
        """A random point at half the radius, before clipping."""
        shape = x.shape[1:]
        if self.norm == "linf":
            draw = lambda key: jax.random.uniform(key, shape, minval=-1.0)  # noqa: E731
        else:
            draw = lambda key: jax.random.normal(key, shape)  # noqa: E731
        noise = jax.vmap(draw)(keys)
        radius = _RADIUS[self.norm] if self.eps is None else self.eps
        share = 0.5 * radius / jnp.maximum(balls.length(noise, self.norm), _TINY)
        return jnp.clip(x + balls.per_image(share) * noise, 0.0, 1.0)

    def _between(
        self, x: jax.Array, point: jax.Array, gradient: jax.Array, value: jax.Array
    ) -> jax.Array:
        """The mixture of both overshot projections, the biased step of the paper."""
        at_x = value + jnp.sum(gradient * (x - point), axis=(1, 2, 3))
        step = hyperplanes.project(point, gradient, value, self.norm)
        anchor = hyperplanes.project(x, gradient, at_x, self.norm)
        ours = jnp.maximum(balls.length(step, self.norm), _TINY)
        theirs = jnp.maximum(balls.length(anchor, self.norm), _TINY)
        alpha = balls.per_image(jnp.minimum(ours / (ours + theirs), self.alpha_max))
        eta = balls.per_image(self.eta)
        mixed = (1.0 - alpha) * (point + eta * step) + alpha * (x + eta * anchor)
        return jnp.clip(mixed, 0.0, 1.0)

    def _remember(self, state: State, image: jax.Array, hit: jax.Array) -> State:
        """Keep an image that fools where it is the closest so far; decide whether it counts."""
        own: _Walk = state.own
        size = balls.length(image - state.x, self.norm)
        closer = hit & (size < own.size)
        own = replace(
            own,
            found=jnp.where(balls.per_image(closer), image, own.found),
            size=jnp.where(closer, size, own.size),
        )
        counts = closer if self.eps is None else closer & (size <= self.eps)
        return replace(
            state,
            image=jnp.where(balls.per_image(counts), image, state.image),
            success=state.success | counts,
            score=jnp.where(counts, -size, state.score),
            done=state.done if self.eps is None else counts,
            own=own,
        )
