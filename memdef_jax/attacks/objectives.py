"""What an attacker wants to raise, one function each: (logits [B, K], labels [B]) -> [B].

Written for the untargeted case, where the label is the one to move away from. A targeted attack
lowers the same function for its target: `gain` is the one place where that sign is applied.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-probability of the label, in nats (Goodfellow et al. 2015, section 4)."""
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Largest other logit minus the label's (Carlini & Wagner 2017, f6 without its clamp)."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1) - _pick(logits, labels)


OBJECTIVES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
}


def check_objective(name: str) -> None:
    """Raise InputError for an objective that does not exist."""
    if name not in OBJECTIVES:
        raise InputError(f"loss {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}.")


def gain(name: str, logits: jax.Array, labels: jax.Array, targeted: bool) -> jax.Array:
    """What the attacker raises, [B]: the objective, or its negative for the target."""
    value = OBJECTIVES[name](logits, labels)
    return -value if targeted else value


def fooled(logits: jax.Array, labels: jax.Array, targeted: bool) -> jax.Array:
    """Whether the prediction is what the attacker wants, bool [B]; never where a logit is NaN."""
    hit = jnp.argmax(logits, axis=-1) == labels
    return (hit if targeted else ~hit) & ~has_nan(logits)


def has_nan(logits: jax.Array) -> jax.Array:
    """Whether any logit of a sample is NaN, bool [B]."""
    return jnp.any(jnp.isnan(logits), axis=-1)


def gain_and_gradient(
    logits_fn: Logits, name: str, images: jax.Array, labels: jax.Array, targeted: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gain [B], logits [B, K] and the gain's gradient [B, H, W, C], by one forward and backward."""

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(z)
        value = gain(name, logits, labels, targeted)
        return jnp.sum(value), (value, logits)

    (_, (value, logits)), gradient = jax.value_and_grad(total, has_aux=True)(images)
    return value, logits, gradient


def _pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
