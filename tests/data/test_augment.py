import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdef_jax.checks import InputError
from memdef_jax.data import (
    Augmentation,
    gaussian_noise,
    random_crop,
    random_erasing,
    random_flip,
)

crop = jax.jit(random_crop, static_argnums=2)
erase = jax.jit(random_erasing, static_argnames=("area", "aspect", "fill"))
FULL = Augmentation(2, True, True, 0.1, 0.7)
CHANGES = {
    "crop": lambda k, x: random_crop(k, x, 2),
    "flip": lambda k, x: random_flip(k, x, vertical=True),
    "erasing": random_erasing,
    "noise": lambda k, x: gaussian_noise(k, x, 0.1),
    "full": FULL.apply,
}


def make_batch(size: int, shape=(8, 7, 3), seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), size)
    # Above zero, so that padding is told from pixels; all different, so that places are known.
    values = np.random.default_rng(seed).permutation(size * int(np.prod(shape))) + 1
    x = (values / values.size).astype(np.float32).reshape(size, *shape)
    return keys, jnp.asarray(x)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_image_depends_on_its_own_key_alone(change):
    keys, x = make_batch(4)
    change = jax.jit(change)
    whole = np.asarray(change(keys, x))
    assert whole.shape == x.shape
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    for order in ([3, 0], [2, 1], [2, 3]):
        part = np.asarray(change(keys[np.array(order)], x[np.array(order)]))
        np.testing.assert_allclose(part, whole[np.array(order)], atol=1e-6)


def test_the_whole_augmentation_maps():
    keys, x = make_batch(4)
    mapped = jax.jit(jax.vmap(lambda k, v: FULL.apply(k[None], v[None])[0]))(keys, x)
    np.testing.assert_allclose(mapped, jax.jit(FULL.apply)(keys, x), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(padding=st.sampled_from([0, 2]), seed=st.integers(0, 1000))
def test_crop_is_a_window_of_the_padded_image(padding, seed):
    keys, x = make_batch(3, seed=seed)
    out = np.asarray(crop(keys, x, padding))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for image, frame in zip(out, padded):
        windows = [
            frame[i : i + 8, j : j + 7]
            for i in range(2 * padding + 1)
            for j in range(2 * padding + 1)
        ]
        assert sum(np.array_equal(image, window) for window in windows) == 1


def test_crop_reaches_every_offset_equally():
    keys = jax.random.split(jax.random.key(3), 9000)
    x = jnp.zeros((9000, 3, 3, 1)).at[:, 1, 1].set(1.0)
    out = np.asarray(crop(keys, x, 1))
    counts = out.sum(0).ravel()
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)


@pytest.mark.parametrize(
    ("horizontal", "vertical"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_flip_gives_each_mirror_equally(horizontal, vertical):
    keys = jax.random.split(jax.random.key(1), 2000)
    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1) / 6
    out = random_flip(
        keys, jnp.tile(image, (2000, 1, 1, 1)), horizontal=horizontal, vertical=vertical
    )
    rows = [image, image[::-1]] if vertical else [image]
    mirrors = rows + [m[:, ::-1] for m in rows] * horizontal
    counts = [int((np.asarray(out) == m).all((1, 2, 3)).sum()) for m in mirrors]
    assert sum(counts) == 2000
    assert all(abs(n - 2000 / len(mirrors)) < 120 for n in counts)


def test_erasing_writes_one_rectangle_of_the_right_size():
    keys, x = make_batch(400, (16, 16, 3))
    out = np.asarray(erase(keys, x, 1.0, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=2.0))
    erased = (out == 2.0).all(-1)
    np.testing.assert_array_equal(out[~erased], np.asarray(x)[~erased])
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
        # Rounding a side moves it by up to half a pixel.
        tall, wide = len(rows), len(columns)
        assert (tall - 0.5) * (wide - 0.5) / 256 <= 0.3
        assert (tall + 0.5) * (wide + 0.5) / 256 >= 0.1
        assert (tall - 0.5) / (wide + 0.5) <= 2.0
        assert (tall + 0.5) / (wide - 0.5) >= 0.5
    share = erased.mean((1, 2))
    assert abs(share.mean() - 0.2) < 0.02
    assert erased[:, 0].any()
    assert erased[:, -1].any()
    assert erased[:, :, 0].any()
    assert erased[:, :, -1].any()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erasing_happens_as_often_as_asked(probability):
    keys, x = make_batch(2000, (10, 10, 1))
    out = erase(keys, x, probability)
    touched = float((np.asarray(out) != np.asarray(x)).any((1, 2, 3)).mean())
    assert abs(touched - probability) < 0.04


def test_erasing_fills_each_channel():
    keys, x = make_batch(20, (8, 8, 3))
    out = np.asarray(erase(keys, x, 1.0, fill=(2.0, 3.0, 4.0)))
    changed = (out != np.asarray(x)).any(-1)
    assert changed.any()
    assert (out[changed] == [2.0, 3.0, 4.0]).all()


def test_erasing_leaves_the_image_when_nothing_fits():
    keys, x = make_batch(5)
    np.testing.assert_array_equal(erase(keys, x, 1.0, area=(1.0, 1.0)), x)


def test_noise_has_its_deviation():
    keys = jax.random.split(jax.random.key(0), 50)
    x = jnp.full((50, 16, 16, 1), 0.5)
    sigma = jnp.where(jnp.arange(50) < 25, 0.05, 1.0)
    free = np.asarray(gaussian_noise(keys, x, sigma, clip=False)) - 0.5
    np.testing.assert_allclose([free[:25].std(), free[25:].std()], [0.05, 1.0], rtol=0.03)
    assert abs(free[:25].mean()) < 0.003
    clipped = np.asarray(gaussian_noise(keys, x, sigma))
    np.testing.assert_allclose(clipped, np.clip(free + 0.5, 0, 1), atol=1e-6)


def test_no_augmentation_is_the_identity():
    keys, x = make_batch(3)
    assert Augmentation().apply(keys, x) is x


def test_kinds_are_drawn_independently():
    keys, x = make_batch(50)
    cropped = Augmentation(crop_padding=2).apply(keys, x)
    both = Augmentation(crop_padding=2, horizontal_flip=True).apply(keys, x)
    same = (np.asarray(both) == np.asarray(cropped)).all((1, 2, 3))
    mirrored = (np.asarray(both) == np.asarray(cropped)[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 10 < same.sum() < 40


@pytest.mark.parametrize(
    "bad", [{"crop_padding": -1}, {"noise_sigma": -0.1}, {"erasing_probability": 1.5}]
)
def test_augmentation_refuses(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Augmentation(**bad)


def test_inputs_are_checked():
    keys, x = make_batch(3)
    for bad in (keys[:2], jax.random.key(0), jax.random.key_data(keys)):
        with pytest.raises(InputError, match="typed key"):
            random_flip(bad, x)
    with pytest.raises(InputError, match="uint8"):
        random_flip(keys, x.astype(jnp.uint8))
    with pytest.raises(InputError, match="-1"):
        random_crop(keys, x, -1)
    with pytest.raises(InputError, match="area"):
        random_erasing(keys, x, area=(0.4, 0.2))
