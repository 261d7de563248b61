"""Files that are written whole or not at all, and read without trust in what they hold."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
import uuid
from typing import Any

from memdef_jax import processes
from memdef_jax.checks import InputError, shown

MOST_JSON = 64_000_000  # bytes; the descriptions written here have some thousands


def write_atomic(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old or the new content.

    Of several processes the first writes, and the others go on at once.

    Raises:
      InputError: when the disk is full or the folder cannot be written.
    """
    if not processes.is_writer():
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: pathlib.Path, error: OSError) -> InputError:
    """The sentence for a file or folder that the system would not take."""
    return InputError(
        f"{path} cannot be written ({error.strerror or error}); "
        "free some space or choose a folder that you may write to."
    )


def check_writable(folder: pathlib.Path, needed_bytes: int = 0) -> None:
    """Check, before any work, that a folder can be created and written and has room.

    Of several processes the first does, the only one that will write.

    Raises:
      InputError: if not.
    """
    if not processes.is_writer():
        return
    probe = folder / f".write-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
        stats = os.statvfs(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    free = stats.f_bavail * stats.f_frsize
    if free < needed_bytes:
        raise InputError(
            f"{folder} has {free / 1e6:.0f} MB free and {needed_bytes / 1e6:.0f} MB are needed; "
            "free some space or choose another folder."
        )


def read_most(path: pathlib.Path, most: int) -> bytes:
    """The bytes of a regular file; of a longer one than `most` those and one more.

    Raises:
      InputError: when it cannot be read, or is no file but a pipe or a device, which might never
        end.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path} is no regular file; remove it.")
            return file.read(most + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; mend its permissions or remove it."
        ) from error


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      path: of the file.
      remedy: what to do where it is damaged, as the end of a sentence.

    Raises:
      InputError: when it cannot be read, is no JSON object, or is longer than `MOST_JSON`.
    """
    data = read_most(path, MOST_JSON)
    try:
        if len(data) > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON} bytes")
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged; {remedy}") from error
    return content


def below(folder: pathlib.Path, name: Any) -> pathlib.Path:
    """The path of what a file says to have the given name in a folder.

    Raises:
      InputError: when that is no plain name, or a link that leads out of the folder.
    """
    plain = isinstance(name, str) and name.isprintable() and name not in ("", ".", "..")
    if not plain or {"/", "\\", os.sep} & set(name) or len(name) > 200:
        raise InputError(
            f"{shown(name)!r} is no name of something in {folder}; "
            "a name is one part of a path, so do not trust where this one comes from."
        )
    path = folder / name
    _check_link(path, folder)
    return path


def check_links(folder: pathlib.Path) -> None:
    """Check, before anything is written, that no link leads out of a folder.

    Raises:
      InputError: if one does.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = pathlib.Path(place, name)
            if path.is_symlink():
                _check_link(path, pathlib.Path(root))


def _check_link(path: pathlib.Path, folder: pathlib.Path) -> None:
    root, target = os.path.realpath(folder), os.path.realpath(path)
    if target != root and os.path.commonpath([root, target]) != root:
        raise InputError(
            f"{path} is a link that leads out of {folder}; put what it stands for in its place."
        )
