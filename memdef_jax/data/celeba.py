"""CelebA as a binary task, streamed from TFDS: its 200,000 faces are never all in memory."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from memdef_jax.checks import InputError
from memdef_jax.data.batches import epoch_order
from memdef_jax.data.builders import default_data_dir
from memdef_jax.data.images import Size, image_size_pair

_SPLITS = ("train", "validation", "test")


def celeba(
    attribute: str = "Male",
    *,
    split: str = "train",
    batch_size: int = 128,
    image_size: Size = 64,
    seed: int | None = None,
    epoch: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    source: Any = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over a split of CelebA as (images uint8 [B, H, W, 3], labels int32 [B]).

    A label is 1 where the face has the attribute. Faces are cut to their central square, then
    resized bilinearly.

    Args:
      attribute: one of CelebA's forty, for example "Male" or "Smiling".
      split: "train", "validation" or "test".
      batch_size: of this process.
      image_size: one number or (height, width).
      seed: shuffles and drops the last partial batch, for training; None keeps the order and
        every sample, for evaluation.
      epoch: with the seed, chooses the order.
      data_dir: where TFDS's `celeb_a` is prepared as ArrayRecord.
      source: instead of TFDS, anything with len() and [i] that gives
        {"image": uint8 [h, w, 3], "attributes": {name: bool}}.
      process_index: which part of the samples to give, of process_count disjoint parts.
      process_count: number of processes that share the pass.

    Raises:
      InputError: at once, when an argument does not fit or CelebA is not prepared.
    """
    size = image_size_pair(image_size)
    if split not in _SPLITS:
        raise InputError(f'CelebA has no split "{split}"; use {", ".join(_SPLITS)}.')
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} is outside 0 to {process_count - 1}.")
    if source is None:
        source = _prepared(split, data_dir)
    count = len(source)
    share = count // process_count
    if not 1 <= batch_size <= share:
        raise InputError(
            f"batch_size {batch_size} does not fit the {share} samples of each of "
            f"{process_count} processes; use 1 to {share}."
        )
    attributes = source[0]["attributes"]
    if attribute not in attributes:
        raise InputError(
            f'CelebA has no attribute "{attribute}"; use one of {", ".join(sorted(attributes))}.'
        )
    order = np.arange(count) if seed is None else epoch_order(seed, epoch, count)
    order = order[process_index::process_count]
    if seed is not None:  # every process then makes the same number of full batches
        order = order[: share // batch_size * batch_size]
    return _stream(source, attribute, order, batch_size, size)


def _stream(
    source: Any, attribute: str, order: np.ndarray, batch_size: int, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        images = np.empty((len(chosen), *size, 3), np.uint8)
        labels = np.empty(len(chosen), np.int32)
        for row, index in enumerate(chosen):
            example = source[int(index)]
            images[row] = _square(example["image"], size)
            labels[row] = bool(example["attributes"][attribute])
        yield images, labels


def _square(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(np.asarray(image[top : top + side, left : left + side]))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _prepared(split: str, data_dir: str | os.PathLike[str] | None) -> Any:
    folder = pathlib.Path(data_dir or default_data_dir()).expanduser() / "celeb_a"
    for path in sorted(folder.glob("*/dataset_info.json"), reverse=True):
        builder = tfds.builder_from_directory(str(path.parent))
        readable = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
        if readable and split in builder.info.splits:
            return builder.as_data_source(split)
    raise InputError(
        f"no {split} split of CelebA prepared as ArrayRecord is in {folder}; prepare it once "
        "where TensorFlow is installed with `tfds build celeb_a --file_format=array_record`, "
        "then set TFDS_DATA_DIR or data_dir to the folder that holds celeb_a."
    )
