"""Save and load of any defense, and of a run's: specification as JSON, variables through Orbax."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import reprlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from memdef_jax import processes
from memdef_jax.checks import InputError, shown
from memdef_jax.data import Dataset
from memdef_jax.defenses.classifier.classifier_defense import ClassifierDefense, ClassifierSpec
from memdef_jax.defenses.denoiser.denoiser_defense import DenoiserDefense, DenoiserSpec
from memdef_jax.defenses.memory.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.files import below, check_writable, read_json, write_atomic
from memdef_jax.training.checkpoints import read_tree, write_tree
from memdef_jax.training.run import read_run

VERSION = 1
_FILE = "defense.json"
_AGAIN = "train again in another folder."
_MOST = 2**31  # no number of a specification comes near it
# What a file's "kind" is made of: its networks' specification, and the defense.
_KINDS: dict[str, tuple[Any, Any]] = {
    "memory_defense": (MemoryDefenseSpec, MemoryDefense),
    "defense_vae": (VAEDefenseSpec, VAEDefense),
    "mad_vae": (VAEDefenseSpec, VAEDefense),
    "classifier": (ClassifierSpec, ClassifierDefense),
    "feature_denoiser": (DenoiserSpec, DenoiserDefense),
    "hgd": (DenoiserSpec, DenoiserDefense),
}


def save(
    defense: MemoryDefense | VAEDefense | DenoiserDefense | ClassifierDefense, folder: pathlib.Path
) -> None:
    """Write a defense into a folder of its own; what makes it whole is written last.

    Raises:
      InputError: when the folder cannot be written.
    """
    check_writable(folder)
    if processes.is_writer():
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
    found = described(read_json(path, _AGAIN), path, _AGAIN)
    return found.make(read_tree(folder / "variables", found.like))


@dataclasses.dataclass(frozen=True)
class Described:
    """A defense without its variables.

    Attributes:
      spec: what its networks are.
      make: from variables to the defense.
      like: the shapes of the variables.
    """

    spec: Any
    make: Callable[[Any], Any]
    like: Any


def described(content: Mapping[str, Any], path: pathlib.Path, remedy: str) -> Described:
    """The defense that a file describes; nothing of its size is allocated.

    Args:
      content: "version", "kind" and "spec", as `save` writes them.
      path: of the file, for errors.
      remedy: what to do where it is damaged, as the end of a sentence.

    Raises:
      InputError: when it is no description, of a newer version, or of networks that cannot be.
    """
    spec, defense_type = _specified(content, path, remedy)
    try:
        like = jax.eval_shape(spec.init, jax.random.key(0))
    except Exception as error:  # a network of impossible sizes fails wherever it does
        raise InputError(f"{path} describes no network that can be made; {remedy}") from error
    return Described(spec, functools.partial(defense_type, spec), like)


def _specified(content: Mapping[str, Any], path: pathlib.Path, remedy: str) -> tuple[Any, Any]:
    """The specification, and the type of its defense."""
    version, kind, fields = (content.get(name) for name in ("version", "kind", "spec"))
    if type(version) is not int or not isinstance(kind, str) or not isinstance(fields, dict):
        raise InputError(f"{path} is damaged; {remedy}")
    if version > VERSION or kind not in _KINDS:
        raise InputError(
            f"{path} is a {reprlib.repr(kind)} of version {reprlib.repr(version)} and this program "
            f"reads {', '.join(_KINDS)} up to version {VERSION}; update memdef_jax."
        )
    spec_type, defense_type = _KINDS[kind]
    hints = typing.get_type_hints(spec_type)
    try:
        typed = {name: _typed(name, value, hints.get(name)) for name, value in fields.items()}
        return spec_type(**typed), defense_type
    except TypeError as error:
        raise InputError(f"{path} is damaged: {shown(error, 200)}; {remedy}") from error


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value from JSON as the field of a specification; TypeError where it cannot be that."""
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        own = typing.get_args(hint)
        if len(own) == len(value):
            return tuple(_typed(name, item, of) for item, of in zip(value, own))
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    fits = {
        int: type(value) is int and abs(value) < _MOST,
        float: number and abs(value) < _MOST,
        str: isinstance(value, str) and len(value) < 100,
    }
    # A field of another type needs its line here before it can be read.
    if fits.get(hint, False):
        return value
    raise TypeError(f"{shown(name)!r} cannot be {reprlib.repr(value)}")


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
      InputError: when there is no run, or it is unfinished, damaged or of a newer version, or
        names something outside its folder.
    """
    paths = _paths(folder)
    if not _are_there(paths):
        raise InputError(f"{folder} holds an unfinished run; train there until the end first.")
    return {name: load(path) for name, path in paths.items()}


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a run has all the defenses that it was started for; none is read.

    Raises:
      InputError: when there is no run, or its description is damaged or of a newer version.
    """
    return _are_there(_paths(folder))


def _are_there(paths: Mapping[str, pathlib.Path]) -> bool:
    return bool(paths) and all((path / _FILE).is_file() for path in paths.values())


def _paths(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where a run's defenses are, or will be."""
    names = read_run(folder).get("defenses") or []
    if not isinstance(names, list) or len(names) > 1000:
        raise InputError(f"{folder} is damaged: its defenses are no names; {_AGAIN}")
    return {name: below(below(folder, "defenses"), name) for name in names}
