"""Data: official datasets and image folders as uint8 arrays, batches and augmentation.

`load` finds, verifies and prepares, and `shared` gives what it found to several processes;
`train_batch` and `eval_batches` cut batches; `Augmentation` changes them inside a compiled step;
`celeba` streams what does not fit into memory.
"""

from memdef_jax.data.augment import (
    Augmentation,
    gaussian_noise,
    random_crop,
    random_erasing,
    random_flip,
)
from memdef_jax.data.batches import (
    Batch,
    batch_indices,
    epoch_order,
    eval_batches,
    steps_per_epoch,
    train_batch,
)
from memdef_jax.data.celeba import celeba
from memdef_jax.data.dataset import (
    Dataset,
    DatasetInfo,
    Split,
    fingerprint,
    subset,
    to_float,
    validation_split,
)
from memdef_jax.data.joined import Floats, Joined
from memdef_jax.data.loading import NAMES, load, prepare
from memdef_jax.data.mapped import Mapped
from memdef_jax.data.shared import shared

__all__ = [
    "NAMES",
    "Augmentation",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Floats",
    "Joined",
    "Mapped",
    "Split",
    "batch_indices",
    "celeba",
    "epoch_order",
    "eval_batches",
    "fingerprint",
    "gaussian_noise",
    "load",
    "prepare",
    "random_crop",
    "random_erasing",
    "random_flip",
    "shared",
    "steps_per_epoch",
    "subset",
    "to_float",
    "train_batch",
    "validation_split",
]
