"""Checkpoints that are whole or absent: Orbax for the arrays, SHA-256 for trust.

A checkpoint is a folder `step_N/` with Orbax's `tree/`, the names, shapes and dtypes of its arrays
in `arrays.json`, and a `digests.json` over all of these files. It is
written under a temporary name and renamed, so a killed save leaves nothing that looks whole; what
was altered later is noticed and the one before is used. Nothing is ever unpickled. The digests find
damage and not malice, as whoever alters a file can alter its digest; so before any array is read,
links are refused and names, shapes and sizes are compared with those of the caller's networks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from memdef_jax import processes
from memdef_jax.checks import InputError, shown
from memdef_jax.files import cannot_write, check_writable, read_json, write_atomic

MOST_BYTES = 16 << 30  # of all arrays of a checkpoint; the largest here have about 1 GB
_DIGESTS = "digests.json"
_ARRAYS = "arrays.json"
_STEP = re.compile("step_(0|[1-9][0-9]{0,17})")
_AGAIN = "delete it and train again."


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

    Of several processes the first writes, and the others go on at once.

    Raises:
      InputError: when the disk is too full or the folder cannot be written.
    """
    if not processes.is_writer():
        return
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
    # Twice the arrays, for Orbax's own files and because a full disk hurts later writers too.
    check_writable(folder.parent, 2 * size)
    for leftover in folder.parent.glob(f".saving-{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".saving-{folder.name}-{uuid.uuid4().hex}")
    try:
        with _checkpointer() as checkpointer:
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
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    if needed > MOST_BYTES:
        raise InputError(
            f"{folder} is of a model of {needed:.3g} bytes and at most {MOST_BYTES} are read; "
            "use a smaller one."
        )
    if not (folder / _DIGESTS).is_file():
        raise InputError(f"{folder} is not a whole checkpoint; {_AGAIN}")
    expected, found = read_json(folder / _DIGESTS, _AGAIN), _digests(folder)
    if not found or expected != found:
        wrong = sorted(k for k in {*found, *expected} if expected.get(k) != found.get(k))
        raise InputError(
            f"{folder} is damaged: {shown(wrong[0] if wrong else _DIGESTS)} is not what was saved; "
            f"{_AGAIN}"
        )
    there, here = read_json(folder / _ARRAYS, _AGAIN), _arrays(like)
    other = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if other:
        raise OtherStructure(
            f"{folder} holds another model than the configuration describes ({shown(other[0])} is "
            f"{shown(there.get(other[0], 'absent'))} there and {here.get(other[0], 'absent')} "
            "here); "
            "use the configuration it was trained with or another folder."
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=device), like
    )
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore((folder / "tree").absolute(), abstract)
    except Exception as error:  # many libraries meet here, each with errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder} cannot be read ({shown(reason, 200)}); {_AGAIN}") from error


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
    for leftover in store.glob(".saving-*") if processes.is_writer() else ():
        shutil.rmtree(leftover, ignore_errors=True)
    for step in sorted(_steps(store), reverse=True):
        try:
            return Restored(step, read_tree(store / f"step_{step}", like), tuple(notes))
        except OtherStructure:
            raise
        except InputError as error:
            notes.append(f"checkpoint of step {step} passed over: {error}")
    return Restored(None, None, tuple(notes))


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax in this process alone: the arrays are whole in each, so none has to wait for another.

    It asks JAX itself which process this is, whatever `processes` says.
    """
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process_{this}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _steps(store: pathlib.Path) -> list[int]:
    names = [p.name for p in store.glob("step_*") if p.is_dir()]
    return [int(name.removeprefix("step_")) for name in names if _STEP.fullmatch(name)]


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file by its path, but the one that keeps them.

    Raises:
      InputError: when there is anything but files and folders, a file cannot be read, or they have
        more bytes than any checkpoint.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / _DIGESTS]
    found, size = {}, 0
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{folder} is damaged: {path.name} is no file; {_AGAIN}")
        if path.is_dir():
            continue
        try:
            with path.open("rb") as file:
                size += os.fstat(file.fileno()).st_size
                if size > 2 * MOST_BYTES:
                    raise InputError(f"{folder} holds more than {2 * MOST_BYTES} bytes; {_AGAIN}")
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{path} cannot be read ({reason}); mend its permissions.") from error
        found[path.relative_to(folder).as_posix()] = digest
    return found


def _arrays(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
