"""Files of named arrays, shared with other programs: .safetensors and .npz, never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from memdef_jax.checks import InputError, shown
from memdef_jax.files import write_atomic

_FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}
_SUFFIXES = (".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Described:
    """What a file says of one of its arrays.

    Attributes:
      shape: of the array.
      dtype: its NumPy name, or the file's own for one that NumPy lacks.
    """

    shape: tuple[int, ...]
    dtype: str


def describe(path: pathlib.Path) -> dict[str, Described]:
    """Names, shapes and dtypes of a file's arrays, of which none is read.

    Raises:
      InputError: when there is no such file, it has another suffix, or it is damaged.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(
            f"{path} is no file of arrays that can be trusted; give .safetensors or .npz "
            "(a .pth or .pt file is a pickle: convert it first)."
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}; give one with arrays.")
    try:
        return _npz_headers(path) if path.suffix == ".npz" else _safetensors_headers(path)
    except (SafetensorError, zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise _damaged(path, error) from error


def metadata(path: pathlib.Path) -> dict[str, str]:
    """What a file whose arrays `describe` gave says besides; a .npz says nothing.

    Raises:
      InputError: when it is damaged.
    """
    if path.suffix == ".npz":
        return {}
    try:
        with safe_open(path, framework="numpy") as stored:
            return dict(stored.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], said: Mapping[str, str]) -> None:
    """Write a .safetensors file, whole or not at all.

    Args:
      path: of the file.
      arrays: by name.
      said: what `metadata` then gives.

    Raises:
      InputError: when it cannot be written.
    """
    write_atomic(path, save(dict(arrays), dict(said)))


def read(path: pathlib.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The named arrays of a file as float32.

    Args:
      path: of a file whose arrays `describe` gave.
      names: of those to read.

    Raises:
      InputError: as `describe`, when a name is absent, or an array is not of floats, or not finite
        as float32.
    """
    described = describe(path)
    names = list(names)
    for name in names:
        if name not in described:
            own = shown(", ".join(described), 300)
            raise InputError(f"{path} has no array {name}; it has {own}.")
        if described[name].dtype not in _FLOATS.values():
            raise InputError(
                f"{name} of {path} is {described[name].dtype}; "
                f"{', '.join(_FLOATS.values())} can be read, so convert it."
            )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in names}
        else:
            with safe_open(path, framework="numpy") as stored:
                found = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise _damaged(path, error) from error
    with np.errstate(over="ignore"):  # what is too large for float32 is found below
        found = {name: array.astype(np.float32) for name, array in found.items()}
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} of {path} holds NaN or infinite numbers; get it anew.")
    return found


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
      InputError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give another.") from error


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({shown(error, 200)}); get it anew.")


def _safetensors_headers(path: pathlib.Path) -> dict[str, Described]:
    with safe_open(path, framework="numpy") as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        return {
            name: Described(tuple(s.get_shape()), _FLOATS.get(s.get_dtype(), s.get_dtype()))
            for name, s in slices.items()
        }


def _npz_headers(path: pathlib.Path) -> dict[str, Described]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            found[entry.removesuffix(".npy")] = Described(tuple(shape), dtype.name)
    return found
