"""A small defense of every kind, with random weights."""

import pathlib

import jax
import numpy as np

from memdef_jax.defenses import store

SIZE = {"image_shape": [28, 28, 1], "classes": 10}
KINDS = {
    "memory_defense": {"memory_rows": 20, "selector": "lenet", "head": "memory"},
    "mad_vae": {"latent_size": 3, "classifier": "e", "kind": "mad_vae"},
    "feature_denoiser": {"width": 0.5, "kind": "feature_denoiser"},
    "hgd": {"width": 0.1, "classifier": "small_cnn", "kind": "hgd"},
    "classifier": {"architecture": "b", "head": "memory"},
}


def made(kind, seed=0):
    """A defense with random weights."""
    content = {"version": 1, "kind": kind, "spec": {**SIZE, **KINDS[kind]}}
    found = store.described(content, pathlib.Path("here"), "never.")
    rng = np.random.default_rng(seed)

    def drawn(place, like):
        values = 0.1 * rng.normal(size=like.shape)
        return np.float32(0.5 + np.abs(values) if place[-1].key == "var" else values)

    return found.make(jax.tree_util.tree_map_with_path(drawn, found.like))
