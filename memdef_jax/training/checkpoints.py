"""Checkpoints that are whole or absent: Orbax for the arrays, SHA-256 for trust.

A checkpoint is a folder `step_N/` with Orbax's `tree/` and a `digests.json` over its files. It is
written under a temporary name and renamed, so a killed save leaves nothing that looks whole; what
was altered later is noticed and the one before is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
import uuid
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from memdef_jax.checks import InputError
from memdef_jax.files import check_writable, write_atomic

_DIGESTS = "digests.json"


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore_latest` found.

    Attributes:
      step: of the checkpoint, None if there is none.
      tree: its content as host arrays, None if there is none.
      notes: a sentence for each checkpoint that was passed over.
    """

    step: int | None
    tree: Any
    notes: tuple[str, ...] = ()


def write_tree(folder: pathlib.Path, tree: Any) -> None:
    """Write a pytree of arrays as a folder, atomically; an existing one is replaced.

    Raises:
      InputError: when the disk is too full or the folder cannot be written.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
    # Twice the arrays, for Orbax's own files and because a full disk hurts later writers too.
    check_writable(folder.parent, 2 * size)
    temporary = folder.with_name(f".saving-{folder.name}-{uuid.uuid4().hex}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary.absolute() / "tree", tree)
        write_atomic(temporary / _DIGESTS, json.dumps(_digests(temporary / "tree"), indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); "
            "free some space or choose a folder that you may write to."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_tree(folder: pathlib.Path, like: Any) -> Any:
    """Read a pytree written by `write_tree`.

    Args:
      folder: where it is.
      like: a pytree of arrays or shapes with the expected structure.

    Raises:
      InputError: if it is absent, altered, or of another structure.
    """
    if not (folder / _DIGESTS).is_file():
        raise InputError(f"{folder} is not a whole checkpoint; delete it and train again.")
    try:
        expected = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except ValueError:
        expected = None
    found = _digests(folder / "tree")
    if expected != found:
        known = expected if isinstance(expected, dict) else {}
        wrong = sorted(k for k in {*found, *known} if known.get(k) != found.get(k))
        raise InputError(
            f"{folder} is damaged: {wrong[0] if wrong else _DIGESTS} is not what was saved; "
            "delete it and train again."
        )
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), like)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), abstract
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((folder / "tree").absolute(), abstract)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds another model than the configuration describes; "
            "use the configuration it was trained with or another folder."
        ) from error


def save(store: pathlib.Path, step: int, tree: Any, keep: int = 2) -> None:
    """Save a checkpoint and drop all but the newest `keep`.

    Raises:
      InputError: as `write_tree`.
    """
    write_tree(store / f"step_{step}", tree)
    for old in sorted(_steps(store))[:-keep]:
        shutil.rmtree(store / f"step_{old}", ignore_errors=True)


def restore_latest(store: pathlib.Path, like: Any) -> Restored:
    """The newest checkpoint that is whole.

    Args:
      store: folder of checkpoints; it may be absent.
      like: a state of the expected structure.

    Returns:
      What was found, with a sentence for each damaged one that was passed over.
    """
    notes: list[str] = []
    for leftover in store.glob(".saving-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in sorted(_steps(store), reverse=True):
        try:
            return Restored(step, read_tree(store / f"step_{step}", like), tuple(notes))
        except InputError as error:
            if "another model" in str(error):
                raise
            notes.append(f"checkpoint of step {step} passed over: {error}")
    return Restored(None, None, tuple(notes))


def _steps(store: pathlib.Path) -> list[int]:
    names = [p.name.removeprefix("step_") for p in store.glob("step_*") if p.is_dir()]
    return [int(name) for name in names if name.isdigit()]


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
