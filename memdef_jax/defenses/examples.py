"""Adversarial examples generated once, stored, and reused.

They lie in parts, folders with `images.npy` and, written last, `part.json` with its SHA-256. What
trains on them maps these files and reads the rows of its batches: images for minutes of training
are gigabytes, of which each process needs its share.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import arrays, data, processes
from memdef_jax.attacks import Attack
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.data import Floats, Joined, Split, to_float
from memdef_jax.files import read_json, write_atomic
from memdef_jax.training import Gathered, Reporter, make_mesh, put_batch, replicate

PART = 1000
_IMAGES, _ABOUT = "images.npy", "part.json"
_RESULTS = ("images", "success")


def adversarial_examples(
    attack: Callable[[np.ndarray], Attack],
    logits_fn: Logits,
    split: Split,
    key: jax.Array,
    folder: pathlib.Path,
    reporter: Reporter,
) -> tuple[Joined, np.ndarray]:
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
      Images float32 [N, H, W, C], mapped from their files, and whether each fools the classifier,
      bool [N].

    Raises:
      InputError: when the folder cannot be written.
    """
    starts = list(range(0, len(split), PART))
    parts = {start: folder / f"part_{start // PART:05d}" for start in starts}
    found = {start: read_part(parts[start], split[start : start + PART]) for start in starts}
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
        return {f"{name} {start}": np.asarray(getattr(result, name))[:count] for name in _RESULTS}

    done, together = len(starts) - len(missing), processes.count()
    for first in range(0, len(missing), together):
        turn = missing[first : first + together]
        own = dict(enumerate(turn)).get(processes.index())
        results = processes.gathered(partial(made, own))
        for start in turn:
            images, success = (results[f"{name} {start}"] for name in _RESULTS)
            write_part(parts[start], images, success)
            done += 1
            reporter.update(done, {"success_rate": float(success.mean())})
    processes.wait()
    whole = [
        found[start]
        or processes.read_written(
            partial(read_part, parts[start], split[start : start + PART]), parts[start]
        )
        for start in starts
    ]
    return Joined(tuple(part[0] for part in whole)), np.concatenate([part[1] for part in whole])


def paired_batches(
    adversarial: Joined,
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

    return Gathered(
        {"image": split.images, "label": split.labels, "adversarial": adversarial}, indices
    )


def mixed_batches(
    split: Split,
    adversarial: Joined,
    chosen: np.ndarray,
    batch_size: int,
    seeds: tuple[int, int],
    rows: slice = slice(None),
) -> Gathered:
    """Batches by global step that alternate benign and adversarial samples, 1:1, as float32.

    Args:
      split: benign images, N.
      adversarial: images float32 [N, H, W, C], those of the split.
      chosen: which of these are shown, int [M].
      batch_size: global, even.
      seeds: of the benign images' order and of the adversarial ones'.
      rows: of the global batch that are wanted.
    """
    wanted = np.arange(batch_size)[rows]

    def indices(step: int) -> dict[str, np.ndarray]:
        benign, attacked = (
            data.batch_indices(size, step, batch_size // 2, seed)[wanted // 2]
            for size, seed in zip((len(split), len(chosen)), seeds)
        )
        is_benign, attacked = wanted % 2 == 0, chosen[attacked]
        return {
            "image": np.where(is_benign, benign, len(split) + attacked),
            "label": np.where(is_benign, benign, attacked),
        }

    images = Joined((Floats(split.images), *adversarial.parts))
    return Gathered({"image": images, "label": split.labels}, indices)


def write_part(folder: pathlib.Path, images: np.ndarray, success: np.ndarray) -> None:
    """Store a part: images float32 [N, H, W, C], and which fool the classifier, bool [N].

    Raises:
      InputError: when the folder cannot be written.
    """
    content = _header(images.shape) + np.ascontiguousarray(images, np.float32).tobytes()
    about = {"sha256": hashlib.sha256(content).hexdigest(), "success": success.tolist()}
    write_atomic(folder / _IMAGES, content)
    write_atomic(folder / _ABOUT, json.dumps(about))


def read_part(folder: pathlib.Path, part: Split) -> tuple[np.ndarray, np.ndarray] | None:
    """What `write_part` stored of a part of a split, the images mapped; None if it is damaged."""
    path = folder / _IMAGES
    if not (path.is_file() and (folder / _ABOUT).is_file()):
        return None
    try:
        about = read_json(folder / _ABOUT, "delete it.")
        if about.get("sha256") != arrays.digest(path):
            return None
        header = _header(part.images.shape)  # compared, as parsing one trusts it
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                return None
        images = np.memmap(path, np.float32, "r", len(header), part.images.shape)
    except (InputError, ValueError, OSError):
        return None
    success = np.array(about.get("success"), dtype=object)
    flags = success.shape == (len(part),) and all(isinstance(flag, bool) for flag in success)
    return (images, success.astype(bool)) if flags else None


def _header(shape: tuple[int, ...]) -> bytes:
    """Of a .npy file with float32 of a shape."""
    buffer = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()
