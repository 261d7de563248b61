"""TensorFlow Datasets builders that need no TensorFlow, and fast reading of what they prepared.

The stock image builders need TensorFlow to encode PNG. These store raw bytes in ArrayRecord files,
in the official order, and note the source and the fingerprint beside them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from memdef_jax.checks import InputError
from memdef_jax.data import sources
from memdef_jax.data.dataset import Dataset, Split, fingerprint, make_dataset, unordered_digest
from memdef_jax.data.digits import CLASS_NAMES as DIGITS_NAMES
from memdef_jax.data.digits import digits
from memdef_jax.data.official import OFFICIAL

PathLike = str | os.PathLike[str]


class _Builder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Common part: subclasses name the dataset. `raw_dir` and `download` are as in `load`."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = ""

    def __init__(
        self, *, raw_dir: PathLike | None = None, download: bool = True, **kwargs: Any
    ) -> None:
        self._raw_dir, self._download = raw_dir, download
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        shape: tuple[int, int, int] = (28, 28, 1)
        names = DIGITS_NAMES
        if self.DATASET in OFFICIAL:
            spec = OFFICIAL[self.DATASET]
            shape, names = spec.image_shape, spec.class_names
        image = tfds.features.Tensor(
            shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        label = tfds.features.ClassLabel(names=list(names))
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The official splits of {self.DATASET}, as raw bytes.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the official order
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # its downloader retries for minutes where there is no network
        if self.DATASET in OFFICIAL:
            train, test, source = sources.obtain(
                OFFICIAL[self.DATASET], self._raw_dir, download=self._download
            )
        else:
            dataset = digits()
            train, test, source = dataset.train, dataset.test, dataset.info.source
        self.info.metadata["source"] = source
        self.info.metadata["fingerprint"] = fingerprint(train, test)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(np.asarray(split.images), split.labels)):
            yield index, {"image": image, "label": int(label)}


class MemdefDigits(_Builder):
    """The bundled 8x8 digits, resized to 28x28."""

    DATASET = "digits"


class MemdefMnist(_Builder):
    """MNIST."""

    DATASET = "mnist"


class MemdefFashionMnist(_Builder):
    """Fashion-MNIST."""

    DATASET = "fashion_mnist"


class MemdefCifar10(_Builder):
    """CIFAR-10."""

    DATASET = "cifar10"


BUILDERS = {
    cls.DATASET: cls for cls in (MemdefDigits, MemdefMnist, MemdefFashionMnist, MemdefCifar10)
}


def default_data_dir() -> pathlib.Path:
    """TFDS_DATA_DIR as it is now, or TFDS's own default below the home folder."""
    folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(folder).expanduser()


def prepare(
    name: str,
    data_dir: PathLike | None = None,
    raw_dir: PathLike | None = None,
    *,
    download: bool = True,
) -> None:
    """Prepare a dataset on disk unless it is. Several processes may do so at once.

    Each writes its own temporary folder and renames it at the end; the first to finish wins.

    Raises:
      InputError: as `sources.obtain`, or when data_dir cannot be written or holds a remnant.
    """
    folder = pathlib.Path(data_dir or default_data_dir()).expanduser()
    builder = BUILDERS[name](data_dir=str(folder), raw_dir=raw_dir, download=download)
    if builder.data_path.exists():
        if not (builder.data_path / "dataset_info.json").exists():
            raise InputError(
                f"{builder.data_path} holds no whole dataset; delete that folder and prepare the "
                "dataset again."
            )
        return
    try:
        with tempfile.TemporaryDirectory(prefix="memdef_") as downloads, _quiet():
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError as error:
        if builder.data_path.exists():  # another process was faster
            return
        raise InputError(
            f"data_dir {folder} cannot be written ({error.strerror or error}); "
            "set TFDS_DATA_DIR or data_dir to a folder with room that you may write."
        ) from None


def read_prepared(name: str, data_dir: PathLike | None = None) -> Dataset | None:
    """Read a prepared dataset into arrays: ours, else TFDS's stock one if kept as ArrayRecord.

    Returns:
      The dataset, or None when neither is there in a form readable without TensorFlow.

    Raises:
      InputError: naming the folder, when its files are damaged or not the official content.
    """
    for folder in _folders(name, data_dir):
        if (dataset := _read(name, folder)) is not None:
            return dataset
    return None


def verify(name: str, data_dir: PathLike | None = None) -> None:
    """Read a prepared dataset again through TFDS's own decoder and compare with `read_prepared`.

    An independent check of the fast reading, which takes about ten times as long as that.

    Raises:
      InputError: when nothing is prepared or a sample differs.
    """
    for folder in _folders(name, data_dir):
        if (dataset := _read(name, folder)) is not None:
            break
    else:
        raise InputError(f"{name} is not prepared; prepare it first.")
    builder = tfds.builder_from_directory(str(folder))
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        for index, example in enumerate(builder.as_data_source(part)):
            same = np.array_equal(example["image"], split.images[index])
            if not same or example["label"] != split.labels[index]:
                raise InputError(f"{part} sample {index} in {folder} differs when read again.")


def _folders(name: str, data_dir: PathLike | None) -> list[pathlib.Path]:
    """Folders of prepared datasets: ours first, then TFDS's stock ones, the newest first."""
    root = pathlib.Path(data_dir or default_data_dir()).expanduser()
    ours = root / f"memdef_{name}" / str(_Builder.VERSION) / "dataset_info.json"
    stock = sorted((root / name).glob("*/dataset_info.json"), reverse=True)
    return [path.parent for path in (ours, *stock) if path.is_file()]


def _read(name: str, folder: pathlib.Path) -> Dataset | None:
    remedy = "delete that folder and prepare the dataset again."
    try:
        builder = tfds.builder_from_directory(str(folder))
        info = builder.info
        if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            return None  # reading it would need TensorFlow
        shape = info.features["image"].shape
        train, test = (_read_split(builder, part, shape) for part in ("train", "test"))
    except Exception as error:  # many libraries meet here, each with errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the prepared dataset in {folder} is damaged ({reason}); {remedy}"
        ) from error
    official = OFFICIAL.get(name)
    class_names = official.class_names if official else DIGITS_NAMES
    metadata = info.metadata or {}
    if folder.parent.name == name:
        source = f"stock TFDS dataset in {folder}, in TFDS's shuffled order"
        due, found = official and official.unordered, unordered_digest(train, test)
    else:
        source = f"prepared in {folder}, from {metadata.get('source', 'an unknown source')}"
        due = (official and official.fingerprint) or metadata.get("fingerprint", "none")
        found = fingerprint(train, test)
    if due is not None and due != found:
        raise InputError(
            f"the prepared dataset in {folder} has fingerprint {found} instead of {due}: "
            f"it is altered; {remedy}"
        )
    return make_dataset(name, class_names, train, test, source)


def _read_split(builder: Any, part: str, shape: tuple[int, ...]) -> Split:
    """All records of a split at once; ten times as fast as TFDS's own decoding one by one."""
    records = builder.as_data_source(part).data_source
    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    count = len(records)
    images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    for index, record in enumerate(records.__getitems__(range(count))):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        data = feature["image"].bytes_list.value[0]
        if encoded:
            with Image.open(io.BytesIO(data)) as picture:
                images[index] = np.asarray(picture, np.uint8).reshape(shape)
        else:
            images[index] = np.frombuffer(data, np.uint8).reshape(shape)
        labels[index] = feature["label"].int64_list.value[0]
    return Split(images, labels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from writing its progress to the terminal: this is a library."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
