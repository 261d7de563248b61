"""Files of arrays that others left: what is read of them, and what is refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from memdef_jax import arrays
from memdef_jax.arrays import Described
from memdef_jax.checks import InputError


@pytest.fixture(params=["safetensors", "npz"])
def write(request, tmp_path):
    """write(**arrays) -> the path of a file with them."""

    def make(**content):
        path = tmp_path / f"weights.{request.param}"
        save_file(content, path) if request.param == "safetensors" else np.savez(path, **content)
        return path

    return make


def test_what_is_described_is_what_is_read(write):
    content = {
        "features.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.array([0.5, -2.0], np.float16),
        "count": np.array(3, np.int64),
    }
    path = write(**content)
    found = arrays.describe(path)
    assert found["features.0.weight"] == Described((3, 4), "float32")
    assert found["half"] == Described((2,), "float16")
    assert found["count"].shape == ()
    read = arrays.read(path, ["half", "features.0.weight"])
    assert list(read) == ["half", "features.0.weight"]
    for name, array in read.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, content[name])
    with pytest.raises(InputError, match="has no array other; it has"):
        arrays.read(path, ["other"])
    with pytest.raises(InputError, match=r"count of .* can be read, so convert it"):
        arrays.read(path, ["count"])


def test_numbers_that_are_none_are_refused(write):
    with pytest.raises(InputError, match=r"bias of .* holds NaN"):
        arrays.read(write(bias=np.array([1.0, np.nan], np.float32)), ["bias"])


def test_a_damaged_file_is_named(write):
    path = write(weight=np.zeros(100, np.float32))
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(InputError, match=r"weights.* is damaged"):
        arrays.describe(path)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "vgg16.pth").write_bytes(b"")
    with pytest.raises(InputError, match="is no file of arrays that can be trusted"):
        arrays.describe(tmp_path / "vgg16.pth")
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"weight of .* is object"):
        arrays.read(tmp_path / "objects.npz", ["weight"])


def test_an_absent_file_is_named(tmp_path):
    for use in (arrays.describe, arrays.digest):
        with pytest.raises(InputError, match=r"none\.npz"):
            use(tmp_path / "none.npz")
