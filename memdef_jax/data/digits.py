"""The 1,797 handwritten 8x8 digits that scikit-learn carries: real data without any network."""

from __future__ import annotations

import numpy as np

from memdef_jax.data.dataset import Dataset, Split, make_dataset, shuffled
from memdef_jax.data.images import Size, resize

CLASS_NAMES = tuple("0123456789")


def digits(image_size: Size = 28) -> Dataset:
    """The digits as uint8 images of one channel, split 1437 to 360.

    scikit-learn names no official split. This one is fixed for good: shuffled within each class,
    every fifth sample is for testing, so both splits have the classes in equal shares.

    Args:
      image_size: one number or (height, width); the 8x8 images are resized bilinearly.

    Raises:
      InputError: when image_size is no size.
    """
    from sklearn.datasets import load_digits  # half a second, which other datasets need not pay

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    order = shuffled(len(labels), 0)
    order = order[np.argsort(labels[order], kind="stable")]
    testing = np.zeros(len(labels), bool)
    testing[order[::5]] = True
    images = resize(images, image_size)
    train, test = Split(images[~testing], labels[~testing]), Split(images[testing], labels[testing])
    return make_dataset("digits", CLASS_NAMES, train, test, "scikit-learn's load_digits")
