"""Codes of a generative defense in place of images: what an attack on its latent space sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import objectives
from memdef_jax.attacks.logits import Logits, LogitsFunction, judge, take
from memdef_jax.checks import InputError, is_traced

Decode = Callable[[jax.Array], jax.Array]
_AXES = (1, 2, 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoded:
    """A classifier behind a decoder: codes [B, 1, 1, D] -> logits [B, K].

    A code is a row of pixels, because the driver of attacks knows images only.

    Attributes:
      logits_fn: the classifier, a callable pytree from images [B, H, W, C] to logits [B, K].
      decode: a callable pytree from codes [B, D] to images.
      reference: images [B, H, W, C] in [0, 1] that those of the codes are compared with.
    """

    logits_fn: Any
    decode: Any
    reference: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        return LogitsFunction.of(self.logits_fn)(self.image(z))

    def image(self, z: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of codes, clipped to [0, 1].

        Raises:
          InputError: when the decoder's images are not of the references' shape.
        """
        image = self.decode(z[:, 0, 0])
        if np.shape(image) != np.shape(self.reference):
            raise InputError(
                f"decode returned shape {np.shape(image)} for reference images of shape "
                f"{np.shape(self.reference)}; both must be the same."
            )
        return jnp.clip(jnp.asarray(image, jnp.float32), 0.0, 1.0)

    def distance(self, image: jax.Array) -> jax.Array:
        """Mean squared error per pixel of images to their references, [B]."""
        return jnp.mean((image - self.reference) ** 2, axis=_AXES)

    def take(self, indices: jax.Array) -> Decoded:
        """The same for a re-packed batch."""
        return Decoded(
            take(self.logits_fn, indices), take(self.decode, indices), self.reference[indices]
        )

    def judge(self) -> Decoded | None:
        """What decides for a random classifier: its vote."""
        vote = judge(self.logits_fn)
        return None if vote is None else replace(self, logits_fn=vote)


def joined(logits_fn: Logits, decode: Decode, reference: jax.Array) -> LogitsFunction:
    """Classifier and decoder as one function of codes, whose arrays are arguments of programs.

    Raises:
      InputError: when one of the two cannot be called.
    """
    if not callable(decode):
        raise InputError(
            f"decode is a {type(decode).__name__}, which cannot be called; "
            "give a function of codes [B, D] that returns images."
        )
    LogitsFunction.of(logits_fn)  # refuses what cannot be called, by its name
    return LogitsFunction.of(Decoded(logits_fn, decode, reference))


def check_codes(z: Any, batch: int) -> None:
    """Check codes: floating point [B, D], finite.

    Raises:
      InputError: on another shape or dtype, or on NaN or infinity where values are known.
    """
    shape, dtype = np.shape(z), getattr(z, "dtype", None)
    if len(shape) != 2 or shape[0] != batch or shape[1] < 1:
        raise InputError(
            f"z has shape {shape} beside {batch} reference images; give codes [{batch}, D]."
        )
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"z has dtype {dtype}; float32 codes are needed.")
    if not is_traced(z) and not np.isfinite(np.asarray(z)).all():
        raise InputError("z holds NaN or infinity; look for an overflow in the encoder.")


def noisy_margin(
    model: Decoded,
    image: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    rho: jax.Array,
    draws: int,
    group: int | None,
) -> tuple[jax.Array, jax.Array]:
    """How far the classifier is from an error under noise of a given length.

    Args:
      model: whose classifier is asked.
      image: [B, H, W, C]; with noise it is not clipped.
      y: labels [B].
      keys: typed, [B].
      rho: L2 length of the noise [B], in [0, 1] pixels.
      draws: of noise, for each image.
      group: draws evaluated together, a divisor of `draws`; None for all.

    Returns:
      The label's logit minus the largest other, mean over the draws [B]; its gradient in the image
      [B, H, W, C], entries that are NaN or infinite being zero.
    """
    group, batch = group or draws, len(image)
    copies = jnp.repeat(jnp.arange(batch), group)
    logits_fn = LogitsFunction.of(take(model.logits_fn, copies))

    def one(key: jax.Array, draw: jax.Array) -> jax.Array:
        # A key for each draw, so that the draws do not depend on how they are grouped.
        noise = jax.random.normal(jax.random.fold_in(key, draw), image.shape[1:])
        return noise / jnp.maximum(jnp.sqrt(jnp.sum(noise**2)), 1e-12)

    def of_group(first: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        numbers = first + jnp.arange(group)
        noise = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, numbers)
        noise = rho[:, None, None, None, None] * noise

        def answers(image: jax.Array) -> jax.Array:
            noisy = image[:, None] + noise
            return logits_fn(noisy.reshape(-1, *image.shape[1:]))

        def mean_margin(logits: jax.Array) -> jax.Array:
            return -objectives.margin(logits, y[copies]).reshape(batch, group).mean(1)

        value, _, slope = objectives.value_and_gradient(answers, image, mean_margin)
        return value, finite(slope)

    count = draws // group
    if count == 1:
        return of_group(0)
    add = lambda i, total: jax.tree.map(jnp.add, total, of_group(i * group))  # noqa: E731
    zero = jnp.sum(image * 0, axis=_AXES), image * 0  # they vary as the image does
    value, slope = jax.lax.fori_loop(0, count, add, zero)
    return value / count, slope / count


def finite(gradient: jax.Array) -> jax.Array:
    """The gradient, zero where it is NaN or infinite."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)
