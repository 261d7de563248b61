"""The terms of Memory Defense's objective (Equation 13), each per example; the caller reduces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from memdef_jax.checks import InputError
from memdef_jax.nn.memory import EPSILON


def reconstruction_error(
    x: jax.Array, reconstruction: jax.Array, reduction: str = "mean"
) -> jax.Array:
    """Squared error of each image, [B]; both arguments [B, H, W, C].

    Args:
      x: the images.
      reconstruction: what the decoder made of them.
      reduction: "mean" over the pixels, or "sum".

    Raises:
      InputError: on another reduction.
    """
    square = jnp.square(x - reconstruction)
    if reduction == "mean":
        return square.mean(axis=(1, 2, 3))
    if reduction == "sum":
        return square.sum(axis=(1, 2, 3))
    raise InputError(f"MSE reduction {reduction!r} is unknown; use 'mean' or 'sum'.")


def entropy(weights: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Entropy -sum_i w_i log(w_i + epsilon) in nats of each row of [B, N], shape [B].

    The epsilon keeps value and gradient finite where a weight is exactly zero; `xlogy(w, w)` would
    be zero there with a NaN gradient.
    """
    return -jnp.sum(weights * jnp.log(weights + epsilon), axis=-1)


def bounded_penalty(non_target: jax.Array, classes: int, beta: float) -> jax.Array:
    """beta * sigmoid(non_target / (K - 1)), the term subtracted in Equation 13; in [0.5, 1) beta.

    The paper's N is the number of classes here. Its factor is a relic: all the other classes' rows
    are decoded together, once.
    """
    return beta * jax.nn.sigmoid(non_target / (classes - 1))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats of each example, [B]; logits [B, K], labels int [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
