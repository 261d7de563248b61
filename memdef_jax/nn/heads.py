"""Heads: the last layer of a classifier, from features [B, D] to logits [B, K]."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.layers import Dense
from memdef_jax.nn.memory import cosine_logits

HEADS = ("linear", "memory")


class MemoryHead(nn.Module):
    """Memory Defense's class-slotted memory as a classifier, robust by training alone.

    logit_c = log(mean over the rows j of class c of exp(scale * cos(z, M_cj))): the addressing of
    arXiv 2202.02595 (Equation 8) read out by class instead of decoded. Logits are bounded by
    `scale`, whatever the features.

    Attributes:
      classes: K.
      rows: memory rows of each class.
      scale: inverse temperature.
    """

    classes: int
    rows: int = 5
    scale: float = 15.0

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        # Only a row's direction counts; its length says how far one of Adam's steps turns it.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        shape = (self.classes * self.rows, z.shape[-1])
        memory = self.param("memory", init, shape, jnp.float32)
        z = z.astype(jnp.float32)
        similarity = cosine_logits(z, memory).reshape(-1, self.classes, self.rows)
        logits = jax.nn.logsumexp(self.scale * similarity, axis=-1)
        return logits - jnp.log(jnp.float32(self.rows))


def head(name: str, classes: int) -> nn.Module:
    """The last layer of a classifier by name, one of `HEADS`.

    Raises:
      InputError: for an unknown name.
    """
    check_head(name)
    return Dense(classes) if name == "linear" else MemoryHead(classes)


def check_head(name: str) -> None:
    """Raise InputError for a head that does not exist."""
    if name not in HEADS:
        raise InputError(f"head {name!r} is unknown; use one of {', '.join(HEADS)}.")
