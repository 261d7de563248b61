"""Save and load of any defense, and of a run's: specification as JSON, variables through Orbax."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses.memory.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.files import check_writable, write_atomic
from memdef_jax.training.checkpoints import read_tree, write_tree
from memdef_jax.training.run import read_run

VERSION = 1
_FILE = "defense.json"
# What a file's "kind" is made of: its networks' specification, and the defense.
_KINDS: dict[str, tuple[Any, Any]] = {
    "memory_defense": (MemoryDefenseSpec, MemoryDefense),
    "defense_vae": (VAEDefenseSpec, VAEDefense),
    "mad_vae": (VAEDefenseSpec, VAEDefense),
}


def save(defense: MemoryDefense | VAEDefense, folder: pathlib.Path) -> None:
    """Write a defense into a folder of its own; what makes it whole is written last.

    Raises:
      InputError: when the folder cannot be written.
    """
    check_writable(folder)
    (folder / _FILE).unlink(missing_ok=True)
    write_tree(folder / "variables", defense.variables)
    spec = dataclasses.asdict(defense.spec)
    content = {"version": VERSION, "kind": defense.kind, "spec": spec}
    write_atomic(folder / _FILE, json.dumps(content, indent=2))


def load(folder: pathlib.Path) -> Any:
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
    if version > VERSION or kind not in _KINDS:
        raise InputError(
            f"{path} is a {kind!r} of version {version} and this program reads "
            f"{', '.join(_KINDS)} up to version {VERSION}; update memdef_jax."
        )
    spec_type, defense_type = _KINDS[kind]
    try:
        spec = spec_type(**{**fields, "image_shape": tuple(fields["image_shape"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}; train again in another folder.") from error
    like = jax.eval_shape(spec.init, jax.random.key(0))
    return defense_type(spec, read_tree(folder / "variables", like))


def run_description(
    kind: str, dataset: Dataset, config: Any, defenses: Sequence[str]
) -> dict[str, Any]:
    """What `training.run.open_run` is told of a training.

    Args:
      kind: of its defenses.
      dataset: trained on.
      config: a dataclass.
      defenses: names of those that it will end with, under `defenses/`.
    """
    return {
        "kind": kind,
        "dataset": dataset.info.name,
        "fingerprint": dataset.info.fingerprint,
        "config": dataclasses.asdict(config),
        "defenses": list(defenses),
    }


def load_run(folder: pathlib.Path) -> dict[str, Any]:
    """The defenses of a finished run, by name.

    Raises:
      InputError: when there is no run, or it is unfinished, damaged or of a newer version.
    """
    names = read_run(folder).get("defenses") or []
    paths = {name: folder / "defenses" / name for name in names}
    if not paths or not all((path / _FILE).is_file() for path in paths.values()):
        raise InputError(f"{folder} holds an unfinished run; train there until the end first.")
    return {name: load(path) for name, path in paths.items()}
