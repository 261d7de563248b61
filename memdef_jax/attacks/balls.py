"""The two threat balls, Linf and L2, in [0, 1] pixel space: norms, projections, draws, steps.

Every function is per sample: radii and step sizes are [B], images [B, H, W, C]. Clipping to [0, 1]
after projecting never leaves the ball, because the clean image is itself in [0, 1] and so clipping
only shortens each coordinate of the perturbation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError

NORMS = ("linf", "l2")
_AXES = (1, 2, 3)


def check_norm(norm: str) -> None:
    """Raise InputError for a norm that is neither "linf" nor "l2"."""
    if norm not in NORMS:
        raise InputError(f"norm {norm!r} is unknown; choose one of {', '.join(NORMS)}.")


def per_image(values: jax.Array) -> jax.Array:
    """[B] as [B, 1, 1, 1], to be broadcast against images."""
    return values[:, None, None, None]


def length(delta: jax.Array, norm: str) -> jax.Array:
    """Norm [B] of perturbations [B, H, W, C]; "l0" counts changed pixels, whatever the channel."""
    if norm == "l0":
        return jnp.sum(jnp.any(delta != 0, axis=3), axis=(1, 2)).astype(delta.dtype)
    if norm == "linf":
        return jnp.max(jnp.abs(delta), axis=_AXES, initial=0.0)
    scale = jnp.max(jnp.abs(delta), axis=_AXES, initial=0.0)
    # Squares of very small numbers vanish in float32, so measure in units of the largest entry.
    unit = jnp.where(scale > 0, scale, 1.0)
    return unit * jnp.sqrt(jnp.sum((delta / per_image(unit)) ** 2, axis=_AXES))


def project(image: jax.Array, clean: jax.Array, eps: jax.Array, norm: str) -> jax.Array:
    """Nearest image within eps of the clean one and then within [0, 1]."""
    delta = image - clean
    if norm == "linf":
        delta = jnp.clip(delta, -per_image(eps), per_image(eps))
    else:
        size = length(delta, norm)
        shrink = jnp.where(size > eps, eps / jnp.where(size > 0, size, 1.0), 1.0)
        delta = delta * per_image(shrink)
    return jnp.clip(clean + delta, 0.0, 1.0)


def random_start(clean: jax.Array, eps: jax.Array, norm: str, keys: jax.Array) -> jax.Array:
    """Image drawn uniformly in the ball, then clipped to [0, 1]; keys [B], one an image."""
    shape = clean.shape[1:]
    if norm == "linf":
        draw = lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)  # noqa: E731
    else:
        # A uniform point of the d-ball has a uniform direction and a radius of U^(1/d).
        def draw(key: jax.Array) -> jax.Array:
            direction, radius = jax.random.split(key)
            noise = jax.random.normal(direction, shape)
            size = jnp.maximum(jnp.sqrt(jnp.sum(noise**2)), 1e-12)
            return noise / size * jax.random.uniform(radius) ** (1.0 / max(noise.size, 1))

    return project(clean + per_image(eps) * jax.vmap(draw)(keys), clean, eps, norm)


def surface_start(clean: jax.Array, eps: jax.Array, norm: str, keys: jax.Array) -> jax.Array:
    """Image drawn on the surface of the ball, then clipped to [0, 1]; keys [B], one an image.

    Linf: uniform noise, stretched until its largest entry is eps. L2: a uniform direction.
    """
    if norm == "linf":
        draw = lambda key: jax.random.uniform(key, clean.shape[1:], minval=-1.0, maxval=1.0)  # noqa: E731
    else:
        draw = lambda key: jax.random.normal(key, clean.shape[1:])  # noqa: E731
    noise = jax.vmap(draw)(keys)
    noise = noise / per_image(jnp.maximum(length(noise, norm), 1e-12))
    return project(clean + per_image(eps) * noise, clean, eps, norm)


def ascent(gradient: jax.Array, norm: str) -> jax.Array:
    """Unit step of steepest ascent: the sign for Linf, the normalised gradient for L2.

    A zero gradient gives a zero step, and so does every entry that is NaN or infinite.
    """
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    if norm == "linf":
        return jnp.sign(gradient)
    # Divide by the largest entry first: saturated models have gradients whose squares underflow.
    scale = jnp.max(jnp.abs(gradient), axis=_AXES, initial=0.0)
    gradient = gradient / per_image(jnp.where(scale > 0, scale, 1.0))
    size = jnp.sqrt(jnp.sum(gradient**2, axis=_AXES))
    return gradient / per_image(jnp.where(size > 0, size, 1.0))


def unit_mean(gradient: jax.Array) -> jax.Array:
    """Gradients divided by their mean absolute value; zero where that vanishes."""
    # By the largest entry first: the mean of very small numbers would lose their digits.
    scale = jnp.max(jnp.abs(gradient), axis=_AXES, initial=0.0)
    gradient = gradient / per_image(jnp.where(scale > 0, scale, 1.0))
    mean = jnp.mean(jnp.abs(gradient), axis=_AXES)
    return gradient / per_image(jnp.where(mean > 0, mean, 1.0))
