"""A run's folder: what it was started with, so that it can only be continued as the same run."""

from __future__ import annotations

import json
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

from memdef_jax import processes
from memdef_jax.checks import InputError, shown
from memdef_jax.files import check_writable, read_json, write_atomic

VERSION = 1
_FILE = "run.json"
# What a file holds may be long, and the sentence about it may not.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100


def open_run(folder: pathlib.Path, description: Mapping[str, Any], needed_bytes: int = 0) -> None:
    """Start a run in a folder, or make sure that it is this very run that is continued.

    Of several processes the first does so, and all make sure that they are of the same run.

    Args:
      folder: made if absent; an existing one must be empty or hold this run.
      description: all that defines the run, JSON-able; nested mappings are compared key by key.
      needed_bytes: free space the run needs.

    Raises:
      InputError: when the folder holds another configuration or dataset, is half-written, is of a
        newer version, or cannot be written, or another process is of another run.
    """
    wanted = json.loads(json.dumps(description))
    processes.agree("what they are to do", wanted)
    processes.by_one(lambda: _open(folder, wanted, needed_bytes))
    processes.agree(f"what they see in {folder}", (folder / _FILE).is_file())


def _open(folder: pathlib.Path, wanted: dict[str, Any], needed_bytes: int) -> None:
    check_writable(folder, needed_bytes)
    path = folder / _FILE
    if not path.exists():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        if others:
            raise InputError(
                f"{folder} is not empty and holds no {_FILE} (it has {others[0]}); "
                "choose a new folder or delete this one."
            )
        write_atomic(path, json.dumps({"version": VERSION, "run": wanted}, indent=2))
        return
    differences = _differences(read_run(folder), wanted)
    if differences:
        raise InputError(
            f"{folder} holds another run: {differences[0]}; "
            "choose another folder, or the same settings to continue."
        )


def read_run(folder: pathlib.Path) -> dict[str, Any]:
    """What a run was started with.

    Raises:
      InputError: when there is no run, its description is damaged, or it is of a newer version.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no run ({_FILE} is missing); train one there first.")
    remedy = "choose a new folder or delete this one."
    content = read_json(path, remedy)
    version, run = content.get("version"), content.get("run")
    if type(version) is not int or not isinstance(run, dict):
        raise InputError(f"{path} is damaged; {remedy}")
    if version > VERSION:
        raise InputError(
            f"{path} has version {version} and this program reads up to {VERSION}; "
            "update memdef_jax."
        )
    return run


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in sorted({*old, *new})
            for text in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    if old == new:
        return []
    return [f"{shown(name)} was {_SHOWN.repr(old)} there and is {_SHOWN.repr(new)} now"]
