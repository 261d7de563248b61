"""Defenses of known behaviour, made without training.

Random convolutions, and last layers solved by least squares: classifier-A names real digits, and
classifier-B names what it is meant to read, the slot or the image. Networks and batch shapes are
those of the demo's tests, so that one process compiles each attack once.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.data import to_float
from memdef_jax.defenses import MemoryDefense, preset, save
from memdef_jax.nn import ClassifierB, classifier
from memdef_jax.training.run import VERSION

SAMPLES = 400  # training images the last layers are solved on


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, x):
    return module.apply({"params": params}, x)


@jax.jit
def rebuild(defense, x, y):
    return defense.reconstruct(x, y)


def solve(module, params, layer, images, labels):
    """Parameters whose last dense layer regresses the one-hot labels on what comes before it."""
    width = params[layer]["kernel"].shape[0]
    opened = {**params, layer: {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}}
    hidden = np.asarray(_apply(module.clone(classes=width), opened, images), np.float64)
    hidden = np.column_stack([hidden, np.ones(len(hidden))])
    square = hidden.T @ hidden
    square += 1e-4 * np.trace(square) / len(square) * np.eye(len(square))
    weights = np.linalg.solve(square, hidden.T @ np.eye(10)[labels]) * 10
    kernel, bias = weights[:-1].astype(np.float32), weights[-1].astype(np.float32)
    return {**params, layer: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


def make(digits, seed=0, memory=True, called=None):
    """A defense with a good classifier-A, and a classifier-B that is right on the true slot.

    All rows of a slot are alike, so reconstructions are pure templates: they show the slot and
    nothing of the image. Without memory classifier-B reads the image.

    Args:
      digits: the dataset.
      seed: of the random layers.
      memory: whether there is one.
      called: {slot: class} where classifier-B names another class than the slot's.
    """
    part = digits.train[np.random.default_rng(0).permutation(len(digits.train))[:SAMPLES]]
    x, y = jnp.asarray(to_float(part.images)), part.labels
    config = preset("quick", (28, 28, 1))
    spec = config.spec((28, 28, 1), 10)
    selector = spec.init_selector(jax.random.key(seed))
    module = classifier(spec.selector, 10)
    selector["params"] = solve(module, selector["params"], "Dense_1", x, y)
    stack = spec.init_stack(jax.random.key(seed + 100))
    auto = stack["params"]["autoencoder"]
    if memory:
        auto["memory"] = 10 * jnp.repeat(auto["memory"][::50], 50, axis=0)
    else:
        del auto["memory"]
        spec = dataclasses.replace(spec, memory_rows=0)
    defense = MemoryDefense(spec, {"selector": selector, "stack": stack})
    rebuilt = rebuild(defense, x, jnp.asarray(y))
    if not memory:  # give reconstructions the contrast of the images
        contrast = float(x.std(axis=0).mean() / rebuilt.std(axis=0).mean())
        last = auto["decoder"]["ConvTranspose_2"]
        last["kernel"], last["bias"] = (
            last["kernel"] * contrast,
            -contrast * rebuilt.mean((0, 1, 2)),
        )
        rebuilt = rebuild(defense, x, jnp.asarray(y))
    names = np.array([(called or {}).get(label, label) for label in y])
    params = stack["params"]
    params["classifier_b"] = solve(
        ClassifierB(10), params["classifier_b"], "Dense_2", rebuilt, names
    )
    return defense


def write_run(folder, digits, defenses):
    """A folder that looks as if the defenses had been trained there."""
    run = {
        "kind": "memory_defense",
        "dataset": digits.info.name,
        "fingerprint": digits.info.fingerprint,
        "config": {"selector": {"recipe": "in_loop"}},
        "defenses": list(defenses),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    for name, defense in defenses.items():
        save(defense, folder / "defenses" / name)
