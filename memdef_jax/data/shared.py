"""A dataset of several processes: one of them loads it, and all read it from one file."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from memdef_jax import arrays, processes
from memdef_jax.data.dataset import Dataset, DatasetInfo, Split
from memdef_jax.data.mapped import Mapped
from memdef_jax.files import check_links, write_atomic

_PLACE = ".data"  # hidden, as it is in the folder before the run is


def shared(load: Callable[[], Dataset], folder: pathlib.Path) -> Dataset:
    """What `load` gives; with several processes as images in a file, see `Mapped`.

    The first process alone loads it and writes it to `.data` in the folder, where it stays for the
    next time: the images of a split as bytes, then its labels. So each process reads the rows of
    its own share of the work, and only the first needs to find the dataset.

    Args:
      load: gives the dataset; called in the first process alone.
      folder: that all processes see, such as a run's.

    Raises:
      InputError: in every process, what `load` raises in the first, or when the folder cannot be
        written by the first or read by another.
    """
    if processes.count() == 1:
        return load()
    said = processes.by_one(lambda: _write(load(), folder))
    names, shape = tuple(said["info"].pop("class_names")), tuple(said["info"].pop("image_shape"))
    info = DatasetInfo(class_names=names, image_shape=shape, **said["info"])
    train, test = (
        _read(folder / _PLACE / name, count, shape) for name, count in said["files"].items()
    )
    return Dataset(train, test, info)


def _write(dataset: Dataset, folder: pathlib.Path) -> dict[str, Any]:
    """Store both splits, unless they are; what the others must know of them."""
    check_links(folder)
    files = {}
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        name = f"{dataset.info.fingerprint[:16]}-{part}.bin"
        images = np.ascontiguousarray(split.images)
        content = images.tobytes() + split.labels.astype("<i4").tobytes()
        path = folder / _PLACE / name
        if not (path.is_file() and arrays.digest(path) == hashlib.sha256(content).hexdigest()):
            write_atomic(path, content)
        files[name] = len(split)
    return {"info": dataclasses.asdict(dataset.info), "files": files}


def _read(path: pathlib.Path, count: int, shape: tuple[int, ...]) -> Split:
    size = count * int(np.prod(shape))

    def found() -> Split | None:
        if not path.is_file() or path.stat().st_size != size + 4 * count:
            return None
        images = np.asarray(np.memmap(path, np.uint8, "r", 0, (count, *shape)))
        labels = np.fromfile(path, "<i4", offset=size).astype(np.int32)
        return Split(Mapped(images, np.arange(count)), labels)

    return processes.read_written(found, path)
