"""Adversarial examples generated once, stored, and reused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import data, processes
from memdef_jax.attacks import Attack
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.data import Split, to_float
from memdef_jax.training import Gathered, Reporter, make_mesh, put_batch, replicate
from memdef_jax.training.checkpoints import read_tree, write_tree

PART = 1000
_PARTS = ("images", "success")


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
    Several processes make a part each at a time, each with all of its devices.

    Args:
      attack: from places in the split int [B] to the attack on the images there.
      logits_fn: the classifier, a pytree.
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
    processes.agree(f"the examples in {folder}", missing)
    reporter.start("adversarial examples", len(starts) - len(missing), len(starts), PART)
    mesh = make_mesh(local=True)
    everywhere = replicate(logits_fn, mesh)

    def made(start: int | None) -> dict[str, np.ndarray]:
        if start is None:  # there are fewer parts left than processes
            return {}
        count = len(split[start : start + PART])
        padded = -(-count // mesh.devices.size) * mesh.devices.size  # the last image again
        index = start + np.minimum(np.arange(padded), count - 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        batch = to_float(jnp.asarray(split.images[index])), split.labels[index], keys
        x, y, own_keys = put_batch(batch, mesh)
        result = attack(index).run(everywhere, x, y, key=own_keys)
        return {f"{name} {start}": np.asarray(getattr(result, name))[:count] for name in _PARTS}

    done, together = len(starts) - len(missing), processes.count()
    for first in range(0, len(missing), together):
        turn = missing[first : first + together]
        own = dict(enumerate(turn)).get(processes.index())
        arrays = processes.gathered(partial(made, own))
        for start in turn:
            images, success = (arrays[f"{name} {start}"] for name in _PARTS)
            write_tree(parts[start], {"images": images, "success": success})
            found[start] = images, success
            done += 1
            reporter.update(done, {"success_rate": float(success.mean())})
    whole = [pair for pair in found.values() if pair is not None]
    return np.concatenate([p[0] for p in whole]), np.concatenate([p[1] for p in whole])


def paired_batches(
    adversarial: np.ndarray,
    split: Split,
    batch_size: int,
    seed: int,
    rows: slice = slice(None),
) -> Gathered:
    """Batches by global step: clean "image" uint8, "label", and "adversarial" float32.

    An epoch shows every adversarial image once.

    Args:
      adversarial: images float32 [K * N, H, W, C], those of the split again and again in its order.
      split: the clean images, N.
      batch_size: pairs in a global batch.
      seed: of the order.
      rows: of the global batch that are wanted.
    """

    def indices(step: int) -> dict[str, np.ndarray]:
        pair = data.batch_indices(len(adversarial), step, batch_size, seed)[rows]
        image = pair % len(split)
        return {"image": image, "label": image, "adversarial": pair}

    arrays = {"image": split.images, "label": split.labels, "adversarial": adversarial}
    return Gathered(arrays, indices)


def mixed_batches(
    split: Split,
    adversarial: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seeds: tuple[int, int],
    rows: slice = slice(None),
) -> Gathered:
    """Batches by global step that alternate benign and adversarial samples, 1:1, as float32.

    Args:
      split: benign images.
      adversarial: images float32 [M, H, W, C].
      labels: theirs, int32 [M].
      batch_size: global, even.
      seeds: of the benign images' order and of the adversarial ones'.
      rows: of the global batch that are wanted.
    """
    wanted = np.arange(batch_size)[rows]

    def indices(step: int) -> dict[str, np.ndarray]:
        sizes = (len(split), len(labels))
        benign, attacked = (
            data.batch_indices(size, step, batch_size // 2, seed)[wanted // 2]
            for size, seed in zip(sizes, seeds)
        )
        index = np.where(wanted % 2 == 0, benign, len(split) + attacked)
        return {"image": index, "label": index}

    images = np.concatenate([to_float(split.images), adversarial])
    return Gathered({"image": images, "label": np.concatenate([split.labels, labels])}, indices)


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
