import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdef_jax.checks import InputError, check_images
from memdef_jax.data import Split, fingerprint, subset, to_float, validation_split
from memdef_jax.data.dataset import make_dataset, shuffled, unordered_digest


def make_split(size: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 4, 3, 1), np.uint8)
    return Split(images, np.arange(size, dtype=np.int32))


def make(train: int, test: int):
    return make_dataset("made", ("a", "b"), make_split(train), make_split(test, 1), "a test")


def test_a_subset_is_the_first_samples_unless_they_come_class_by_class():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 2, 2, 1), np.uint8)
    mixed = Split(images, rng.permutation(np.repeat(np.arange(4, dtype=np.int32), 25)))
    np.testing.assert_array_equal(subset(mixed, 10).images, images[:10])
    assert subset(mixed, None) is mixed
    by_class = Split(images, np.repeat(np.arange(4, dtype=np.int32), 25))
    drawn = subset(by_class, 40)
    assert len(np.unique(drawn.images.reshape(40, -1), axis=0)) == 40
    # Each class has 10 expected of 25; fewer than 2 happens once in 10,000 draws.
    assert np.bincount(drawn.labels).min() >= 2
    np.testing.assert_array_equal(subset(by_class, 40).labels, drawn.labels)
    with pytest.raises(InputError, match="ask 1 to 100"):
        subset(by_class, 101)


def test_split_slices_and_takes():
    split = make_split(10)
    assert len(split.take(3)) == 3
    np.testing.assert_array_equal(split[2:5].labels, [2, 3, 4])
    np.testing.assert_array_equal(split[np.array([7, 1])].images, split.images[[7, 1]])


@pytest.mark.parametrize("n", [0, 11, -1])
def test_take_refuses_what_is_not_there(n):
    with pytest.raises(InputError, match="split of 10"):
        make_split(10).take(n)


def test_split_refuses_a_single_index():
    with pytest.raises(InputError, match=r"\[3:4\]"):
        make_split(10)[3]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3, 3, 1), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, np.int32)),
    ],
)
def test_split_refuses_other_types(images, labels):
    with pytest.raises(InputError):
        Split(images, labels)


def test_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(4, 2).train = make_split(1)


def test_fingerprint_is_the_documented_hash():
    split = make_split(3)
    due = hashlib.sha256(
        b"(3, 4, 3, 1)" + split.images.tobytes() + bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])
    )
    assert fingerprint(split) == due.hexdigest()


def test_fingerprint_sees_pixels_labels_and_order():
    split = make_split(6)
    pixel = split.images.copy()
    pixel[5, 3, 2, 0] ^= 1
    label = split.labels.copy()
    label[0] = 9
    others = [Split(pixel, split.labels), Split(split.images, label), split[::-1], split[:5]]
    assert len({fingerprint(s) for s in [split, *others]}) == 5
    assert unordered_digest(split[::-1]) == unordered_digest(split)
    assert len({unordered_digest(s) for s in (split, others[0], others[1], others[3])}) == 4


@given(size=st.integers(2, 60), data=st.data())
def test_validation_split_is_a_partition_of_train(size, data):
    count = data.draw(st.integers(1, size - 1))
    seed = data.draw(st.integers(0, 2**40))
    dataset = make(size, 2)
    train, validation = validation_split(dataset, count=count, seed=seed)
    assert len(validation) == count
    assert sorted([*train.labels, *validation.labels]) == list(range(size))
    assert list(train.labels) == sorted(train.labels)
    again = validation_split(dataset, count=count, seed=seed)[1]
    np.testing.assert_array_equal(again.labels, validation.labels)


def test_validation_split_by_fraction_and_seed():
    dataset = make(1000, 2)
    _, first = validation_split(dataset, fraction=0.1)
    _, second = validation_split(dataset, fraction=0.1, seed=1)
    assert len(first) == len(second) == 100
    assert set(first.labels) != set(second.labels)


@pytest.mark.parametrize(
    "how", [{}, {"count": 1, "fraction": 0.5}, {"count": 0}, {"count": 10}, {"fraction": 1.0}]
)
def test_validation_split_refuses(how):
    with pytest.raises(InputError):
        validation_split(make(10, 2), **how)


def test_shuffled_never_changes():
    # Golden: a change here would silently change every split and every training run.
    assert shuffled(8, 0).tolist() == GOLDEN_8
    with pytest.raises(InputError, match="-3"):
        shuffled(8, 0, -3)


GOLDEN_8 = [0, 3, 7, 5, 1, 2, 6, 4]


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_to_float_covers_exactly_the_unit_interval(convert):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(convert(images))
    assert isinstance(floats, np.ndarray if convert is np.asarray else jax.Array)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats.ravel(), np.arange(256) / 255, rtol=2e-7)
    check_images(floats)
    check_images(jax.jit(to_float)(jnp.asarray(images)))


def test_to_float_refuses_floats():
    with pytest.raises(InputError, match="float32"):
        to_float(np.zeros((1, 2, 2, 1), np.float32))
