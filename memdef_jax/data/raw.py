"""Raw files to arrays: decompress, verify, decode. Bytes in, arrays out; nothing is ever unpickled.

Archives are read member by member into memory and never unpacked to disk, so no member can write
anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import tarfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data.dataset import Split
from memdef_jax.data.official import Official, RawFile

_AGAIN = "delete it and fetch it again."
_OTHERS = 64_000_000  # bytes that an archive may hold beside the wanted files


def verify(data: bytes, file: RawFile, where: str, title: str) -> None:
    """Check the size and SHA-256 of a decompressed file.

    Raises:
      InputError: naming the file, when either differs.
    """
    if len(data) != file.size:
        more = "more than " if len(data) > file.size else ""
        raise InputError(
            f"{where} holds {more}{min(len(data), file.size)} bytes where {title}'s {file.name} "
            f"has {file.size}: it is truncated or another file; {_AGAIN}"
        )
    found = hashlib.sha256(data).hexdigest()
    if file.sha256 is not None and found != file.sha256:
        raise InputError(
            f"{where} is not {title}'s {file.name}: its SHA-256 is {found} instead of "
            f"{file.sha256}; {_AGAIN}"
        )


def gunzip(data: bytes, limit: int, where: str) -> bytes:
    """Decompress gzip, stopping one byte after the limit so that a bomb stays small.

    Raises:
      InputError: naming the file, when it is no gzip, damaged or cut short.
    """
    engine = zlib.decompressobj(wbits=31)
    try:
        result = engine.decompress(data, limit + 1)
    except zlib.error as error:
        raise InputError(f"{where} is not a readable gzip file ({error}); {_AGAIN}") from None
    if not engine.eof and len(result) <= limit:
        raise InputError(f"{where} is truncated: its gzip data end too early; {_AGAIN}")
    return result


def tar_members(stream: IO[bytes], files: tuple[RawFile, ...], where: str) -> dict[str, bytes]:
    """Read the wanted regular files out of a tar archive, found by their last name.

    Args:
      stream: the archive, gzipped or not, at its start.
      files: wanted, each under its name or with ".gz" added.
      where: what to call the archive in messages.

    Returns:
      Contents by name in the archive ("x" or "x.gz"); what is not there is missing.

    Raises:
      InputError: when the archive is damaged, or it or a member far exceeds its due size.
    """
    wanted = {name: file for file in files for name in (file.name, f"{file.name}.gz")}
    found = {}
    try:
        zipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        plain: Any = gzip.GzipFile(fileobj=stream) if zipped else stream
        bounded: Any = _Bounded(plain, sum(file.size for file in files) + _OTHERS, where)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in wanted and member.isfile():
                    if member.size > wanted[name].size + 1024:
                        raise InputError(f"{where} holds a {name} of {member.size} bytes; {_AGAIN}")
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    found[name] = content.read()
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{where} is truncated or no archive ({error}); {_AGAIN}") from None
    return found


class _Bounded:
    """A stream of which not more than so many bytes can be read, for `tarfile`.

    That keeps whole in memory what says to be the long name of a member, however long it is.
    """

    def __init__(self, stream: IO[bytes], most: int, where: str) -> None:
        self._stream, self._left, self._where = stream, most, where

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"{self._where} holds far more than the files that are due; {_AGAIN}")
        return data


def unpack(
    spec: Official, contents: Mapping[str, bytes], where: Mapping[str, str]
) -> dict[str, bytes]:
    """Decompress what came compressed and verify every file of the dataset.

    Args:
      spec: the dataset.
      contents: bytes of the archive under its name, or of each file under "x" or "x.gz".
      where: what to call each of them in messages.

    Returns:
      The verified, decompressed files by name.

    Raises:
      InputError: naming the first file that is missing, truncated or altered.
    """
    if spec.archive is not None and spec.archive.name in contents:
        name = spec.archive.name
        data, place = contents[name], where[name]
        verify(data, spec.archive, place, spec.title)
        contents = tar_members(io.BytesIO(data), spec.files, place)
        where = {member: f"{member} in {place}" for member in contents}
    files = {}
    for file in spec.files:
        if file.name in contents:
            data, place = contents[file.name], where[file.name]
        elif f"{file.name}.gz" in contents:
            place = where[f"{file.name}.gz"]
            data = gunzip(contents[f"{file.name}.gz"], file.size, place)
        else:
            raise InputError(
                f"{file.name} of {spec.title} is missing; its files are "
                f"{', '.join(f.name for f in spec.files)}, each plain or with .gz added."
            )
        verify(data, file, place, spec.title)
        files[file.name] = data
    return files


def decode(spec: Official, files: Mapping[str, bytes]) -> tuple[Split, Split]:
    """The verified files of a dataset -> (train, test), checked for structure as well.

    Raises:
      InputError: when a file does not have the layout, shape or labels of the dataset.
    """
    names = [file.name for file in spec.files]
    if spec.layout == "idx":
        arrays = [read_idx(files[name], name) for name in names]
        pairs = [(arrays[0][..., None], arrays[1]), (arrays[2][..., None], arrays[3])]
    else:
        records = [read_cifar(files[name], name) for name in names]
        train = records[:-1]
        pairs = [
            (np.concatenate([r[0] for r in train]), np.concatenate([r[1] for r in train])),
            records[-1],
        ]
    splits = []
    for part, (images, labels) in zip(("train", "test"), pairs):
        if images.shape != (len(labels), *spec.image_shape):
            raise InputError(
                f"the {part} images of {spec.title} have shape {images.shape} beside "
                f"{len(labels)} labels; [N, {', '.join(map(str, spec.image_shape))}] is needed."
            )
        check_label_range(labels, len(spec.class_names), f"the {part} labels of {spec.title}")
        counts = np.bincount(labels, minlength=len(spec.class_names))
        # The files of CIFAR-10 have no published checksum; its classes are exactly balanced.
        if spec.layout == "cifar" and len(set(counts.tolist())) != 1:
            raise InputError(
                f"the {part} labels of {spec.title} count {counts.tolist()} instead of "
                f"{len(labels) // len(counts)} a class: a .bin file is altered or given twice; "
                "fetch the archive again."
            )
        splits.append(Split(np.ascontiguousarray(images), labels.astype(np.int32)))
    return splits[0], splits[1]


def check_label_range(labels: np.ndarray, classes: int, name: str) -> None:
    """Raises InputError when a label lies outside [0, classes)."""
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{name} lie in [{labels.min()}, {labels.max()}], outside 0 to {classes - 1}."
        )


def read_idx(data: bytes, name: str) -> np.ndarray:
    """An idx file of unsigned bytes -> uint8 array of the shape in its header.

    Format: two zero bytes, 8 for unsigned byte, the rank, each axis as big-endian int32, the data.

    Raises:
      InputError: when the header or the length is not that of such a file.
    """
    rank = data[3] if len(data) > 3 else 0
    start = 4 + 4 * rank
    if data[:3] != b"\0\0\x08" or not 1 <= rank <= 4 or len(data) < start:
        raise InputError(f"{name} is not an idx file of bytes: it begins with {data[:4]!r}.")
    shape = tuple(np.frombuffer(data, ">u4", rank, offset=4).tolist())
    if len(data) - start != math.prod(shape):  # of any size: these are Python's integers
        raise InputError(f"{name} announces shape {shape} but holds {len(data) - start} bytes.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A CIFAR-10 binary file -> images uint8 [N, 32, 32, 3], labels uint8 [N].

    Format: records of one label byte, then 3072 pixels, channel by channel, row by row.

    Raises:
      InputError: when the length is no multiple of a record.
    """
    if not data or len(data) % 3073:
        raise InputError(f"{name} holds {len(data)} bytes, no multiple of a 3073-byte record.")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
