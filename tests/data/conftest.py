"""Small official datasets with checksums of their own, and a home without data or network."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
import types

import numpy as np
import pytest

from memdef_jax.data import official, sources


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No test sees the machine's datasets, writes to its home or asks the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    monkeypatch.setenv("PATH", "")

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx format, written from its description and independent of the reader."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + bytes(array.astype(np.uint8).flatten().tolist())


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """CIFAR-10's binary records, pixel by pixel."""
    out = bytearray()
    for image, label in zip(images, labels):
        out.append(int(label))
        for channel in range(3):
            for row in range(32):
                out.extend(int(image[row, column, channel]) for column in range(32))
    return bytes(out)


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def raw_file(name: str, data: bytes, *, known: bool = True) -> official.RawFile:
    return official.RawFile(name, len(data), hashlib.sha256(data).hexdigest() if known else None)


@pytest.fixture(scope="session")
def formats() -> types.SimpleNamespace:
    """The writers above, for tests that make files of their own."""
    return types.SimpleNamespace(idx=idx_bytes, cifar=cifar_bytes, tar_gz=tar_gz, file=raw_file)


@dataclasses.dataclass
class Small:
    """A small stand-in for an official dataset: its arrays and its raw files."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    files: dict[str, bytes]
    archive: bytes | None = None

    def write(self, folder: pathlib.Path, *, compress: bool = False) -> pathlib.Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
        return folder


@pytest.fixture
def small_mnist(monkeypatch) -> Small:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (40, 28, 28)), rng.integers(0, 10, 40)
    test = rng.integers(0, 256, (20, 28, 28)), rng.integers(0, 10, 20)
    names = [file.name for file in official.MNIST.files]
    files = {name: idx_bytes(array) for name, array in zip(names, (*train, *test))}
    spec = dataclasses.replace(
        official.MNIST,
        files=tuple(raw_file(name, data) for name, data in files.items()),
        fingerprint=None,
        unordered=None,
    )
    monkeypatch.setitem(official.OFFICIAL, "mnist", spec)
    return Small("mnist", train, test, files)


@pytest.fixture
def small_cifar(monkeypatch) -> Small:
    rng = np.random.default_rng(1)
    files, parts = {}, []
    for file in official.CIFAR10.files:
        part = rng.integers(0, 256, (10, 32, 32, 3)), rng.permutation(10)
        parts.append(part)
        files[file.name] = cifar_bytes(*part)
    archive = tar_gz({f"cifar-10-batches-bin/{name}": data for name, data in files.items()})
    spec = dataclasses.replace(
        official.CIFAR10,
        files=tuple(raw_file(name, data, known=False) for name, data in files.items()),
        archive=raw_file("cifar-10-binary.tar.gz", archive),
    )
    monkeypatch.setitem(official.OFFICIAL, "cifar10", spec)
    train = np.concatenate([p[0] for p in parts[:5]]), np.concatenate([p[1] for p in parts[:5]])
    return Small("cifar10", train, parts[5], files, archive)
