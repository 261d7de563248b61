"""`load`: one name, one dataset, wherever its files are."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data import builders
from memdef_jax.data.dataset import Dataset, Split, make_dataset
from memdef_jax.data.digits import digits
from memdef_jax.data.folder import image_folder
from memdef_jax.data.images import Size, image_size_pair, resize, to_gray
from memdef_jax.data.official import OFFICIAL

NAMES = ("digits", *OFFICIAL)
PathLike = str | os.PathLike[str]


def load(
    name: str,
    *,
    data_dir: PathLike | None = None,
    raw_dir: PathLike | None = None,
    image_size: Size | None = None,
    gray: bool = False,
    download: bool = True,
) -> Dataset:
    """Load the official splits of a dataset as uint8 arrays in memory.

    Looked for in order: a dataset prepared in data_dir (ours or TFDS's stock one kept as
    ArrayRecord), raw_dir, the system's `datasets` folders, the official mirror, a package. What is
    found is verified and prepared in data_dir, so the next call is fast. "digits" needs neither.

    Args:
      name: "digits", "mnist", "fashion_mnist", "cifar10", or "folder:PATH" for images in
        PATH/train/<class>/ and PATH/test/<class>/.
      data_dir: where prepared datasets live; by default TFDS_DATA_DIR or ~/tensorflow_datasets.
      raw_dir: a folder with the dataset's raw files.
      image_size: one number or (height, width) to resize to; by default the dataset's own size,
        which for digits is 28 (drawn from 8x8) and for a folder that of its images.
      gray: turn colours into one channel, 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601),
        after any resizing; gray images stay as they are.
      download: whether the network may be used.

    Returns:
      The dataset; `info.source` says where it came from and `info.fingerprint` what it holds.

    Raises:
      InputError: on an unknown name, a truncated or altered file (named), no source (all listed,
        with remedies), or an unsuitable image_size.

    Example:
      >>> dataset = load("digits")
      >>> dataset.train.images.shape, dataset.test.images.shape
      ((1437, 28, 28, 1), (360, 28, 28, 1))
    """
    if name.startswith("folder:"):
        dataset = image_folder(name.removeprefix("folder:"), image_size)
    else:
        _check_name(name)
        size = None if image_size is None else image_size_pair(image_size)
        if name == "digits":
            return digits(size or 28)
        dataset = prepare(name, data_dir=data_dir, raw_dir=raw_dir, download=download)
        if size is not None and size != dataset.info.image_shape[:2]:
            words = f"resized to {size[0]}x{size[1]}"
            dataset = _changed(dataset, lambda images: resize(images, size), words)
    if gray and dataset.info.image_shape[2] > 1:
        dataset = _changed(dataset, to_gray, "turned gray")
    return dataset


def _changed(dataset: Dataset, change: Callable[[np.ndarray], np.ndarray], words: str) -> Dataset:
    """A dataset with other images, which its source says."""
    train, test = (
        Split(change(np.asarray(s.images)), s.labels) for s in (dataset.train, dataset.test)
    )
    source = f"{dataset.info.source}, {words}"
    return make_dataset(dataset.info.name, dataset.info.class_names, train, test, source)


def prepare(
    name: str,
    *,
    data_dir: PathLike | None = None,
    raw_dir: PathLike | None = None,
    download: bool = True,
    verify: bool = False,
) -> Dataset:
    """Prepare an official dataset in data_dir unless it is, and read it back.

    Several processes may prepare the same one at once. Every read checks the fingerprint.

    Args:
      name: "digits", "mnist", "fashion_mnist" or "cifar10".
      data_dir: as in `load`.
      raw_dir: as in `load`.
      download: as in `load`.
      verify: read every sample once more through TFDS's own decoder and compare.

    Raises:
      InputError: as `load`, or when data_dir cannot be written.
    """
    _check_name(name)
    dataset = builders.read_prepared(name, data_dir)
    if dataset is None:
        builders.prepare(name, data_dir, raw_dir, download=download)
        dataset = builders.read_prepared(name, data_dir)
    if dataset is None:
        raise InputError(f"{name} vanished from its data_dir while it was read; try again.")
    if verify:
        builders.verify(name, data_dir)
    return dataset


def _check_name(name: str) -> None:
    if name not in NAMES:
        hint = "; CelebA is streamed by `celeba`" if name in ("celeba", "celeb_a") else ""
        raise InputError(
            f'there is no dataset "{name}"; use {", ".join(NAMES)} or folder:PATH{hint}.'
        )
