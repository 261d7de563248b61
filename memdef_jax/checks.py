"""Checks of what users hand in: each failure is one sentence with the value, the limit, the remedy.

They run on concrete arrays only. Under a trace (jit, vmap, grad) values are unknown and only shapes
and dtypes are checked.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """What the user gave cannot be used. The message is one sentence fit to be shown as it is."""


def shown(value: Any, most: int = 100) -> str:
    """As much of a value that a file holds as belongs in a sentence."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def is_traced(*trees: Any) -> bool:
    """Whether any leaf of the given pytrees is a tracer, that is, has no value yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_images(x: Any, name: str = "images") -> None:
    """Check a batch of images: float32 [B, H, W, C], finite, within [0, 1].

    Raises:
      InputError: on another rank, dtype or range, or on NaN.
    """
    shape, dtype = np.shape(x), getattr(x, "dtype", None)
    if len(shape) != 4:
        raise InputError(
            f"{name} have shape {shape}; four axes [batch, height, width, channels] are needed, "
            "so add the missing axis (a single image is x[None])."
        )
    if dtype != jnp.float32:
        raise InputError(
            f"{name} have dtype {dtype}; float32 in [0, 1] is needed: "
            "convert uint8 with x.astype('float32') / 255."
        )
    if is_traced(x) or 0 in shape:
        return
    values = np.asarray(x)
    low, high = float(values.min()), float(values.max())
    if np.isnan(low) or np.isnan(high):
        raise InputError(f"{name} contain NaN; clean the data before attacking or training on it.")
    if low < 0.0 or high > 1.0:
        raise InputError(
            f"{name} lie in [{low:g}, {high:g}], outside [0, 1]; "
            "undo any normalisation and put it inside the model instead."
        )


def check_labels(y: Any, batch: int, classes: int | None = None) -> None:
    """Check integer labels [B], one an image, each in [0, classes).

    Raises:
      InputError: on another length or dtype, or a label outside the classes.
    """
    shape, dtype = np.shape(y), getattr(y, "dtype", None)
    if shape != (batch,):
        raise InputError(
            f"labels have shape {shape} beside {batch} images; one integer an image is needed."
        )
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(f"labels have dtype {dtype}; int32 class indices are needed.")
    if is_traced(y) or batch == 0 or classes is None:
        return
    values = np.asarray(y)
    if values.min() < 0 or values.max() >= classes:
        bad = values.min() if values.min() < 0 else values.max()
        raise InputError(f"label {bad} is outside the {classes} classes 0 to {classes - 1}.")


def check_eps(eps: Any, name: str = "eps") -> None:
    """Check a perturbation budget in units of [0, 1] pixels: finite and within [0, 1].

    An L2 budget may exceed 1 and is checked for finiteness and sign by the attack itself.

    Raises:
      InputError: when any value is negative, NaN or above 1.
    """
    if is_traced(eps):
        return
    values = np.asarray(eps, dtype=np.float64)
    bad = values[~((values >= 0.0) & (values <= 1.0))]
    if bad.size:
        raise InputError(
            f"{name} {bad.flat[0]:g} is outside [0, 1]; "
            "give it in units of [0, 1] pixels, for example 8/255."
        )
