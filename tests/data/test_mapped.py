"""Images that stay in their file, against the same in memory."""

import numpy as np
import pytest

from memdef_jax import data, processes
from memdef_jax.checks import InputError
from memdef_jax.data import Floats, Joined, Mapped, Split
from memdef_jax.data.dataset import make_dataset

LABELS = np.array([0, 1, 2, 1, 0, 2, 1], np.int32)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), np.uint8)


@pytest.fixture
def mapped(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    return Mapped(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(7))


def cuts():
    return (slice(2, 6), slice(None, None, -2), np.array([6, 0, 0]), np.arange(7) % 3 == 1)


def test_what_is_read_is_what_numpy_would_index(images, mapped):
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(mapped, name) == getattr(images, name)
    for index in (*cuts(), 3):
        np.testing.assert_array_equal(mapped[index], images[index])
        assert type(mapped[index]) is np.ndarray
        assert mapped[index].flags.writeable
    np.testing.assert_array_equal(np.asarray(mapped), images)
    np.testing.assert_array_equal(data.to_float(mapped), images.astype(np.float32) / 255)


def test_a_split_is_cut_as_one_in_memory_and_stays_in_its_file(images, mapped):
    plain, stays = Split(images, LABELS), Split(mapped, LABELS)
    for one in cuts():
        for other in (slice(1, 3), np.array([1, 0])):
            found, expected = stays[one][other], plain[one][other]
            assert found.images.array is mapped.array
            np.testing.assert_array_equal(np.asarray(found.images), expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)
    dataset = make_dataset("toy", ("a", "b", "c"), plain, plain, "nowhere")
    lasting = data.Dataset(stays, stays, dataset.info)
    for found, expected in zip(
        data.validation_split(lasting, count=2), data.validation_split(dataset, count=2)
    ):
        np.testing.assert_array_equal(np.asarray(found.images), expected.images)
    for found, expected in zip(data.eval_batches(stays, 4), data.eval_batches(plain, 4)):
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one, other)


def test_floats_are_converted_as_they_are_read(images, mapped):
    whole = images.astype(np.float32) / 255
    for held in (Floats(images), Floats(mapped)):
        assert (held.shape, held.dtype, held.nbytes) == (whole.shape, whole.dtype, whole.nbytes)
        np.testing.assert_array_equal(np.asarray(held), whole)
        both = Joined((held, whole[:2]))
        index = np.array([8, 0, 6, 7, 3])
        np.testing.assert_array_equal(both[index], np.concatenate([whole, whole[:2]])[index])
        np.testing.assert_array_equal(np.asarray(both)[:7], whole)


@pytest.fixture
def second(monkeypatch):
    """As in a second process, whose work `by_one` the first does."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "by_one", lambda work: work())
    monkeypatch.setattr(processes, "_PAUSES", (0, 0))


def test_one_process_has_what_was_loaded(tmp_path):
    digits = data.load("digits", image_size=8)
    assert data.shared(lambda: digits, tmp_path) is digits
    assert not any(tmp_path.iterdir())


def test_several_have_the_same_from_one_file(second, tmp_path):
    digits = data.load("digits", image_size=8)
    found = data.shared(lambda: digits, tmp_path)
    assert found.info == digits.info
    for one, other in ((found.train, digits.train), (found.test, digits.test)):
        assert isinstance(one.images, Mapped)
        np.testing.assert_array_equal(np.asarray(one.images), other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.labels.dtype == np.int32
    assert data.fingerprint(found.train, found.test) == digits.info.fingerprint


def test_a_damaged_file_is_written_again_and_a_whole_one_is_left(second, tmp_path):
    digits = data.load("digits", image_size=8)
    data.shared(lambda: digits, tmp_path)
    train, test = sorted((tmp_path / ".data").iterdir(), reverse=True)
    before = test.stat().st_mtime_ns
    content = bytearray(train.read_bytes())
    content[5] ^= 1
    train.write_bytes(content)
    found = data.shared(lambda: digits, tmp_path)
    np.testing.assert_array_equal(np.asarray(found.train.images), digits.train.images)
    assert test.stat().st_mtime_ns == before


def test_a_folder_that_only_the_first_sees_is_one_sentence(second, monkeypatch, tmp_path):
    digits = data.load("digits", image_size=8)
    monkeypatch.setattr(processes, "is_writer", lambda: False)  # so nothing is written
    with pytest.raises(InputError, match="was written and cannot be read; give all processes a f"):
        data.shared(lambda: digits, tmp_path)
