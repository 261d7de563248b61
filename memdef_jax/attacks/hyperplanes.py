"""The decision boundary as hyperplanes: the closest one, projections onto it inside [0, 1].

What the attacks that seek the smallest perturbation share. A hyperplane is the zero set of a
model's logit difference, linearised at an image: a gradient [B, H, W, C] and a value [B] there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import where

_AXES = (-3, -2, -1)
# Newton's method on a concave piecewise linear function: residual times slope falls to a quarter or
# less in every step (as in Dinkelbach's method), so that these exhaust what float32 can tell apart.
_NEWTON_STEPS = 32
_CONVERGED = 1e-6
# A gap this small beside the logits may close when another program computes the same model.
_ROUNDING = 1e-5
_LINE_PASSES = 8
# How far from the predicted boundary towards the known hit the line search looks.
_CAUTION = 0.05
_TINY = 1e-30


def clear_hit(
    fn: LogitsFunction, images: jax.Array, logits: jax.Array, labels: jax.Array, targeted: bool
) -> jax.Array:
    """`LogitsFunction.fooled`, and by more than rounding, bool [B]."""
    gap = objectives.gain("margin", logits, labels, targeted)
    return (gap >= _rounding(logits)) & fn.fooled(images, logits, labels, targeted)


def _rounding(logits: jax.Array) -> jax.Array:
    size = jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0.0)
    return _ROUNDING * jnp.max(size, axis=-1)


def dual_length(gradient: jax.Array, norm: str) -> jax.Array:
    """Norm [...] of gradients [..., H, W, C] that is dual to the perturbation's: L1 for "linf"."""
    size = jnp.abs(gradient)
    scale = jnp.max(size, axis=_AXES, keepdims=True, initial=0.0)
    # Squares and sums of very small numbers lose their digits.
    size = size / jnp.where(scale > 0, scale, 1.0)
    total = jnp.sum(size, _AXES) if norm == "linf" else jnp.sqrt(jnp.sum(size**2, _AXES))
    return scale[..., 0, 0, 0] * total


def closest(
    logits: jax.Array,
    pull: Callable[[jax.Array], tuple[jax.Array]],
    up: jax.Array,
    down: jax.Array,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The closest of several linearised boundaries, by as many backward passes.

    Each is where the logits of two classes are equal. Its distance is |difference| over the dual
    norm of the difference's gradient (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, section 3.3);
    the box is not considered. Classes that do not react to the image are infinitely far away.

    Args:
      logits: [B, K].
      pull: the second result of `jax.vjp(logits_fn, images)`.
      up: classes to be raised, int32 [B, N].
      down: classes to be lowered, broadcast against them.
      norm: "linf" or "l2".

    Returns:
      The gradient of up minus down [B, H, W, C], finite, and its value [B], a trifle less, so that
      what lies on this hyperplane fools by more than rounding.
    """
    up, down = jnp.broadcast_arrays(up, down)
    value = jnp.take_along_axis(logits, up, -1) - jnp.take_along_axis(logits, down, -1)
    value = value - 2 * _rounding(logits)[:, None]
    one_hot = lambda classes: jax.nn.one_hot(classes.T, logits.shape[-1])  # noqa: E731
    (gradient,) = jax.vmap(pull)(one_hot(up) - one_hot(down))
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)  # [N, B, H, W, C]
    size = dual_length(gradient, norm).T
    distance = jnp.where(size > 0, jnp.abs(value) / size, jnp.inf)
    index = jnp.argmin(jnp.where(jnp.isnan(distance), jnp.inf, distance), axis=-1)
    gradient = jnp.take_along_axis(gradient, index[None, :, None, None, None], axis=0)[0]
    return gradient, objectives.pick(value, index)


def cross(gradient: jax.Array, value: jax.Array, norm: str) -> jax.Array:
    """Smallest move [B, H, W, C] from where a hyperplane has a value [B] onto it, without a box.

    None where the gradient vanishes or the value is not finite.
    """
    size = jnp.max(jnp.abs(gradient), axis=_AXES, initial=0.0)
    unit = gradient / balls.per_image(jnp.where(size > 0, size, 1.0))
    way, gain = unit, jnp.sum(unit**2, axis=_AXES)
    if norm == "linf":
        way, gain = jnp.sign(unit), jnp.sum(jnp.abs(unit), axis=_AXES)
    length = value / jnp.where(size > 0, size * gain, jnp.inf)
    return -way * balls.per_image(jnp.where(jnp.isfinite(length), length, 0.0))


def project(point: jax.Array, gradient: jax.Array, value: jax.Array, norm: str) -> jax.Array:
    """Smallest move from a point onto a hyperplane, within [0, 1] (the step of arXiv 1907.02044).

    The move is min(t, room) for "linf" and min(t |w|, room) for "l2" in each pixel, `room` being
    what the box leaves in the direction of the hyperplane; t is found by Newton's method from 0,
    without sorting. Where the box ends before the hyperplane, the move is to the corner of the box
    that comes closest to it; where gradient or value vanish, or the value is NaN, there is none.

    Args:
      point: images [B, H, W, C] in [0, 1].
      gradient: normal w of the hyperplane, finite, [B, H, W, C].
      value: the affine function with that gradient at the point, [B]; zero on the hyperplane.
      norm: "linf" or "l2", in which the move is to be small.

    Returns:
      The move, [B, H, W, C].
    """
    scale = jnp.max(jnp.abs(gradient), axis=_AXES, initial=0.0)
    unit = gradient / balls.per_image(jnp.where(scale > 0, scale, 1.0))
    way = -jnp.sign(unit) * balls.per_image(jnp.sign(jnp.where(jnp.isnan(value), 0.0, value)))
    room = jnp.where(way > 0, 1.0 - point, jnp.where(way < 0, point, 0.0))
    weight = jnp.abs(unit)
    rate = jnp.ones_like(weight) if norm == "linf" else weight
    gain = weight * rate
    need = jnp.abs(value) / jnp.where(scale > 0, scale, 1.0)
    total = jnp.sum(weight * room, axis=_AXES)

    def go_on(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        taken, _, open_ = carry
        return (taken < _NEWTON_STEPS) & jnp.any(open_)

    def newton(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        taken, t, open_ = carry
        moved = balls.per_image(t) * rate
        missing = need - jnp.sum(weight * jnp.minimum(moved, room), axis=_AXES)
        slope = jnp.sum(jnp.where(moved < room, gain, 0.0), axis=_AXES)
        # A sample that has converged must not move on because another has not.
        open_ = open_ & (missing > _CONVERGED * need) & (slope > 0)
        return taken + 1, jnp.where(open_, t + missing / jnp.where(open_, slope, 1.0), t), open_

    reachable = need < total
    start = (jnp.int32(0), value * 0, reachable)
    _, t, _ = jax.lax.while_loop(go_on, newton, start)
    length = jnp.where(
        balls.per_image(reachable), jnp.minimum(balls.per_image(t) * rate, room), room
    )
    return way * length


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Judged:
    """What `judge_and_retreat` found; each has the batch first.

    Attributes:
      image: images [B, H, W, C]: the closest that fools, else the one that was to be judged.
      hit: whether it fools by more than rounding, bool [B].
      nan: the model gave NaN, bool [B].
      forward: forward passes used, int32 [B].
    """

    image: jax.Array
    hit: jax.Array
    nan: jax.Array
    forward: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Line:
    """A search between the clean image, at place 0, and the judged one, at 1."""

    low: jax.Array  # the farthest place known not to fool, [B]
    low_gap: jax.Array  # margin there, [B]
    high: jax.Array  # the closest place known to fool
    high_gap: jax.Array
    best: Judged
    open: jax.Array  # still searching, bool [B]


def judge_and_retreat(
    fn: LogitsFunction,
    clean: jax.Array,
    image: jax.Array,
    labels: jax.Array,
    targeted: bool,
    clean_gap: jax.Array,
    tolerance: float,
) -> Judged:
    """Judge images, and move those that fool back towards the clean ones.

    The first forward pass judges the images as they are. Others, at most seven, look on the line to
    the clean image, alternately where a linear interpolation of the margin expects the boundary (or
    rather a little before) and in the middle, until the expected gain is below the tolerance.

    Args:
      fn: the model.
      clean: images [B, H, W, C] that do not fool.
      image: images [B, H, W, C] to be judged.
      labels: [B], the targets when `targeted`.
      targeted: labels are targets to be reached.
      clean_gap: what the attacker raises (the margin) at the clean images, [B].
      tolerance: share of the perturbation that is not worth a forward pass.
    """

    def go_on(carry: tuple[jax.Array, _Line]) -> jax.Array:
        index, line = carry
        return (index < _LINE_PASSES) & jnp.any(line.open)

    def look(carry: tuple[jax.Array, _Line]) -> tuple[jax.Array, _Line]:
        index, line = carry
        share = _share(line)
        share = jnp.where(index % 2 == 1, share + _CAUTION * (1.0 - share), 0.5)
        place = line.low + share * (line.high - line.low)
        tried = jnp.clip(clean + balls.per_image(place) * (image - clean), 0.0, 1.0)
        tried = jnp.where(index == 0, image, tried)
        place = jnp.where(index == 0, 1.0, place)
        logits = fn(tried)
        gap = objectives.gain("margin", logits, labels, targeted)
        here = clear_hit(fn, tried, logits, labels, targeted)
        best = Judged(
            jnp.where(balls.per_image(here), tried, line.best.image),
            line.best.hit | here,
            line.best.nan | objectives.has_nan(logits),
            line.best.forward + 1,
        )
        high, high_gap = where(here, (place, gap), (line.high, line.high_gap))
        low, low_gap = where(here, (line.low, line.low_gap), (place, gap))
        new = _Line(low, low_gap, high, high_gap, best, line.open)
        worth = (1.0 - _share(new)) * (high - low) > tolerance * high
        # Each sample ends for itself, whatever the others need.
        return index + 1, where(line.open, replace(new, open=best.hit & worth), line)

    no, zero = labels != labels, clean_gap * 0
    start = _Line(zero, clean_gap, zero + 1.0, zero, Judged(image, no, no, labels * 0), ~no)
    return jax.lax.while_loop(go_on, look, (jnp.int32(0), start))[1].best


def _share(line: _Line) -> jax.Array:
    """Where between low and high the margin would vanish if it were linear, [B] in [0, 1]."""
    return jnp.clip(-line.low_gap / jnp.maximum(line.high_gap - line.low_gap, _TINY), 0.0, 1.0)
