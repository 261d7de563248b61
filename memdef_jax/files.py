"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid

from memdef_jax.checks import InputError


def write_atomic(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old or the new content.

    Raises:
      InputError: when the disk is full or the folder cannot be written.
    """
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

    Raises:
      InputError: if not.
    """
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
