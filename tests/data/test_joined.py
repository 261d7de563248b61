"""Arrays joined without copying, against NumPy's concatenation."""

import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.data import Joined


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(0)
    plain = [rng.normal(size=(n, 2, 3)).astype(np.float32) for n in (4, 0, 1, 7)]
    np.save(tmp_path / "last.npy", plain[-1])
    return (*plain[:-1], np.load(tmp_path / "last.npy", mmap_mode="r"))


def test_it_is_the_concatenation(parts):
    whole, joined = np.concatenate(parts), Joined(parts)
    assert (joined.shape, joined.dtype, len(joined)) == (whole.shape, whole.dtype, len(whole))
    assert joined.nbytes == whole.nbytes
    np.testing.assert_array_equal(np.asarray(joined), whole)
    assert np.asarray(joined, np.float64).dtype == np.float64
    for index in (np.arange(12), np.array([11, 0, 3, 4, 5, 4]), np.array([], int), [4]):
        found = joined[np.asarray(index, int)]
        np.testing.assert_array_equal(found, whole[np.asarray(index, int)])
        assert found.flags.owndata
        assert found.dtype == np.float32


def test_rows_that_are_not_there_are_refused(parts):
    for wrong in (12, -1):
        with pytest.raises(IndexError, match="of 12"):
            Joined(parts)[np.array([3, wrong])]


def test_parts_that_do_not_fit_are_refused(parts):
    for wrong in ((), (parts[0], parts[0][:, :1]), (parts[0], parts[0].astype(np.float64))):
        with pytest.raises(InputError, match="cannot be joined"):
            Joined(wrong)
