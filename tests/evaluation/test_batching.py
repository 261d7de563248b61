"""Images through a function batch by batch."""

import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation.batching import in_batches

IMAGES = np.arange(7 * 2 * 2, dtype=np.float32).reshape(7, 2, 2, 1)


@pytest.mark.parametrize("size", [1, 3, 7, 250])
def test_every_image_has_its_row_whatever_the_batch(size):
    shapes = set()

    def describe(x):
        shapes.add(x.shape)
        return {"sum": x.sum((1, 2, 3)), "both": (2 * x, x[:, 0, 0, 0] > 8)}

    found = in_batches(describe, IMAGES, size)
    assert shapes == {(min(size, 7), 2, 2, 1)}  # the last batch is filled up
    np.testing.assert_array_equal(found["sum"], IMAGES.sum((1, 2, 3)))
    np.testing.assert_array_equal(found["both"][0], 2 * IMAGES)
    np.testing.assert_array_equal(found["both"][1], IMAGES[:, 0, 0, 0] > 8)


def test_no_image_and_no_batch_are_refused():
    with pytest.raises(InputError, match="0 images beside 0 labels cannot be evaluated"):
        in_batches(abs, IMAGES[:0])
    with pytest.raises(InputError, match="batch_size 0 is below 1"):
        in_batches(abs, IMAGES, 0)
