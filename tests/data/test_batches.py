import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdef_jax.checks import InputError
from memdef_jax.data import (
    Split,
    batch_indices,
    epoch_order,
    eval_batches,
    steps_per_epoch,
    train_batch,
)


def make_split(size: int) -> Split:
    labels = np.arange(size, dtype=np.int32)
    return Split((labels % 256).astype(np.uint8).reshape(-1, 1, 1, 1), labels)


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(1, 200))
def test_epoch_order_is_a_permutation(seed, epoch, size):
    order = epoch_order(seed, epoch, size)
    assert sorted(order) == list(range(size))
    assert not order.flags.writeable


def test_epoch_order_depends_on_seed_and_epoch():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(size=st.integers(1, 40), data=st.data())
def test_an_epoch_visits_each_sample_at_most_once(size, data):
    batch_size = data.draw(st.integers(1, size))
    steps = steps_per_epoch(size, batch_size)
    for epoch in range(3):
        seen = [batch_indices(size, epoch * steps + s, batch_size, 7) for s in range(steps)]
        flat = np.concatenate(seen)
        assert len(flat) == len(set(flat)) == size - size % batch_size


def test_a_step_does_not_depend_on_the_ones_before():
    split = make_split(23)
    in_order = [train_batch(split, step, 5, seed=3) for step in range(20)]
    for step in (19, 0, 11, 4):
        epoch_order.cache_clear()
        images, labels = train_batch(split, step, 5, seed=3)
        np.testing.assert_array_equal(labels, in_order[step][1])
        np.testing.assert_array_equal(images.ravel(), labels)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32


@pytest.mark.parametrize("batch_size", [0, -1, 24])
def test_train_batch_names_the_limit(batch_size):
    with pytest.raises(InputError, match=rf"{batch_size} .* 23 .*1 to 23"):
        train_batch(make_split(23), 0, batch_size, 0)


def test_train_batch_refuses_negative_step_and_seed():
    with pytest.raises(InputError, match="step -1"):
        train_batch(make_split(5), -1, 2, 0)
    with pytest.raises(InputError, match="seed -2"):
        train_batch(make_split(5), 0, 2, -2)


@given(st.integers(1, 50), st.integers(1, 60))
def test_eval_batches_give_each_sample_once(size, batch_size):
    batches = list(eval_batches(make_split(size), batch_size))
    assert len(batches) == -(-size // batch_size)
    assert all(len(part) == batch_size for part in itertools.chain(*batches))
    valid = np.concatenate([b.valid for b in batches])
    labels = np.concatenate([b.labels for b in batches])
    images = np.concatenate([b.images for b in batches])
    np.testing.assert_array_equal(labels[valid], np.arange(size))
    np.testing.assert_array_equal(images.ravel(), labels)
    assert set(labels[~valid]) <= {size - 1}


def test_eval_batches_take_float_arrays():
    images = np.linspace(0, 1, 3, dtype=np.float32).reshape(3, 1, 1, 1)
    (batch,) = eval_batches((images, np.zeros(3, np.int32)), 4)
    assert batch.images.dtype == np.float32


def test_eval_batches_refuse_at_once():
    with pytest.raises(InputError, match="batch_size 0"):
        eval_batches(make_split(3), 0)
    with pytest.raises(InputError, match="3 images beside 2"):
        eval_batches((np.zeros((3, 1, 1, 1)), np.zeros(2)), 1)
    with pytest.raises(InputError, match="0 images"):
        eval_batches((np.zeros((0, 1, 1, 1)), np.zeros(0)), 1)
