"""A search behind a generative defense: decoded images that its classifier misreads."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import Overpowered
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.data import Split, eval_batches, to_float

# The whole pipeline that reads a decoded image, or its classifier alone, as in the published code.
Target = Literal["deployed", "classifier"]


def search(
    defense: Any,
    split: Split,
    attack: Overpowered,
    *,
    target: Target = "deployed",
    batch_size: int = 50,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search a defense's latent space from the codes of a split's images.

    Args:
      defense: a callable pytree to logits that has `embed(x)`, codes [B, D], `decode(z)`, images,
        and `reader`, the classifier that reads them.
      split: S images.
      attack: the search.
      target: what it differentiates.
      batch_size: images attacked at once.
      seed: of the noise.

    Returns:
      Decoded images float32 [S, H, W, C] in [0, 1], those of failures too; whether they fool the
      target, bool [S]; and their distance, float32 [S], see `attacks.LatentResult`.
    """
    decode = jax.tree_util.Partial(type(defense).decode, defense)
    searched = defense if target == "deployed" else defense.reader
    keys = sample_keys(jax.random.key(seed), len(split))
    places, size = np.arange(len(split)), min(batch_size, len(split))
    parts = []
    for batch, place in zip(eval_batches(split, size), eval_batches((places, places), size)):
        x, y = to_float(jnp.asarray(batch.images)), jnp.asarray(batch.labels)
        found = attack.run(searched, decode, _embed(defense, x), x, y, key=keys[place.images])
        parts.append(
            [np.asarray(a)[batch.valid] for a in (found.images, found.success, found.distance)]
        )
    images, success, distance = (np.concatenate(arrays) for arrays in zip(*parts))
    return images, success, distance


_embed = jax.jit(lambda defense, x: defense.embed(x))
