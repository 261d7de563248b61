"""The latent space with and without the memory: Figure 3 of the Memory Defense paper."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from memdef_jax.attacks import Attack
from memdef_jax.checks import InputError
from memdef_jax.data import Split, eval_batches, to_float
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation.crafting import BATCH, always, craft

METHODS = ("tsne", "umap")
_LEAST = 6  # points that t-SNE can say anything about
_PERPLEXITY = 30.0
SPACES = {"without": "without memory: the encoder's output", "with": "with memory: read out"}

Projection = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Latents:
    """Bottleneck vectors of clean images, then of the same images attacked; N in all.

    Attributes:
      vectors: "without" the memory, the encoder's output [N, D]; "with" it, what is read from the
        slot that classifier-A chooses [N, D].
      labels: true class int32 [N].
      adversarial: bool [N].
    """

    vectors: Mapping[str, np.ndarray]
    labels: np.ndarray
    adversarial: np.ndarray


@jax.jit
def bottleneck(defense: MemoryDefense, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latent vectors of images [B, H, W, C].

    Returns:
      The encoder's output z (Equation 7), and what the memory gives back for classifier-A's slot
      (Equation 11), both [B, D].
    """

    def both(module: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = module.encode(x)
        return z, module.recall(module.mask(module.address(z), labels))

    stack = defense.variables["stack"]
    variables = {kind: stack[kind]["autoencoder"] for kind in ("params", "batch_stats")}
    found: Any = defense.spec.autoencoder().apply(variables, x, defense.select(x), method=both)
    return found


def collect(defense: MemoryDefense, split: Split, attack: Attack, seed: int = 0) -> Latents:
    """Bottleneck vectors of a split's images, and of the same attacked through classifier-A.

    Raises:
      InputError: when the defense has no memory.
    """
    if not defense.spec.memory_rows:
        raise InputError("this defense has memory_rows 0; give a run with a memory.")
    clean = to_float(split.images)
    images = np.concatenate([clean, craft(attack, always(defense.selector), split, seed)])
    labels = np.concatenate([split.labels, split.labels])
    parts = []
    for batch in eval_batches((images, labels), min(BATCH, len(images))):
        found = bottleneck(defense, jnp.asarray(batch.images))
        parts.append([np.asarray(vectors)[batch.valid] for vectors in found])
    without, recalled = (np.concatenate(vectors) for vectors in zip(*parts))
    adversarial = np.arange(len(images)) >= len(split)
    return Latents({"without": without, "with": recalled}, labels, adversarial)


def projection(method: str, seed: int = 0) -> Projection:
    """A map from vectors [N, D] to the plane [N, 2]; the same seed gives the same map.

    Args:
      method: "tsne" (van der Maaten and Hinton 2008, as in the paper) with perplexity 30, less for
        fewer than 91 points; or "umap" (McInnes et al. 2018) where umap-learn is installed.
      seed: of its random numbers.

    Raises:
      InputError: for another method, or without the package it needs.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    if method == "tsne":
        return lambda vectors: _tsne(vectors, seed)
    if importlib.util.find_spec("umap") is None:
        raise InputError(
            "method 'umap' needs the package umap-learn, which is not installed; "
            "install it, or use method 'tsne'."
        )
    umap: Any = importlib.import_module("umap")
    return lambda vectors: np.asarray(umap.UMAP(random_state=seed).fit_transform(vectors))


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    if len(vectors) < _LEAST:
        raise InputError(
            f"{len(vectors)} points are too few for t-SNE; give {_LEAST} or more, that is "
            f"{_LEAST // 2} images and their attacked copies."
        )
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # its threads wait busily: on a busy machine ten times slower
        return model.fit_transform(vectors.astype(np.float64))


def embed(latents: Latents, project: Projection) -> dict[str, dict[str, Any]]:
    """Points in the plane, JSON-able: under "without" and "with" the memory each a dictionary.

    Clean and attacked images are projected together, so that their places can be compared.

    Returns:
      "points" [N, 2], "labels" [N] and "adversarial" [N] of each.
    """
    return {
        name: {
            "points": np.asarray(project(vectors), np.float64).round(4).tolist(),
            "labels": latents.labels.tolist(),
            "adversarial": latents.adversarial.tolist(),
        }
        for name, vectors in latents.vectors.items()
    }
