"""Resizing of uint8 images, and turning them gray."""

from __future__ import annotations

import numpy as np
from PIL import Image

from memdef_jax.checks import InputError

Size = int | tuple[int, int]
_LUMA = np.array([0.299, 0.587, 0.114])


def image_size_pair(image_size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number or two.

    Raises:
      InputError: when it is no one or two positive integers.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise InputError(
            f"image_size {image_size!r} is no size; give one positive integer or (height, width)."
        )
    return pair[0], pair[1]


def to_gray(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, C] as gray ones [N, H, W, 1]; those of one channel stay.

    The luma of ITU-R BT.601, 0.299 red + 0.587 green + 0.114 blue, rounded.
    """
    if images.shape[3] == 1:
        return images
    luma = np.empty((*images.shape[:3], 1), np.uint8)
    for index, image in enumerate(images):  # one at a time: all as floats would fill the memory
        luma[index, ..., 0] = np.rint(image @ _LUMA)
    return luma


def resize(images: np.ndarray, image_size: Size) -> np.ndarray:
    """Resize uint8 [N, H, W, C] bilinearly (antialiased when shrinking), C being 1 or 3.

    Raises:
      InputError: when image_size is no size.
    """
    height, width = image_size_pair(image_size)
    if images.shape[1:3] == (height, width):
        return images
    result = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        result[index] = np.asarray(resized).reshape(result.shape[1:])
    return result
