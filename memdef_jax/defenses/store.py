"""Save and load of any defense: its specification as JSON, its variables through Orbax."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax

from memdef_jax.checks import InputError
from memdef_jax.defenses.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.files import check_writable, write_atomic
from memdef_jax.training.checkpoints import read_tree, write_tree

VERSION = 1
_KIND = "memory_defense"
_FILE = "defense.json"


def save(defense: MemoryDefense, folder: pathlib.Path) -> None:
    """Write a defense into a folder of its own; what makes it whole is written last.

    Raises:
      InputError: when the folder cannot be written.
    """
    check_writable(folder)
    (folder / _FILE).unlink(missing_ok=True)
    write_tree(folder / "variables", defense.variables)
    content = {
        "version": VERSION,
        "kind": _KIND,
        "spec": dataclasses.asdict(defense.spec),
    }
    write_atomic(folder / _FILE, json.dumps(content, indent=2))


def load(folder: pathlib.Path) -> MemoryDefense:
    """Read a defense that `save` wrote.

    Raises:
      InputError: if it is absent, half-written, damaged, or of a newer version.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no finished defense; train it first, or finish training.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, kind = int(content["version"]), content["kind"]
        fields = dict(content["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; train again in another folder.") from error
    if version > VERSION or kind != _KIND:
        raise InputError(
            f"{path} is a {kind!r} of version {version} and this program reads {_KIND!r} up to "
            f"version {VERSION}; update memdef_jax."
        )
    try:
        spec = MemoryDefenseSpec(**{**fields, "image_shape": tuple(fields["image_shape"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}; train again in another folder.") from error
    like = jax.eval_shape(
        lambda key: {"selector": spec.init_selector(key), "stack": spec.init_stack(key)},
        jax.random.key(0),
    )
    return MemoryDefense(spec, read_tree(folder / "variables", like))
