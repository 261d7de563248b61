"""The terms of the defenses' objectives, each per example; the caller reduces and weights them.

Memory Defense (Equation 13), Defense-VAE (the negative evidence lower bound), and MAD-VAE (section
2.2, proximity and distance to one learned centre a class).
"""

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


def bernoulli_nll(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Binary cross-entropy in nats, summed over pixels and channels, [B]: Defense-VAE's error.

    From logits, so that it stays finite where the sigmoid is 0 or 1.

    Args:
      x: images [B, H, W, C] in [0, 1], the targets.
      logits: [B, H, W, C], whose sigmoid is the reconstruction.
    """
    return optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=(1, 2, 3))


def kl_divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, summed over latent dimensions.

    Both arguments are [B, L], the result [B] (Kingma & Welling 2014, appendix B).
    """
    return 0.5 * jnp.sum(
        jnp.square(mean) + jnp.expm1(log_variance) - log_variance,  # exp - 1: exact near zero
        axis=-1,
    )


def _length(vectors: jax.Array) -> jax.Array:
    """Euclidean length over the last axis, with gradient zero (not NaN) where it is zero."""
    square = jnp.sum(jnp.square(vectors), axis=-1)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def centre_distances(z: jax.Array, centres: jax.Array) -> jax.Array:
    """Euclidean distance of each latent vector to each centre, [B, K].

    Where the two coincide the gradient is zero.

    Args:
      z: latent vectors [B, L].
      centres: one row a class, [K, L].
    """
    return _length(z[:, None] - centres)


def proximity(z: jax.Array, labels: jax.Array, centres: jax.Array) -> jax.Array:
    """||z - c_y||, [B]: how far each latent vector is from its class's centre (MAD-VAE's L_p).

    Args:
      z: latent vectors [B, L].
      labels: y, int [B].
      centres: one row a class, [K, L].
    """
    return _length(z - centres[labels])


def distance(
    z: jax.Array, labels: jax.Array, centres: jax.Array, between_centres: bool = True
) -> jax.Array:
    """1/(K-1) sum over j != y of (||z - c_j|| + ||c_y - c_j||), [B]: MAD-VAE's L_d, to be raised.

    Args:
      z: latent vectors [B, L].
      labels: y, int [B].
      centres: one row a class, [K, L].
      between_centres: with the second term, which the paper has and its published code lacks.

    Raises:
      InputError: for fewer than two centres.
    """
    classes = centres.shape[0]
    if classes < 2:
        raise InputError(
            f"centres {classes} are too few for the distance to the other classes; give 2 or more."
        )
    lengths = centre_distances(z, centres)
    if between_centres:
        lengths = lengths + centre_distances(centres[labels], centres)
    others = 1.0 - jax.nn.one_hot(labels, classes)
    return jnp.sum(lengths * others, axis=-1) / (classes - 1)
