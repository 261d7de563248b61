"""Which samples are in which batch: pure functions of seed and step, so that a run can resume."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data.dataset import Split, shuffled
from memdef_jax.data.mapped import Mapped


class Batch(NamedTuple):
    """One evaluation batch, padded to full size.

    Attributes:
      images: [B, H, W, C], the dtype they were given in.
      labels: [B].
      valid: bool [B], False on padding, which repeats the last sample and must not be counted.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


@functools.lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: a read-only permutation int64 [size] set by (seed, epoch, size) alone.

    Raises:
      InputError: when seed or epoch is negative.
    """
    order = shuffled(size, seed, epoch)
    order.setflags(write=False)  # it is cached and shared
    return order


def steps_per_epoch(size: int, batch_size: int) -> int:
    """How many full batches an epoch has; the remainder is dropped.

    Raises:
      InputError: when batch_size is below 1 or above the size.
    """
    if not 1 <= batch_size <= size:
        raise InputError(
            f"batch_size {batch_size} does not fit a split of {size} samples; use 1 to {size}."
        )
    return size // batch_size


def batch_indices(size: int, step: int, batch_size: int, seed: int) -> np.ndarray:
    """Indices int64 [batch_size] of the training batch of a global step, over all epochs.

    A pure function of its arguments: a resumed run sees the batches it would have seen. Each epoch
    visits every sample at most once and drops its last partial batch.

    Raises:
      InputError: when batch_size does not fit the size, or step or seed is negative.
    """
    if step < 0:
        raise InputError(f"step {step} is negative; steps start at 0.")
    epoch, position = divmod(step, steps_per_epoch(size, batch_size))
    start = position * batch_size
    return epoch_order(seed, epoch, size)[start : start + batch_size]


def train_batch(
    split: Split, step: int, batch_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The training batch of a global step: images uint8 [B, H, W, C] and labels int32 [B].

    Raises:
      InputError: as `batch_indices`.
    """
    indices = batch_indices(len(split), step, batch_size, seed)
    return split.images[indices], split.labels[indices]


def eval_batches(split: Split | tuple[np.ndarray, np.ndarray], batch_size: int) -> Iterator[Batch]:
    """All samples once, in order, in batches of one size: the last is padded and masked.

    Args:
      split: a Split, or (images, labels) of equal length and any dtype.
      batch_size: may exceed the number of samples, which then make one padded batch.

    Raises:
      InputError: when batch_size is below 1, there is no sample, or the lengths differ.
    """
    images, labels = (split.images, split.labels) if isinstance(split, Split) else split
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} is below 1.")
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"{len(images)} images beside {len(labels)} labels cannot be evaluated; "
            "give at least one image and one label each."
        )
    return _padded(images, labels, batch_size)


def _padded(images: np.ndarray | Mapped, labels: np.ndarray, batch_size: int) -> Iterator[Batch]:
    size = len(images)
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size)
        valid = positions < size
        # Padding repeats a real image, so that nothing downstream meets an odd one.
        positions = np.minimum(positions, size - 1)
        yield Batch(images[positions], labels[positions], valid)
