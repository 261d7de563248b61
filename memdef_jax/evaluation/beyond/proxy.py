"""A stand-in for people: a clean classifier that says whether an image changed its class.

An attack with a large budget can turn an image into another class that people would name so too;
then the defense that names it so is right (MAD-VAE, arXiv 2011.01755, section 3.6). Asking people
is out of reach of a program. A classifier that no defense was trained with is asked in their place;
it can be fooled as well, so its verdict is worth no more than a doubt.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax import data
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, Split, to_float
from memdef_jax.defenses import ClassifierConfig
from memdef_jax.defenses.selector import SelectorConfig, selector_loss
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.evaluation.batching import in_batches
from memdef_jax.nn import Bound, classifier
from memdef_jax.training import AXIS, Reporter, Silent, make_mesh
from memdef_jax.training.run import open_run

ARCHITECTURE = "c"
KIND = "proxy"
_PURPOSE = 40  # of its random numbers; no training of a defense uses it
_SAVE_EVERY = 200


def fit_proxy(
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    architecture: str = ARCHITECTURE,
    epochs: int = 2,
    seed: int = 1,
    reporter: Reporter | None = None,
) -> Bound:
    """Train a classifier on the plain images of the training split, or go on training.

    Args:
      dataset: what it is trained on.
      folder: its own, for checkpoints.
      architecture: one of `nn.CLASSIFIERS`.
      epochs: over the training split, with batches of 100 where there are as many images.
      seed: of everything random.
      reporter: told of progress.

    Raises:
      InputError: before any work, when something does not fit or the folder holds another one;
        `TrainingDiverged` later.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative; use 0 or more.")
    size = min(ClassifierConfig().batch_size, len(dataset.train))
    config = ClassifierConfig(architecture=architecture, epochs=epochs, batch_size=size)
    classes, shape = len(dataset.info.class_names), dataset.info.image_shape
    module = classifier(architecture, classes)
    open_run(folder, _description(dataset, config, seed))
    # One device: it is enough for so small a network, and every batch fits it.
    mesh, silent = make_mesh(1), reporter or Silent()
    trainer = Trainer(dataset.train, folder, seed, _SAVE_EVERY, mesh, "shard_map", silent)
    initial = jax.jit(module.init)(trainer.key(_PURPOSE + 100), jnp.zeros((1, *shape), jnp.float32))
    found = trainer.run(
        KIND,
        _PURPOSE,
        selector_loss(classifier(architecture, classes, AXIS), SelectorConfig(), in_loop=False),
        {"batch_stats": {}, **initial},
        optax.adam(config.learning_rate),
        trainer.benign_batches(size, _PURPOSE),
        epochs * data.steps_per_epoch(len(dataset.train), size),
        size,
    )
    return Bound(module, jax.device_get(found))


def _description(dataset: Dataset, config: ClassifierConfig, seed: int) -> Mapping[str, Any]:
    return {
        "kind": KIND,
        "dataset": dataset.info.name,
        "fingerprint": dataset.info.fingerprint,
        "architecture": config.architecture,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "seed": seed,
    }


def answers(logits_fn: Logits, images: np.ndarray) -> np.ndarray:
    """The classes that a logits function names, int32 [N].

    Args:
      logits_fn: a callable pytree from images to logits [B, K].
      images: float32 [N, H, W, C] in [0, 1].
    """
    return in_batches(partial(_classes, LogitsFunction.of(logits_fn)), images).astype(np.int32)


def accuracy(logits_fn: Logits, split: Split) -> float:
    """The share of a split's images that are named rightly."""
    return float((answers(logits_fn, to_float(split.images)) == split.labels).mean())


_classes = jax.jit(lambda fn, x: jnp.argmax(fn(x), axis=-1))
