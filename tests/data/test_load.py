"""`load` and the prepared datasets behind it."""

import io
import json
import multiprocessing
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from memdef_jax.checks import InputError
from memdef_jax.data import NAMES, fingerprint, load, official, prepare, sources
from memdef_jax.data.dataset import unordered_digest


def assert_is(small, dataset):
    for split, (images, labels) in ((dataset.train, small.train), (dataset.test, small.test)):
        np.testing.assert_array_equal(split.images, images.reshape(split.images.shape))
        np.testing.assert_array_equal(split.labels, labels)
    assert dataset.info.fingerprint == fingerprint(dataset.train, dataset.test)


def folder_of(tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    return tmp_path / "tfds" / f"memdef_{name}" / "1.0.0"


def test_mnist_is_prepared_once_and_read_back(small_mnist, tmp_path, monkeypatch, capfd):
    small_mnist.write(tmp_path / "raw")
    first = load("mnist", raw_dir=tmp_path / "raw")
    assert_is(small_mnist, first)
    assert first.info.name == "mnist"
    assert first.info.image_shape == (28, 28, 1)
    assert first.info.class_names == tuple("0123456789")
    assert folder_of(tmp_path, "mnist").is_dir()
    shutil.rmtree(tmp_path / "raw")
    monkeypatch.setattr(sources, "obtain", None)
    second = load("mnist")
    assert_is(small_mnist, second)
    assert str(tmp_path / "raw") in second.info.source
    assert capfd.readouterr() == ("", "")
    # Only the prepared dataset is left: no temporary folder, no downloads.
    assert [p.name for p in (tmp_path / "tfds").iterdir()] == ["memdef_mnist"]
    assert [p.name for p in folder_of(tmp_path, "mnist").parent.iterdir()] == ["1.0.0"]


def test_cifar_keeps_channels_and_order(small_cifar, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(small_cifar.archive)
    dataset = load("cifar10", raw_dir=tmp_path, data_dir=tmp_path / "elsewhere")
    assert_is(small_cifar, dataset)
    assert dataset.info.class_names[3] == "cat"
    assert not (tmp_path / "tfds").exists()


def test_cifar_can_be_gray_and_of_another_size(small_cifar, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(small_cifar.archive)
    coloured = load("cifar10", raw_dir=tmp_path)
    gray = load("cifar10", gray=True)
    assert gray.info.name == "cifar10"
    assert gray.info.image_shape == (32, 32, 1)
    assert gray.info.source.endswith("turned gray")
    assert gray.info.fingerprint == fingerprint(gray.train, gray.test)
    assert gray.info.fingerprint != coloured.info.fingerprint
    due = np.rint(coloured.train.images.astype(float) @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(gray.train.images[..., 0], due)
    np.testing.assert_array_equal(gray.test.labels, coloured.test.labels)
    small = load("cifar10", gray=True, image_size=28)
    assert small.info.image_shape == (28, 28, 1)
    assert "resized to 28x28, turned gray" in small.info.source
    assert load("digits", gray=True).info.fingerprint == load("digits").info.fingerprint


def test_what_is_prepared_is_an_ordinary_tfds_dataset(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    builder = tfds.builder("memdef_mnist", data_dir=str(tmp_path), raw_dir=tmp_path / "raw")
    builder.download_and_prepare()
    examples = list(builder.as_data_source("test"))
    np.testing.assert_array_equal(
        np.stack([e["image"] for e in examples])[..., 0], small_mnist.test[0]
    )
    assert [e["label"] for e in examples] == list(small_mnist.test[1])
    assert_is(small_mnist, load("mnist", data_dir=tmp_path))


def test_prepare_verifies_through_tfds_itself(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    assert_is(small_mnist, prepare("mnist", raw_dir=tmp_path / "raw", verify=True))


def test_a_refused_source_leaves_nothing_prepared(small_mnist, tmp_path):
    folder = small_mnist.write(tmp_path / "raw")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        load("mnist", raw_dir=folder)
    assert not folder_of(tmp_path, "mnist").exists()
    small_mnist.write(folder)
    assert_is(small_mnist, load("mnist", raw_dir=folder))


@pytest.mark.parametrize("damage", ["cut", "flip", "json"])
def test_a_damaged_prepared_dataset_is_named(small_mnist, tmp_path, damage):
    small_mnist.write(tmp_path / "raw")
    load("mnist", raw_dir=tmp_path / "raw")
    folder = folder_of(tmp_path, "mnist")
    path = next(folder.glob("*train.array_record*"))
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        (folder / "metadata.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    with pytest.raises(InputError, match=r"prepare the dataset again") as caught:
        load("mnist")
    assert str(folder) in str(caught.value)


def test_a_remnant_of_a_prepared_dataset_is_named(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    folder_of(tmp_path, "mnist").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no whole dataset; delete"):
        load("mnist", raw_dir=tmp_path / "raw")


def test_an_unwritable_data_dir_is_named(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        load("mnist", data_dir=tmp_path / "file" / "below", raw_dir=tmp_path / "raw")


def prepare_in_a_process(spec, raw, data_dir, barrier, results):
    official.OFFICIAL["mnist"] = spec
    barrier.wait(60)
    results.put(load("mnist", raw_dir=raw, data_dir=data_dir).info.fingerprint)


def test_processes_may_prepare_at_once(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    args = (official.OFFICIAL["mnist"], tmp_path / "raw", tmp_path / "tfds", barrier, results)
    processes = [context.Process(target=prepare_in_a_process, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    prints = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(60)
        process.close()
    assert prints == {load("mnist").info.fingerprint}
    assert [p.name for p in folder_of(tmp_path, "mnist").parent.iterdir()] == ["1.0.0"]


class LikeStock(tfds.core.GeneratorBasedBuilder):
    """What TFDS's own MNIST builder writes: PNG, shuffled, an extra field."""

    VERSION = tfds.core.Version("3.0.1")

    def __init__(self, small, **kwargs):
        self.small = small
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(part) for part in ("train", "test")}

    def _generate_examples(self, part):
        images, labels = getattr(self.small, part)
        for index, (image, label) in enumerate(zip(images, labels)):
            buffer = io.BytesIO()
            Image.fromarray(image.astype(np.uint8)).save(buffer, "PNG")
            yield index, {"id": f"{index}", "image": buffer.getvalue(), "label": int(label)}


def write_stock(small, tmp_path) -> pathlib.Path:
    builder = LikeStock(small, data_dir=str(tmp_path / "made"), file_format="array_record")
    builder.download_and_prepare()
    target = tmp_path / "tfds" / "mnist" / "3.0.1"
    shutil.copytree(builder.data_path, target)
    return target


def test_the_stock_dataset_is_read_without_tensorflow(small_mnist, tmp_path):
    write_stock(small_mnist, tmp_path)
    dataset = load("mnist", download=False)
    assert "stock TFDS dataset" in dataset.info.source
    assert len(dataset.train) == 40
    due = sorted((x.astype(np.uint8).tobytes(), int(y)) for x, y in zip(*small_mnist.train))
    train = dataset.train
    assert sorted((x.tobytes(), int(y)) for x, y in zip(train.images, train.labels)) == due
    assert unordered_digest(train) != unordered_digest(dataset.test)
    prepare("mnist", verify=True)


def test_an_altered_stock_dataset_is_refused(small_mnist, tmp_path, monkeypatch):
    folder = write_stock(small_mnist, tmp_path)
    spec = official.OFFICIAL["mnist"]
    monkeypatch.setitem(official.OFFICIAL, "mnist", type(spec)(**{**vars(spec), "unordered": "0"}))
    with pytest.raises(InputError, match="altered") as caught:
        load("mnist")
    assert str(folder) in str(caught.value)


def test_a_stock_dataset_that_needs_tensorflow_is_passed_over(small_mnist, tmp_path):
    folder = write_stock(small_mnist, tmp_path)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    small_mnist.write(tmp_path / "raw")
    assert_is(small_mnist, load("mnist", raw_dir=tmp_path / "raw"))


def test_digits_need_nothing_and_write_nothing(tmp_path):
    dataset = load("digits")
    assert list(tmp_path.iterdir()) == []
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.info.image_shape == (28, 28, 1)
    assert dataset.info.fingerprint == load("digits").info.fingerprint


def test_digits_are_scikit_learns_each_exactly_once():
    dataset = load("digits", image_size=8)
    bunch = load_digits()
    due = sorted((np.rint(x * 255 / 16).tobytes(), y) for x, y in zip(bunch.images, bunch.target))
    found = [
        (x[..., 0].astype(np.float64).tobytes(), y)
        for split in (dataset.train, dataset.test)
        for x, y in zip(split.images, split.labels)
    ]
    assert sorted(found) == due


def test_digits_are_stratified_and_fixed():
    dataset = load("digits")
    share = np.bincount(dataset.test.labels) / np.bincount(dataset.train.labels)
    assert abs(share - 0.25).max() < 0.01
    # The same samples are tested at every size.
    np.testing.assert_array_equal(load("digits", image_size=8).test.labels, dataset.test.labels)


def test_digits_are_prepared_for_tfds_too(tmp_path):
    dataset = prepare("digits")
    assert folder_of(tmp_path, "digits").is_dir()
    assert dataset.info.fingerprint == load("digits").info.fingerprint


def test_images_are_resized_when_asked(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "raw")
    dataset = load("mnist", raw_dir=tmp_path / "raw", image_size=(32, 30))
    assert dataset.train.images.shape == (40, 32, 30, 1)
    assert dataset.info.image_shape == (32, 30, 1)
    assert "resized to 32x30" in dataset.info.source
    assert dataset.info.fingerprint == fingerprint(dataset.train, dataset.test)
    first = Image.fromarray(small_mnist.train[0][0].astype(np.uint8))
    due = np.asarray(first.resize((30, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(dataset.train.images[0, ..., 0], due)


@pytest.mark.parametrize("size", [0, -1, (3,), (28, 0), "28"])
def test_image_size_must_be_a_size(size):
    with pytest.raises(InputError, match="image_size"):
        load("digits", image_size=size)


@pytest.mark.parametrize("name", ["minst", "", "celeb_a"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(InputError) as caught:
        load(name)
    assert all(known in str(caught.value) for known in (*NAMES, "folder:PATH"))
    assert ("streamed" in str(caught.value)) == (name == "celeb_a")
