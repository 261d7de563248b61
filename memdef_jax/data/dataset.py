"""What every loader returns: two splits of labelled uint8 images, and where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data.mapped import Mapped


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, H, W, C] and labels int32 [N]; slicing gives another Split.

    The images are in memory or, where several processes work together, in a file, see `shared`.

    Raises:
      InputError: on another dtype or rank, or when the two lengths differ.
    """

    images: np.ndarray | Mapped
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(
                f"images of a split are {self.images.dtype} {self.images.shape}; "
                "uint8 [N, H, W, C] is needed."
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels of a split are {self.labels.dtype} {self.labels.shape} beside "
                f"{len(self.images)} images; int32, one an image, is needed."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | np.ndarray) -> Split:
        if isinstance(index, (int, np.integer)):
            raise InputError(
                f"a split is cut by slices or index arrays; use [{index}:{index + 1}]."
            )
        images = self.images.cut(index) if isinstance(self.images, Mapped) else self.images[index]
        return Split(images, self.labels[index])

    def take(self, n: int) -> Split:
        """The first n samples.

        Raises:
          InputError: when n is below 1 or above the size of the split.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"{n} samples asked of a split of {len(self)}; ask 1 to {len(self)}.")
        return self[:n]


def subset(split: Split, n: int | None) -> Split:
    """The first n samples, all for None; a fair part of them.

    Where the samples come class by class, as a folder's do, n are drawn with a fixed seed instead.

    Raises:
      InputError: when n is below 1 or above the size of the split.
    """
    if n is None or n == len(split):
        return split
    if np.all(np.diff(split.labels) >= 0):
        split.take(n)  # refuses what does not fit
        return split[shuffled(len(split), 0, 0)[:n]]
    return split.take(n)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is.

    Attributes:
      name: as given to `load`; a folder's is "folder:<basename>", whatever its path.
      class_names: one a label, in the order of the labels.
      image_shape: (height, width, channels).
      fingerprint: SHA-256 of both splits, order included (see `fingerprint`).
      source: words saying where the data came from.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The official train and test splits of one dataset."""

    train: Split
    test: Split
    info: DatasetInfo


def make_dataset(
    name: str, class_names: tuple[str, ...], train: Split, test: Split, source: str
) -> Dataset:
    """Put two splits together and fingerprint them."""
    height, width, channels = train.images.shape[1:]
    info = DatasetInfo(
        name, tuple(class_names), (height, width, channels), fingerprint(train, test), source
    )
    return Dataset(train, test, info)


def fingerprint(*splits: Split) -> str:
    """SHA-256 (hexadecimal) over shape, pixels and labels of the splits, in order.

    Equal fingerprints mean the same data in the same order, hence the same training batches.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels.astype("<i4")).data)
    return digest.hexdigest()


def unordered_digest(*splits: Split) -> str:
    """SHA-256 over the splits' samples whatever their order: for copies that were shuffled."""
    digest = hashlib.sha256()
    for split in splits:
        samples = (
            hashlib.sha256(image.tobytes() + int(label).to_bytes(4, "little")).digest()
            for image, label in zip(np.asarray(split.images), split.labels)
        )
        digest.update(b"".join(sorted(samples)))
    return digest.hexdigest()


def shuffled(size: int, *seed: int) -> np.ndarray:
    """A permutation int64 [size] that depends on the seeds alone, on every machine and version.

    Sorted raw Philox bits: NumPy promises that those never change, which it does not promise of
    `Generator.permutation`.

    Raises:
      InputError: when a seed is negative.
    """
    if min(seed) < 0:
        raise InputError(f"seed {min(seed)} is negative; seeds and epochs start at 0.")
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(size)
    return np.argsort(bits, kind="stable")


def validation_split(
    dataset: Dataset, *, count: int | None = None, fraction: float | None = None, seed: int = 0
) -> tuple[Split, Split]:
    """Cut a validation split from the train split; the test split is never touched.

    Args:
      dataset: whose train split is cut.
      count: how many samples to set aside; give this or `fraction`.
      fraction: which part of the train split to set aside, in (0, 1).
      seed: chooses the samples; the same seed chooses the same ones.

    Returns:
      (train, validation): disjoint, together the whole train split, each in its original order.

    Raises:
      InputError: unless exactly one of count and fraction is given and both parts hold a sample.
    """
    size = len(dataset.train)
    if (count is None) == (fraction is None):
        raise InputError("give either count or fraction of the validation split, and not both.")
    if fraction is not None:
        if not 0.0 < fraction < 1.0:
            raise InputError(f"validation fraction {fraction:g} is outside (0, 1).")
        count = round(fraction * size)
    assert count is not None
    if not 1 <= count < size:
        raise InputError(
            f"a validation split of {count} samples cannot be cut from {size} training samples; "
            f"ask 1 to {size - 1}."
        )
    held_out = np.zeros(size, bool)
    held_out[shuffled(size, seed)[:count]] = True
    return dataset.train[~held_out], dataset.train[held_out]


def to_float(images: Any) -> Any:
    """Images uint8 of any shape -> float32 in [0, 1]: NumPy stays NumPy, JAX stays JAX.

    Raises:
      InputError: when the images are not uint8.
    """
    if getattr(images, "dtype", None) != np.uint8:
        raise InputError(
            f"images have dtype {getattr(images, 'dtype', type(images).__name__)}; "
            "uint8 is needed (float images are converted already)."
        )
    if isinstance(images, jax.Array):
        return images.astype(jnp.float32) / 255.0
    return np.asarray(images).astype(np.float32) / np.float32(255)
