"""Augmentation of float32 [B, H, W, C] batches with one typed key an image, all jit-able.

What happens to an image depends on its own key alone: not on its neighbours in the batch and not
on how many devices share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError

_ERASING_TRIES = 10  # rectangles drawn before an image is left whole; nearly all fit at once


def random_crop(keys: jax.Array, x: jax.Array, padding: int) -> jax.Array:
    """Pad every side with `padding` zeros, then cut the original size at a random place.

    Args:
      keys: typed keys [B].
      x: [B, H, W, C].
      padding: pixels, 0 or more; static.

    Raises:
      InputError: when padding is negative, or keys and images differ in number.
    """
    _check(keys, x)
    if padding < 0:
        raise InputError(f"crop padding {padding} is negative.")
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)
    rows = corners[:, :1] + jnp.arange(height)  # [B, H]
    columns = corners[:, 1:] + jnp.arange(width)  # [B, W]
    index = jnp.arange(len(x))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]


def random_flip(
    keys: jax.Array, x: jax.Array, *, horizontal: bool = True, vertical: bool = False
) -> jax.Array:
    """Mirror each image along each chosen direction with probability 1/2, independently.

    Args:
      keys: typed keys [B].
      x: [B, H, W, C].
      horizontal: left to right; static.
      vertical: top to bottom; static.

    Raises:
      InputError: when keys and images differ in number.
    """
    _check(keys, x)
    flips = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (2,)))(keys)[:, :, None, None, None]
    if horizontal:
        x = jnp.where(flips[:, 0], x[:, :, ::-1], x)
    if vertical:
        x = jnp.where(flips[:, 1], x[:, ::-1], x)
    return x


def random_erasing(
    keys: jax.Array,
    x: jax.Array,
    probability: float | jax.Array = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    fill: float | Sequence[float] = 0.4914,
) -> jax.Array:
    """Overwrite one random rectangle of an image (Zhong et al., Random Erasing, Algorithm 1).

    Area and aspect ratio are uniform in their ranges. The original draws again until the rectangle
    fits inside the image; here ten are drawn at once and the first that fits is used, or none.

    Args:
      keys: typed keys [B].
      x: [B, H, W, C].
      probability: that an image is touched at all.
      area: smallest and largest erased part of the image, in (0, 1].
      aspect: smallest and largest height / width.
      fill: the value written, or one a channel.

    Raises:
      InputError: when a range is empty or not positive, or keys and images differ in number.
    """
    _check(keys, x)
    for name, (low, high) in (("area", area), ("aspect", aspect)):
        if not 0.0 < low <= high:
            raise InputError(f"erasing {name} range ({low:g}, {high:g}) is empty or not positive.")
    height, width = x.shape[1:3]

    def rectangle(key: jax.Array) -> tuple[jax.Array, ...]:
        touch, sizes, ratios, place = jax.random.split(key, 4)
        tries = (_ERASING_TRIES,)
        target = height * width * jax.random.uniform(sizes, tries, minval=area[0], maxval=area[1])
        ratio = jax.random.uniform(ratios, tries, minval=aspect[0], maxval=aspect[1])
        tall, wide = jnp.round(jnp.sqrt(target * ratio)), jnp.round(jnp.sqrt(target / ratio))
        fits = (tall < height) & (wide < width)
        first = jnp.argmax(fits)
        tall, wide = tall[first], wide[first]
        u = jax.random.uniform(place, (2,))
        top = jnp.floor(u[0] * (height - tall + 1))
        left = jnp.floor(u[1] * (width - wide + 1))
        return jax.random.bernoulli(touch, probability) & fits.any(), top, left, tall, wide

    erase, top, left, tall, wide = (v[:, None] for v in jax.vmap(rectangle)(keys))
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = erase & (rows >= top) & (rows < top + tall)  # [B, H]
    in_columns = (columns >= left) & (columns < left + wide)  # [B, W]
    inside = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return jnp.where(inside, jnp.asarray(fill, x.dtype), x)


def gaussian_noise(
    keys: jax.Array, x: jax.Array, sigma: float | jax.Array, *, clip: bool = True
) -> jax.Array:
    """Add normal noise of standard deviation sigma, in units of [0, 1] pixels.

    Args:
      keys: typed keys [B].
      x: [B, H, W, C].
      sigma: one number, or one an image [B].
      clip: bring the result back into [0, 1]. Without it the noise keeps its distribution, as
        randomised smoothing and denoising need, but the result is no valid image; static.

    Raises:
      InputError: when keys and images differ in number.
    """
    _check(keys, x)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    scale = jnp.asarray(sigma, x.dtype)
    noisy = x + noise * (scale[:, None, None, None] if scale.ndim else scale)
    return jnp.clip(noisy, 0.0, 1.0) if clip else noisy


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which augmentations to apply, in this order: crop, flips, noise, erasing. Default: none.

    Attributes:
      crop_padding: pixels of zero padding before a random crop; 0 for no crop.
      horizontal_flip: mirror left to right with probability 1/2.
      vertical_flip: mirror top to bottom with probability 1/2.
      noise_sigma: standard deviation of clipped normal noise; 0 for none.
      erasing_probability: of random erasing with its default ranges; 0 for none.

    Raises:
      InputError: when a number is negative or the probability above 1.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    noise_sigma: float = 0.0
    erasing_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise InputError(f"crop_padding {self.crop_padding} is negative; use 0 for no crop.")
        if not self.noise_sigma >= 0.0:
            raise InputError(f"noise_sigma {self.noise_sigma:g} is negative; use 0 for no noise.")
        if not 0.0 <= self.erasing_probability <= 1.0:
            raise InputError(f"erasing_probability {self.erasing_probability:g} is outside [0, 1].")

    def apply(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Augment float32 [B, H, W, C] in [0, 1] with typed keys [B]; same shape and range."""

        # Each kind has its own stream: switching one on leaves the others as they were.
        def stream(number: int) -> jax.Array:
            return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

        if self.crop_padding:
            x = random_crop(stream(0), x, self.crop_padding)
        if self.horizontal_flip or self.vertical_flip:
            x = random_flip(
                stream(1), x, horizontal=self.horizontal_flip, vertical=self.vertical_flip
            )
        if self.noise_sigma:
            x = gaussian_noise(stream(2), x, self.noise_sigma)
        if self.erasing_probability:
            x = random_erasing(stream(3), x, self.erasing_probability)
        return x


def _check(keys: jax.Array, x: jax.Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"images are {x.dtype} {x.shape}; float32 [B, H, W, C] is needed.")
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != x.shape[:1]:
        raise InputError(
            f"keys are {keys.dtype} {keys.shape} beside {len(x)} images; "
            "one typed key an image is needed (jax.random.split)."
        )
