"""Adam on images kept in [0, 1] by a change of variables, for the Carlini & Wagner attacks.

An image is (1 + tanh(w) / s) / 2. Carlini & Wagner (2017, section V-B) have s = 1, where a pixel of
exactly 0 or 1 lies at infinity; moved 1e-6 away from there, as is usual, it lies where tanh is so
flat that hundreds of iterations do not move it. With s below 1 both ends are at a finite w and a
useful slope, and w is clipped there. On Fashion-MNIST, where half of the pixels are 0, that makes
the perturbations found about 30% smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls

_SCALE = 0.8
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8
_ROUNDING = 1e-6
_STALL = 0.9999


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Descent:
    """Each sample's variable and Adam's memory; all [B] or [B, H, W, C]."""

    w: jax.Array
    m: jax.Array  # first moment
    v: jax.Array  # second moment
    iteration: jax.Array
    lowest: jax.Array  # loss so far
    previous: jax.Array  # lowest loss at the last check for a stall


def begin(image: jax.Array) -> Descent:
    """Adam at an image [B, H, W, C]."""
    zero, none = image * 0, jnp.sum(image * 0, axis=(1, 2, 3))  # they vary as the image does
    w = jnp.arctanh((2.0 * image - 1.0) * _SCALE)
    return Descent(w, zero, zero, none.astype(jnp.int32), none + jnp.inf, none + jnp.inf)


def to_image(w: jax.Array, x: jax.Array) -> jax.Array:
    """Image in [0, 1], with the very pixels of the clean one where it is within rounding of them.

    Adam follows a gradient however small, and would otherwise follow that of rounding errors.
    """
    image = jnp.clip((1.0 + jnp.tanh(w) / _SCALE) / 2.0, 0.0, 1.0)
    return jnp.where(jnp.abs(image - x) < _ROUNDING, x, image)


def descend(own: Descent, loss: jax.Array, gradient: jax.Array, rate: jax.Array) -> Descent:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), each sample at its own iteration.

    Args:
      own: where it stands.
      loss: [B], there.
      gradient: of the loss with respect to the image, [B, H, W, C].
      rate: step size in units of w, [B].
    """
    gradient = gradient * (1.0 - jnp.tanh(own.w) ** 2) / (2.0 * _SCALE)
    iteration = own.iteration + 1
    m = _BETA1 * own.m + (1 - _BETA1) * gradient
    v = _BETA2 * own.v + (1 - _BETA2) * gradient**2
    rate = balls.per_image(rate / (1 - _BETA1**iteration))
    correction = balls.per_image(1 - _BETA2**iteration)
    end = jnp.arctanh(jnp.float32(_SCALE))
    w = jnp.clip(own.w - rate * m / (jnp.sqrt(v / correction) + _TINY), -end, end)
    return Descent(w, m, v, iteration, jnp.minimum(own.lowest, loss), own.previous)


def spent(own: Descent, steps: int, abort_early: bool) -> tuple[Descent, jax.Array]:
    """Who has used so many iterations or, with `abort_early`, has stalled, bool [B].

    A sample has stalled when, at a check every steps/10 iterations, its lowest loss is not 0.01%
    below that at the check before. (The loss itself, as published, also rises while Adam swings.)
    """
    ended = own.iteration >= steps
    if not abort_early:
        return own, ended
    check = own.iteration % max(steps // 10, 1) == 0
    ended |= check & (own.lowest > _STALL * own.previous)
    return replace(own, previous=jnp.where(check, own.lowest, own.previous)), ended
