"""Image folders, made of files written here."""

import numpy as np
import pytest
from PIL import Image

from memdef_jax.checks import InputError
from memdef_jax.data import fingerprint, load


def picture(seed, size=(6, 5), channels=3):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Two classes, three training and two test images each, PNG."""
    root = tmp_path / "animals"
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                seed = i + 10 * label + 100 * (part == "test")
                Image.fromarray(picture(seed)).save(folder / f"{i}.png")
    return root


def read(root, **kwargs):
    return load(f"folder:{root}", **kwargs)


def test_a_folder_is_read_in_sorted_order(tree):
    dataset = read(tree)
    assert dataset.info.name == "folder:animals"
    assert dataset.info.class_names == ("cat", "dog")
    assert dataset.info.image_shape == (6, 5, 3)
    assert dataset.info.fingerprint == fingerprint(dataset.train, dataset.test)
    assert str(tree) in dataset.info.source
    due = np.stack([picture(seed) for seed in (0, 1, 2, 10, 11, 12)])
    np.testing.assert_array_equal(dataset.train.images, due)
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(
        dataset.test.images, np.stack([picture(s) for s in (100, 101, 110, 111)])
    )
    assert dataset.train.labels.dtype == np.int32


def test_many_images_stay_in_order(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        for i in range(600):
            image = Image.fromarray(np.array([[i // 256, i % 256]], np.uint8))
            image.save(tmp_path / part / "one" / f"{i:04}.png")
    images = read(tmp_path).train.images.astype(int)
    assert images.shape == (600, 1, 2, 1)
    np.testing.assert_array_equal(images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0], np.arange(600))


def test_one_coloured_image_makes_all_three_channels(tree):
    grey = picture(5, channels=1)
    Image.fromarray(grey).save(tree / "train" / "cat" / "0.png")
    images = read(tree).train.images
    assert images.shape[-1] == 3
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(images[1], picture(1))


def test_other_modes_and_jpeg(tree):
    rgba = picture(7, channels=4)
    Image.fromarray(rgba).save(tree / "train" / "cat" / "0.png")
    flat = np.full((6, 5, 3), (200, 30, 60), np.uint8)
    Image.fromarray(flat).save(tree / "train" / "cat" / "1.JPG", quality=95)
    Image.fromarray(flat).quantize(4).save(tree / "train" / "cat" / "2.png")
    (tree / "train" / "cat" / "1.png").unlink()
    images = read(tree).train.images.astype(int)
    np.testing.assert_array_equal(images[0], rgba[..., :3])
    assert abs(images[1] - flat).max() <= 3
    assert abs(images[2] - flat).max() <= 3


def test_images_are_resized_when_asked(tree):
    Image.fromarray(picture(5, (9, 4))).save(tree / "train" / "cat" / "1.png")
    with pytest.raises(InputError, match=r"differ in size.*1\.png is 4x9.*image_size"):
        read(tree)
    dataset = read(tree, image_size=4)
    assert dataset.train.images.shape == (6, 4, 4, 3)
    due = Image.fromarray(picture(10)).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.train.images[3], np.asarray(due))
    assert read(tree, image_size=(6, 5)).info.image_shape == (6, 5, 3)


def test_a_folder_can_be_gray(tree):
    gray, coloured = read(tree, gray=True), read(tree)
    assert gray.info.image_shape == (6, 5, 1)
    due = np.rint(coloured.train.images.astype(float) @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(gray.train.images[..., 0], due)


@pytest.mark.parametrize("part", ["train", "test"])
def test_both_splits_are_needed(tree, part):
    (tree / part).rename(tree / "other")
    with pytest.raises(InputError, match=f"no folder {part}/"):
        read(tree)


def test_a_class_only_in_test_is_named(tree):
    (tree / "test" / "dog").rename(tree / "test" / "wolf")
    with pytest.raises(InputError, match=r"wolf is a class that .* cat, dog"):
        read(tree)


def test_test_may_lack_a_class_and_labels_stay(tree):
    (tree / "test" / "cat").rename(tree.parent / "cat")
    np.testing.assert_array_equal(read(tree).test.labels, [1, 1])


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_is_named(tree, part):
    (tree / part / "emu").mkdir()
    (tree / part / "emu" / ".hidden").write_text("")
    with pytest.raises(InputError, match="emu is empty"):
        read(tree)


def test_no_class_at_all(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="holds no class folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", "cut png", "cut jpeg", "gif"], ids=lambda c: str(c)
)
def test_an_unreadable_image_is_named(tree, content, tmp_path):
    bad = tree / "train" / "dog" / "1.png"
    if content == "cut png":
        content = bad.read_bytes()[:-30]
    elif content == "cut jpeg":
        Image.fromarray(picture(0, (64, 64))).save(tmp_path / "x.jpeg")
        content = (tmp_path / "x.jpeg").read_bytes()[:-300]
    elif content == "gif":
        Image.fromarray(picture(0)).save(tmp_path / "x.gif")
        content = (tmp_path / "x.gif").read_bytes()
    bad.write_bytes(content)
    with pytest.raises(InputError, match="not a readable PNG or JPEG") as caught:
        read(tree, image_size=8)
    assert str(bad) in str(caught.value)


def test_sixteen_bits_are_refused(tree):
    deep = Image.fromarray(np.full((6, 5), 40_000, np.uint16))
    deep.save(tree / "test" / "cat" / "0.png")
    with pytest.raises(InputError, match=r"cat/0\.png .*16 bits"):
        read(tree)


def test_another_kind_of_file_is_named(tree):
    (tree / "train" / "dog" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is neither PNG nor JPEG"):
        read(tree)


def test_an_enormous_image_is_refused(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"0\.png is not a readable"):
        read(tree)
