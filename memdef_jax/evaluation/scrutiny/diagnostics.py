"""Template diagnostics: does a reconstruction show the image, or only its class?

If every image of a class is rebuilt alike and classifier-B reads whatever slot it is shown, the
pipeline's answer is classifier-A's, and so is its robustness.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.data import Split, eval_batches, to_float
from memdef_jax.defenses import MemoryDefense
from memdef_jax.nn.losses import reconstruction_error

_BATCH = 250
# What `template_diagnostics` measures, in words.
DIAGNOSTICS = {
    "image_spread": "spread of a class's images (mean standard deviation of a pixel)",
    "reconstruction_spread": "spread of their reconstructions",
    "mse": "mean squared error of the reconstruction from the true slot",
    "class_mean_mse": "the same of the class's mean training image",
    "follows_wrong_slot": "share that classifier-B calls by the deliberately wrong slot shown",
    "agreement": "share of clean images on which the pipeline answers as classifier-A",
}


@jax.jit
def _rebuild(
    defense: MemoryDefense, x: jax.Array, y: jax.Array, wrong: jax.Array
) -> tuple[jax.Array, ...]:
    own = defense.reconstruct(x, y)
    follows = jnp.argmax(defense.classify(defense.reconstruct(x, wrong)), axis=-1) == wrong
    slot = defense.select(x)
    agrees = jnp.argmax(defense.classify(defense.reconstruct(x, slot)), axis=-1) == slot
    return own, reconstruction_error(x, own), follows, agrees


def template_diagnostics(
    defense: MemoryDefense, train: Split, test: Split, seed: int = 0
) -> dict[str, float]:
    """Measure how much of an image survives the memory.

    Args:
      defense: the pipeline.
      train: for each class's mean image.
      test: the images rebuilt, from their true slots.
      seed: of the deliberately wrong slots.

    Returns:
      "image_spread" and "reconstruction_spread": standard deviation over a class's images, mean
      over pixels and classes; "mse": of the reconstruction from the true slot; "class_mean_mse":
      of the class's mean training image instead; "follows_wrong_slot": share of images, each
      shown the slot of another class drawn at random, that classifier-B calls that class;
      "agreement": share of clean images on which the pipeline answers as classifier-A.
    """
    classes = defense.spec.classes
    means = np.stack([train.images[train.labels == c].mean(axis=0) / 255 for c in range(classes)])
    shift = np.random.default_rng(seed).integers(1, classes, len(test))
    wrong = ((test.labels + shift) % classes).astype(np.int32)
    parts = []
    size = min(_BATCH, len(test))
    for batch, other in zip(eval_batches(test, size), eval_batches((wrong, wrong), size)):
        x = to_float(jnp.asarray(batch.images))
        built = _rebuild(defense, x, jnp.asarray(batch.labels), jnp.asarray(other.labels))
        parts.append([np.asarray(array)[batch.valid] for array in built])
    own, mse, follows, agrees = (np.concatenate(arrays) for arrays in zip(*parts))
    images = np.asarray(to_float(test.images))
    return {
        "image_spread": _spread(images, test.labels),
        "reconstruction_spread": _spread(own, test.labels),
        "mse": float(mse.mean()),
        "class_mean_mse": float(np.square(images - means[test.labels]).mean()),
        "follows_wrong_slot": float(follows.mean()),
        "agreement": float(agrees.mean()),
    }


def _spread(images: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([images[labels == c].std(axis=0).mean() for c in np.unique(labels)]))
