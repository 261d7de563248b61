"""Results on disk: one JSON line a cell, appended as it finishes, and its outcomes per sample."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from memdef_jax.checks import InputError, shown
from memdef_jax.files import cannot_write, read_most, write_atomic

Record = dict[str, Any]
RECORDS = "robustness.jsonl"
MOST_BYTES = 1 << 30  # of all records, and of a cell's outcomes: a thousand times what is usual
# What makes two records the same cell. A later line replaces an earlier one.
IDENTITY = (
    "dataset",
    "fingerprint",
    "defense",
    "selector",
    "threat",
    "attack",
    "norm",
    "eps",
    "n",
    "seed",
    "settings",
)


def cell_id(record: Mapping[str, Any]) -> str:
    """A short name of a cell, the same for equal identities."""
    identity = json.dumps([record[name] for name in IDENTITY], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def read_records(folder: pathlib.Path) -> dict[str, Record]:
    """All cells of a run by `cell_id`, the last line of each; a torn last line is passed over.

    Raises:
      InputError: when another line cannot be read.
    """
    path = folder / RECORDS
    if not path.exists():
        return {}
    found: dict[str, Record] = {}
    content = read_most(path, MOST_BYTES)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES} bytes; move it away.")
    # What follows the last newline was cut off while it was written, even if it reads well.
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[cell_id(record)] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is damaged; delete that line to measure its cell again."
            ) from error
    return found


def append_record(
    folder: pathlib.Path, record: Record, outcomes: Mapping[str, np.ndarray] | None = None
) -> Record:
    """Store a finished cell: first its outcomes per sample, then its line.

    Args:
      folder: the run's.
      record: JSON-able, with all of `IDENTITY`.
      outcomes: arrays kept in `cells/<cell_id>.npz`.

    Returns:
      The record as stored: with outcomes it names their SHA-256 under "outcomes".

    Raises:
      InputError: when the folder cannot be written.
    """
    if outcomes is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **outcomes)  # type: ignore[arg-type]
        record = {**record, "outcomes": hashlib.sha256(buffer.getvalue()).hexdigest()}
        write_atomic(_outcomes_path(folder, record), buffer.getvalue())
    path = folder / RECORDS
    try:
        _drop_torn_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    return record


def read_outcomes(folder: pathlib.Path, record: Record) -> dict[str, np.ndarray] | None:
    """What `append_record` kept per sample, None if it is absent or not what the record names.

    Raises:
      InputError: when it is what the record names and holds no arrays, or more than `MOST_BYTES`.
    """
    path = _outcomes_path(folder, record)
    if not path.exists():
        return None
    content = read_most(path, MOST_BYTES)
    if hashlib.sha256(content).hexdigest() != record.get("outcomes"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"unpacked, it has more than {MOST_BYTES} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # of zip, zlib and NumPy, each with errors of its own
        raise InputError(
            f"{path} holds no outcomes ({shown(error, 200)}); delete it to measure its cell again."
        ) from error


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Records whose named fields have the given values."""
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def _outcomes_path(folder: pathlib.Path, record: Record) -> pathlib.Path:
    return folder / "cells" / f"{cell_id(record)}.npz"


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cut off what a killed write left behind the last newline."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
