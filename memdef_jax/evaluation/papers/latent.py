"""Where clean and attacked images lie in a defense's spaces.

Figure 3 of Memory Defense (the bottleneck with and without the memory), and Figures 1 to 6 of
MAD-VAE (images, latent vectors, purified images; in the last two under a search in latent space).
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from memdef_jax.attacks import Attack, Overpowered
from memdef_jax.checks import InputError
from memdef_jax.data import Split, to_float
from memdef_jax.defenses import MemoryDefense, VAEDefense
from memdef_jax.evaluation.batching import in_batches
from memdef_jax.evaluation.beyond.latent_search import search
from memdef_jax.evaluation.sweeps.crafting import BATCH, craft

METHODS = ("tsne", "umap")
LEAST = 6  # points that a method can say anything about
_PERPLEXITY = 30.0  # of t-SNE
_NEIGHBORS = 15  # of UMAP, its own default
_ASKED = 10  # neighbours that are asked for their labels
# What is embedded: of a Memory Defense the first two, of a VAE defense the others.
SPACES = {
    "without": "bottleneck without memory: the encoder's output",
    "with": "bottleneck with memory: as read out",
    "image": "pixels",
    "latent": "latent vectors",
    "output": "purified images, by the class named",
}

Projection = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Latents:
    """Vectors of clean images, then of the same images attacked; N in all.

    Attributes:
      vectors: by space, of `SPACES`, [N, D].
      labels: by space, int32 [N]: the true class, of "output" the class that the pipeline names.
      adversarial: bool [N].
    """

    vectors: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    adversarial: np.ndarray


@jax.jit
def bottleneck(defense: MemoryDefense, x: jax.Array) -> dict[str, jax.Array]:
    """Latent vectors of images [B, H, W, C] in a Memory Defense.

    Returns:
      "without": the encoder's output z (Equation 7); "with": what the memory gives back for
      classifier-A's slot (Equation 11); both [B, D].
    """

    def both(module: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = module.encode(x)
        return z, module.recall(module.mask(module.address(z), labels))

    stack = defense.variables["stack"]
    variables = {kind: stack[kind]["autoencoder"] for kind in ("params", "batch_stats")}
    module, slot = defense.spec.autoencoder(), defense.select(x)
    without, recalled = module.apply(variables, x, slot, method=both)
    return {"without": without, "with": recalled}


@jax.jit
def purification(defense: VAEDefense, x: jax.Array) -> dict[str, jax.Array]:
    """Images [B, H, W, C], the means of their latent vectors, and what is decoded, each [B, D]."""
    z = defense.embed(x)
    flat = [part.reshape(len(x), -1) for part in (x, z, defense.decode(z))]
    return dict(zip(("image", "latent", "output"), flat))


def has_space(defense: Any) -> bool:
    """Whether a defense has a latent space to look at."""
    if isinstance(defense, MemoryDefense):
        return bool(defense.spec.memory_rows)
    return isinstance(defense, VAEDefense)


def collect(defense: Any, split: Split, attack: Attack | Overpowered, seed: int = 0) -> Latents:
    """Vectors of a split's images, and of the same attacked.

    The attack is on the undefended classifier, but a search in latent space is on the whole
    pipeline; where it fails it leaves what the decoder makes of the image's own code.

    Raises:
      InputError: when the defense has no latent space.
    """
    if not has_space(defense):
        raise InputError(
            f"this {defense.kind} has no latent space (a Memory Defense with memory_rows 0 has "
            "none either); give a run with a memory or a VAE."
        )
    look = bottleneck if isinstance(defense, MemoryDefense) else purification
    if isinstance(attack, Overpowered):
        attacked, *_ = search(defense, split, attack, seed=seed)
    else:
        attacked = craft(attack, lambda x, y: defense.surfaces(x, y)["selector"], split, seed)
    images = np.concatenate([to_float(split.images), attacked])
    labels = np.concatenate([split.labels, split.labels])
    found = in_batches(partial(look, defense), images, BATCH)
    answer = in_batches(partial(_answers, defense), images, BATCH).astype(np.int32)
    vectors = {name: found[name] for name in SPACES if name in found}
    shown = {name: answer if name == "output" else labels for name in vectors}
    return Latents(vectors, shown, np.arange(len(images)) >= len(split))


_answers = jax.jit(lambda defense, x: jnp.argmax(defense(x), axis=-1))


def projection(method: str, seed: int = 0) -> Projection:
    """A map from vectors [N, D] to the plane [N, 2]; the same seed gives the same map.

    Args:
      method: "tsne" (van der Maaten and Hinton 2008, as in the paper) with perplexity 30, less for
        fewer than 91 points; or "umap" (McInnes et al. 2018, as in MAD-VAE) with 15 neighbours,
        less for fewer than 16 points, where umap-learn is installed.
      seed: of its random numbers.

    Raises:
      InputError: for another method, or without the package it needs; by the map, for fewer than
        six vectors.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    if method == "tsne":
        return partial(_tsne, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where TensorFlow is missing
            return partial(_umap, importlib.import_module("umap").UMAP, seed)
    except ImportError as error:
        raise InputError(
            f"method 'umap' needs the package umap-learn, which cannot be imported ({error}); "
            "install it, or use method 'tsne'."
        ) from error


def _check_points(vectors: np.ndarray) -> None:
    if len(vectors) < LEAST:
        raise InputError(
            f"{len(vectors)} points are too few to be projected; give {LEAST} or more, that is "
            f"{LEAST // 2} images and their attacked copies."
        )


def _umap(model: Any, seed: int, vectors: np.ndarray) -> np.ndarray:
    _check_points(vectors)
    neighbors = min(_NEIGHBORS, len(vectors) - 1)
    # One job: with a seed there are no more, and it warns that there are not. Nor is it a fault
    # that classes lie apart, of which it warns too.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        projected = model(n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(projected)


def _tsne(seed: int, vectors: np.ndarray) -> np.ndarray:
    _check_points(vectors)
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # its threads wait busily: on a busy machine ten times slower
        return model.fit_transform(vectors.astype(np.float64))


def embed(latents: Latents, project: Projection) -> dict[str, dict[str, Any]]:
    """Points in the plane, JSON-able: a dictionary a space.

    Clean and attacked images are projected together, so that their places can be compared.

    Returns:
      "points" [N, 2], "labels" [N], "adversarial" [N] and "alike", see `alike`, of each.
    """
    planes = {name: np.asarray(project(v), np.float64) for name, v in latents.vectors.items()}
    shares = alike(latents)
    return {
        name: {
            "points": points.round(4).tolist(),
            "labels": latents.labels[name].tolist(),
            "adversarial": latents.adversarial.tolist(),
            "alike": shares[name],
        }
        for name, points in planes.items()
    }


def alike(latents: Latents) -> dict[str, dict[str, float]]:
    """How far the classes lie apart in the spaces themselves, which no plane shows faithfully.

    Returns:
      By space the mean share of a vector's ten nearest neighbours (Euclidean; fewer where there are
      fewer) that have its label: "clean", of clean images among clean ones; "attacked", of attacked
      among attacked; "attacked among clean". An image is never its own neighbour, nor is its clean
      copy.
    """
    clean, attacked = ~latents.adversarial, latents.adversarial
    pairs = {
        "clean": (clean, clean),
        "attacked": (attacked, attacked),
        "attacked among clean": (attacked, clean),
    }
    return {
        space: {
            words: _share(vectors, latents.labels[space], asking, among)
            for words, (asking, among) in pairs.items()
        }
        for space, vectors in latents.vectors.items()
    }


def _share(vectors: np.ndarray, labels: np.ndarray, asking: np.ndarray, among: np.ndarray) -> float:
    """Both groups [N] hold the same images in the same order."""
    n = int(among.sum())
    with threadpool_limits(1):
        model = NearestNeighbors(n_neighbors=min(_ASKED + 1, n), algorithm="brute")
        nearest = model.fit(vectors[among]).kneighbors(vectors[asking], return_distance=False)
    others = nearest != np.arange(n)[:, None]
    others[others.all(axis=1), -1] = False  # as many for each
    same = labels[among][nearest] == labels[asking][:, None]
    return float(same[others].mean())
