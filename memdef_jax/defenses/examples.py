"""Adversarial examples generated once, stored, and reused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import data
from memdef_jax.attacks import Attack
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.data import Split, to_float
from memdef_jax.training import Reporter
from memdef_jax.training.checkpoints import read_tree, write_tree

PART = 1000


def adversarial_examples(
    attack: Callable[[np.ndarray], Attack],
    logits_fn: Logits,
    split: Split,
    key: jax.Array,
    folder: pathlib.Path,
    reporter: Reporter,
) -> tuple[np.ndarray, np.ndarray]:
    """Attack every image of a split, in parts that are stored as they finish.

    A killed run makes only the parts that are missing; a damaged part is made again. Image i's
    randomness is folded from the key and i, so the result does not depend on how the split is cut.

    Args:
      attack: from places in the split int [B] to the attack on the images there.
      logits_fn: the classifier.
      split: clean images.
      key: typed key.
      folder: for the parts; one folder serves one classifier, split, attack and key.
      reporter: told of progress.

    Returns:
      Images float32 [N, H, W, C] and whether each fools the classifier, bool [N].

    Raises:
      InputError: when the folder cannot be written.
    """
    starts = list(range(0, len(split), PART))
    parts = {start: folder / f"part_{start // PART:05d}" for start in starts}
    found = {start: _read(parts[start], split[start : start + PART]) for start in starts}
    missing = [start for start in starts if found[start] is None]
    reporter.start("adversarial examples", len(starts) - len(missing), len(starts), PART)
    for count, start in enumerate(missing, len(starts) - len(missing) + 1):
        part = split[start : start + PART]
        index = start + np.arange(len(part))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        x = to_float(jnp.asarray(part.images))
        result = attack(index).run(logits_fn, x, jnp.asarray(part.labels), key=keys)
        images, success = np.asarray(result.images), np.asarray(result.success)
        write_tree(parts[start], {"images": images, "success": success})
        found[start] = images, success
        reporter.update(count, {"success_rate": float(success.mean())})
    whole = [pair for pair in found.values() if pair is not None]
    return np.concatenate([p[0] for p in whole]), np.concatenate([p[1] for p in whole])


def paired_batches(
    made: Sequence[np.ndarray], split: Split, batch_size: int, seed: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches by global step: clean "image" uint8, "label", and "adversarial" float32.

    An epoch shows every adversarial image once.

    Args:
      made: adversarial images float32 [N, H, W, C], each in the order of the split.
      split: their clean images.
      batch_size: pairs in a batch.
      seed: of the order.
    """
    total = len(made) * len(split)

    def batch(step: int) -> dict[str, np.ndarray]:
        pair = data.batch_indices(total, step, batch_size, seed)
        which, image = np.divmod(pair, len(split))
        adversarial = np.stack([made[w][i] for w, i in zip(which, image)])
        return {
            "image": split.images[image],
            "label": split.labels[image],
            "adversarial": adversarial,
        }

    return batch


def _read(path: pathlib.Path, part: Split) -> tuple[np.ndarray, np.ndarray] | None:
    """A stored part, None where it is absent or damaged."""
    like = {
        "images": jax.ShapeDtypeStruct(part.images.shape, np.float32),
        "success": jax.ShapeDtypeStruct(part.labels.shape, np.bool_),
    }
    try:
        stored = read_tree(path, like)
    except InputError:
        return None
    return np.asarray(stored["images"]), np.asarray(stored["success"])
