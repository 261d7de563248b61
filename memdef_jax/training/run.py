"""A run's folder: what it was started with, so that it can only be continued as the same run."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.files import check_writable, write_atomic

VERSION = 1
_FILE = "run.json"


def open_run(folder: pathlib.Path, description: Mapping[str, Any], needed_bytes: int = 0) -> None:
    """Start a run in a folder, or make sure that it is this very run that is continued.

    Args:
      folder: made if absent; an existing one must be empty or hold this run.
      description: all that defines the run, JSON-able; nested mappings are compared key by key.
      needed_bytes: free space the run needs.

    Raises:
      InputError: when the folder holds another configuration or dataset, is half-written, is of a
        newer version, or cannot be written.
    """
    check_writable(folder, needed_bytes)
    path = folder / _FILE
    wanted = json.loads(json.dumps(description))
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, run = int(content["version"]), dict(content["run"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; choose a new folder or delete this one.") from error
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
    return [] if old == new else [f"{name} was {old!r} there and is {new!r} now"]
