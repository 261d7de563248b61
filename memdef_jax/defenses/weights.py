"""Weights of a defense in one file in torch's layout, and runs made of such files.

A network's place in the variables stands before the names of its arrays: "selector.Conv_0.weight",
"stack.autoencoder.memory"; a classifier alone has none. `nn.torch_layout` says how names and axes
become torch's, docs/weights.md shows it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from memdef_jax import arrays
from memdef_jax.checks import InputError, shown
from memdef_jax.data import Dataset
from memdef_jax.data.dataset import DatasetInfo
from memdef_jax.defenses import store
from memdef_jax.defenses.denoiser import denoiser_defense
from memdef_jax.defenses.vae import vae_defense
from memdef_jax.locks import locked
from memdef_jax.nn import torch_layout
from memdef_jax.nn.flattened import flattened
from memdef_jax.training.run import open_run

_LAYOUT = "torch"
_COUNTER = "num_batches_tracked"  # torch's BatchNorm counts batches, and nothing here reads it
_SAY = "say what it holds with kind and spec."


def write_weights(path: pathlib.Path, defense: Any, name: str, run: Mapping[str, Any]) -> None:
    """Write the weights of all networks of a defense as .safetensors, float32 in torch's layout.

    The file's metadata are "version", "kind" and "spec" (JSON) of the defense, its name "defense"
    in the run, "dataset" and "fingerprint", "layout" ("torch") and "flattened": by name of an
    array, its axis of flattened features and how many channels these have (JSON).

    Args:
      path: of the file.
      defense: of a kind that `defenses.save` takes.
      name: its name in the run.
      run: of `training.run.read_run`.

    Raises:
      InputError: when it cannot be written, or a network is not known to `nn.flattened`.
    """
    axes = _flattened(defense.spec)
    said = {
        "format": "pt",  # what other programs look for before they read arrays as torch's
        "version": str(store.VERSION),
        "kind": defense.kind,
        "spec": json.dumps(dataclasses.asdict(defense.spec)),
        "defense": name,
        "dataset": run["dataset"],
        "fingerprint": run["fingerprint"],
        "layout": _LAYOUT,
        "flattened": json.dumps(axes),
    }
    host = jax.device_get(defense.variables)
    arrays.write(path, torch_layout.to_torch(host, axes), said)


def read_weights(
    path: pathlib.Path,
    info: DatasetInfo,
    kind: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Any:
    """A defense with the weights of a file; names and shapes are checked before any is read.

    Args:
      path: a .safetensors file, or a .npz, in torch's layout.
      info: of the dataset that it is a defense of.
      kind: of the defense, "classifier" for example; by default what the file says.
      spec: with a kind, what differs from the default specification of its networks, JSON-able.

    Raises:
      InputError: when the file is damaged, says no kind where none is given, was trained on other
        data, or an array is absent, of another shape, or one that the networks do not have.
    """
    found = {name: of.shape for name, of in arrays.describe(path).items()}
    said = arrays.metadata(path) if kind is None else {}
    content = _said(path, said) if kind is None else _given(info, kind, spec or {})
    described = store.described(content, path, "get it anew, or " + _SAY)
    _check_data(path, said, described.spec, info)
    known = torch_layout.names(described.like)
    torch_layout.check(found, described.like, str(path))
    for name in found:
        if name not in known and not name.endswith(_COUNTER):
            raise InputError(
                f"{path} has an array {shown(name)}, and such a {content['kind']} has none; "
                "give weights of the same architecture."
            )
    axes = _flattened(described.spec)
    tree = torch_layout.from_torch(arrays.read(path, known), described.like, axes)
    return described.make(tree)


def import_run(
    folder: pathlib.Path,
    paths: Sequence[pathlib.Path],
    dataset: Dataset,
    kind: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a run of files with weights, as if its defenses had been trained there.

    Args:
      folder: the run's.
      paths: of the files; each defense is called as its file without suffix.
      dataset: that they defend.
      kind: of all, see `read_weights`.
      spec: of all, likewise.

    Returns:
      Defenses by name.

    Raises:
      InputError: before anything is written, as `read_weights`; when two files have one name or
        are of different kinds; or when the folder holds another run.
    """
    names = [path.stem for path in paths]
    if not paths or len(set(names)) < len(names):
        raise InputError(
            f"the files {', '.join(map(str, paths)) or '(none)'} give no defenses of different "
            "names; give one or more, called differently."
        )
    found = {n: read_weights(path, dataset.info, kind, spec) for n, path in zip(names, paths)}
    kinds = sorted({defense.kind for defense in found.values()})
    if len(kinds) > 1:
        raise InputError(f"a run is of one kind and these are {' and '.join(kinds)}; give one.")
    config = _Imported({name: arrays.digest(path) for name, path in zip(names, paths)})
    with locked(folder):
        open_run(folder, store.run_description(kinds[0], dataset, config, names))
        for name, defense in found.items():
            store.save(defense, folder / "defenses" / name)
    return found


@dataclasses.dataclass(frozen=True)
class _Imported:
    """What stands in the place of a training's configuration: SHA-256 of each defense's file."""

    imported: dict[str, str]


def _flattened(spec: Any) -> dict[str, tuple[int, int]]:
    """Of all networks, by the full names of the arrays."""
    return {
        f"{place}.{name}".lstrip("."): axis
        for place, module in spec.networks().items()
        for name, axis in flattened(module, spec.image_shape).items()
    }


def _said(path: pathlib.Path, said: Mapping[str, str]) -> dict[str, Any]:
    """The description of a defense in a file's metadata."""
    if "kind" not in said or "spec" not in said:
        raise InputError(f"{path} does not say what it is weights of; {_SAY}")
    if said.get("layout") != _LAYOUT:
        layout = shown(said.get("layout", "none"))
        raise InputError(f"{path} is in layout {layout!r}; bring its arrays into torch's.")
    try:
        return {
            "version": json.loads(said.get("version", "")),
            "kind": said["kind"],
            "spec": json.loads(said["spec"]),
        }
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged; get it anew, or {_SAY}") from error


def _given(info: DatasetInfo, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a defense of a dataset."""
    own: dict[str, Any] = {
        "image_shape": list(info.image_shape),
        "classes": len(info.class_names),
    }
    if kind in (*denoiser_defense.KINDS, *vae_defense.KINDS):  # two kinds have one specification
        own["kind"] = kind
    return {"version": store.VERSION, "kind": kind, "spec": own | dict(spec)}


def _check_data(path: pathlib.Path, said: Mapping[str, str], spec: Any, info: DatasetInfo) -> None:
    """Check that the networks take a dataset, and that it is what they were trained on."""
    own, classes = tuple(info.image_shape), len(info.class_names)
    if (tuple(spec.image_shape), spec.classes) != (own, classes):
        shapes = ["x".join(map(str, shape)) for shape in (spec.image_shape, own)]
        raise InputError(
            f"{path} is for {spec.classes} classes of {shapes[0]} images and {info.name} has "
            f"{classes} of {shapes[1]}; give its own dataset, of that size."
        )
    fingerprint = said.get("fingerprint", info.fingerprint)
    if fingerprint != info.fingerprint:
        raise InputError(
            f"{path} was trained on {shown(said.get('dataset', 'other data'))} with fingerprint "
            f"{fingerprint[:12]} and this {info.name} has {info.fingerprint[:12]}; "
            "give the same data."
        )
