"""Checkpoints that are whole or absent: Orbax for the arrays, SHA-256 for trust.

A checkpoint is a folder `step_N/` with Orbax's `tree/`, the names, shapes and dtypes of its arrays
in `arrays.json`, and a `digests.json` over all of these files. It is
written under a temporary name and renamed, so a killed save leaves nothing that looks whole; what
was altered later is noticed and the one before is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import uuid
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from memdef_jax.checks import InputError
from memdef_jax.files import cannot_write, check_writable, write_atomic

_DIGESTS = "digests.json"
_ARRAYS = "arrays.json"


class OtherStructure(InputError):
    """A checkpoint is whole but holds arrays of other names or shapes."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore_latest` found.

    Attributes:
      step: of the checkpoint, None if there is none.
      tree: its content as arrays on the first device, None if there is none.
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
    for leftover in folder.parent.glob(f".saving-{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".saving-{folder.name}-{uuid.uuid4().hex}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary.absolute() / "tree", tree)
        write_atomic(temporary / _ARRAYS, json.dumps(_arrays(tree), indent=1))
        write_atomic(temporary / _DIGESTS, json.dumps(_digests(temporary), indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    except ValueError as error:
        # TensorStore wraps what the system says in a ValueError.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if not code:
            raise
        reason = OSError(int(code[1]), os.strerror(int(code[1])))
        raise cannot_write(folder, reason) from error
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
    found = _digests(folder)
    if not found or expected != found:
        known = expected if isinstance(expected, dict) else {}
        wrong = sorted(k for k in {*found, *known} if known.get(k) != found.get(k))
        raise InputError(
            f"{folder} is damaged: {wrong[0] if wrong else _DIGESTS} is not what was saved; "
            "delete it and train again."
        )
    there, here = json.loads((folder / _ARRAYS).read_text(encoding="utf-8")), _arrays(like)
    other = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if other:
        raise OtherStructure(
            f"{folder} holds another model than the configuration describes ({other[0]} is "
            f"{there.get(other[0], 'absent')} there and {here.get(other[0], 'absent')} here); "
            "use the configuration it was trained with or another folder."
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=device), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((folder / "tree").absolute(), abstract)


def save(store: pathlib.Path, step: int, tree: Any, keep: int = 2) -> None:
    """Save a checkpoint and drop all but it and the `keep - 1` before it.

    Those of later steps go too: `restore_latest` found them damaged, or the run would be there.

    Raises:
      InputError: as `write_tree`.
    """
    write_tree(store / f"step_{step}", tree)
    steps = _steps(store)
    kept = sorted(s for s in steps if s <= step)[-keep:]
    for old in set(steps).difference(kept):
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
        except OtherStructure:
            raise
        except InputError as error:
            notes.append(f"checkpoint of step {step} passed over: {error}")
    return Restored(None, None, tuple(notes))


def _steps(store: pathlib.Path) -> list[int]:
    names = [p.name.removeprefix("step_") for p in store.glob("step_*") if p.is_dir()]
    return [int(name) for name in names if name.isdigit()]


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _DIGESTS
    }


def _arrays(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
