"""CelebA's stream, over a small source and over one that TFDS prepared."""

import io
import itertools
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from memdef_jax.checks import InputError
from memdef_jax.data import celeba


class Faces:
    """A data source that counts what is read from it. The grey of a face is its index."""

    def __init__(self, count=23):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.zeros((12, 8, 3), np.uint8)
        image[2:10] = index  # the central square; the rest is black
        return {"image": image, "attributes": {"Male": index % 3 == 0, "Smiling": index > 4}}


def test_evaluation_gives_every_face_in_order():
    batches = list(celeba("Smiling", source=Faces(), batch_size=5, image_size=4))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    images = np.concatenate([b[0] for b in batches])
    labels = np.concatenate([b[1] for b in batches])
    assert images.shape == (23, 4, 4, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert (images == np.arange(23)[:, None, None, None]).all()
    np.testing.assert_array_equal(labels, np.arange(23) > 4)


def test_it_streams():
    source = Faces(1000)
    list(itertools.islice(celeba(source=source, batch_size=10, image_size=4), 2))
    assert source.reads <= 31


def epoch_of(**kwargs):
    batches = list(celeba(source=Faces(), batch_size=4, image_size=2, **kwargs))
    assert all(len(labels) == 4 for _, labels in batches)
    return [int(i) for images, _ in batches for i in images[:, 0, 0, 0]]


def test_training_shuffles_by_seed_and_epoch():
    first = epoch_of(seed=1)
    assert len(first) == len(set(first)) == 20
    assert first == epoch_of(seed=1)
    assert first != epoch_of(seed=1, epoch=1)
    assert first != epoch_of(seed=2)
    assert first != sorted(first)


def test_processes_share_without_overlap():
    parts = [epoch_of(seed=1, process_index=i, process_count=3) for i in range(3)]
    assert [len(p) for p in parts] == [4, 4, 4]
    assert len(set(itertools.chain(*parts))) == 12


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"attribute": "Tall"}, "Male, Smiling"),
        ({"split": "valid"}, "validation"),
        ({"batch_size": 24}, "1 to 23"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"image_size": 0}, "image_size"),
        ({"process_index": 2, "process_count": 2}, "process_index 2"),
    ],
)
def test_bad_arguments_are_refused_at_once(kwargs, words):
    with pytest.raises(InputError, match=words):
        celeba(**{"source": Faces(), "batch_size": 4, **kwargs})


def test_without_celeba_the_remedy_is_told(tmp_path):
    with pytest.raises(InputError, match="tfds build celeb_a --file_format=array_record") as caught:
        celeba()
    assert str(tmp_path / "tfds" / "celeb_a") in str(caught.value)


class LikeCelebA(tfds.core.GeneratorBasedBuilder):
    """The fields of TFDS's celeb_a that matter, with four small faces."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(12, 8, 3), encoding_format="jpeg"),
            "landmarks": {"nose_x": np.int64},
            "attributes": {"Male": np.bool_, "Smiling": np.bool_},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(4):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 12), (index * 60,) * 3).save(buffer, "JPEG", quality=95)
            attributes = {"Male": index % 2 == 0, "Smiling": True}
            yield (
                index,
                {
                    "image": buffer.getvalue(),
                    "landmarks": {"nose_x": 1},
                    "attributes": attributes,
                },
            )


def test_a_prepared_celeba_is_read_without_tensorflow(tmp_path):
    builder = LikeCelebA(data_dir=str(tmp_path / "made"), file_format="array_record")
    builder.download_and_prepare()
    shutil.copytree(builder.data_path, tmp_path / "tfds" / "celeb_a" / "2.1.0")
    ((images, labels),) = celeba("Male", batch_size=4, image_size=6)
    shades = np.rint(images[:, 3, 3, 0] / 60).astype(int)
    assert sorted(shades) == [0, 1, 2, 3]
    np.testing.assert_array_equal(labels, shades % 2 == 0)
    with pytest.raises(InputError, match="test"):
        celeba("Male", split="test", batch_size=4)
