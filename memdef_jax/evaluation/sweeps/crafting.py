"""Adversarial images of a split, for what looks at the images and not at a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import Attack
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.data import Split, eval_batches, to_float

BATCH = 250
Target = Callable[[jax.Array, jax.Array], Logits]


def craft(attack: Attack, target: Target, split: Split, seed: int = 0) -> np.ndarray:
    """Attack every image with the whole budget, also beyond the first success, as sweeps do.

    Args:
      attack: the attack.
      target: from a batch of clean images and labels to what it is crafted on for these.
      split: clean images.
      seed: of its random draws; each image has its own key.

    Returns:
      float32 [N, H, W, C] in [0, 1], in the order of the split.
    """
    if hasattr(attack, "early_stop"):
        attack = dataclasses.replace(attack, early_stop=False)  # type: ignore[type-var]
    keys = sample_keys(jax.random.key(seed), len(split))
    index, size = np.arange(len(split)), min(BATCH, len(split))
    parts = []
    for batch, places in zip(eval_batches(split, size), eval_batches((index, index), size)):
        x, y = to_float(jnp.asarray(batch.images)), jnp.asarray(batch.labels)
        images = attack(target(x, y), x, y, key=keys[places.images])
        parts.append(np.asarray(images)[batch.valid])
    return np.concatenate(parts)


def always(logits_fn: Logits) -> Target:
    """A target that is the same for all images."""
    return lambda x, y: logits_fn


def single(budgets: Sequence[float]) -> float:
    """The one budget that was given.

    Raises:
      InputError: when there are none or several.
    """
    if len(budgets) != 1:
        raise InputError(
            f"{len(budgets)} budgets were given and one is needed; give one, for example 25/255."
        )
    return budgets[0]
