"""Images through a compiled function, batch by batch, so that it sees one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.data import eval_batches
from memdef_jax.evaluation.sweeps.crafting import BATCH


def in_batches(fn: Callable[[jax.Array], Any], images: np.ndarray, batch_size: int = BATCH) -> Any:
    """What a function says of every image.

    Args:
      fn: from images [B, H, W, C] to a pytree of arrays [B, ...], an image a row.
      images: float32 [N, H, W, C] in [0, 1].
      batch_size: images at once, at most N; the last batch is filled up with images that are left
        out again.

    Returns:
      The pytree with NumPy arrays [N, ...], in the order of the images.

    Raises:
      InputError: when there is no image, or batch_size is below 1.
    """
    places, size = np.arange(len(images)), min(batch_size, max(1, len(images)))
    leaves, structure = [], None
    for batch in eval_batches((images, places), size):
        found, structure = jax.tree.flatten(fn(jnp.asarray(batch.images)))
        leaves.append([np.asarray(leaf)[batch.valid] for leaf in found])
    joined = [np.concatenate(parts) for parts in zip(*leaves)]
    return jax.tree.unflatten(structure, joined)
