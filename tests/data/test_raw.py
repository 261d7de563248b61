"""Raw files: decoding against bytes written by hand, and refusal of what is damaged."""

import contextlib
import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdef_jax.checks import InputError
from memdef_jax.data import official, raw


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_idx_round_trip(formats, shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    read = raw.read_idx(formats.idx(array), "made")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


def test_idx_written_by_hand():
    data = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(raw.read_idx(data, "made"), [[1, 2, 3], [4, 5, 6]])


@given(st.binary(max_size=40))
def test_idx_never_fails_otherwise(data):
    with contextlib.suppress(InputError):
        raw.read_idx(data, "made")


def test_idx_refuses_a_size_that_would_overflow():
    data = bytes([0, 0, 8, 4]) + b"\xff" * 16
    with pytest.raises(InputError, match="announces"):
        raw.read_idx(data, "made")


def test_cifar_records(formats):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 32, 32, 3), np.uint8), np.array([7, 0, 9])
    read_images, read_labels = raw.read_cifar(formats.cifar(images, labels), "made")
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)
    with pytest.raises(InputError, match="3073"):
        raw.read_cifar(bytes(3072), "made")


def test_gunzip_names_the_damaged_file():
    data = gzip.compress(bytes(range(256)) * 10)
    assert raw.gunzip(data, 2560, "f.gz") == bytes(range(256)) * 10
    with pytest.raises(InputError, match=r"f\.gz is truncated"):
        raw.gunzip(data[:-1], 2560, "f.gz")
    with pytest.raises(InputError, match=r"f\.gz is truncated"):
        raw.gunzip(b"", 2560, "f.gz")
    with pytest.raises(InputError, match=r"f\.gz is not a readable gzip"):
        raw.gunzip(b"no gzip at all", 2560, "f.gz")
    flipped = bytearray(data)
    flipped[-6] ^= 1  # its own checksum
    with pytest.raises(InputError, match=r"f\.gz is not a readable gzip"):
        raw.gunzip(bytes(flipped), 2560, "f.gz")


def test_a_gzip_bomb_stays_small(formats):
    bomb = gzip.compress(bytes(50_000_000))
    assert len(raw.gunzip(bomb, 100, "bomb")) == 101
    with pytest.raises(InputError, match="more than 100 bytes"):
        raw.verify(raw.gunzip(bomb, 100, "bomb"), formats.file("f", bytes(100)), "bomb", "Made")


def test_archive_members_are_read_and_never_written(formats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("../a.bin", str(tmp_path / "b.bin"), "x/c.bin"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("d.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    files = tuple(formats.file(f"{letter}.bin", b"abc") for letter in "abcd")
    buffer.seek(0)
    found = raw.tar_members(buffer, files, "made")
    assert found == {"a.bin": b"abc", "b.bin": b"abc", "c.bin": b"abc"}
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("cut", [0, 10, 200, 3000])
def test_a_cut_archive_is_named(formats, cut):
    data = formats.tar_gz({"a.bin": np.random.default_rng(0).bytes(5000)})
    with pytest.raises(InputError, match="made is truncated or no archive"):
        raw.tar_members(io.BytesIO(data[:cut]), (formats.file("a.bin", bytes(5000)),), "made")


def test_an_oversized_member_is_refused_before_it_is_read(formats):
    archive = io.BytesIO(formats.tar_gz({"a.bin": bytes(100_000)}))
    with pytest.raises(InputError, match=r"a\.bin of 100000 bytes"):
        raw.tar_members(archive, (formats.file("a.bin", b"abc"),), "made")


def test_official_tables_are_consistent():
    for name, spec in official.OFFICIAL.items():
        assert name == spec.name
        known = [*spec.files, *([spec.archive] if spec.archive else [])]
        assert all(f.sha256 is None or len(f.sha256) == 64 for f in known)
        assert spec.archive is not None or all(f.sha256 for f in spec.files)
        assert len(set(spec.class_names)) == 10
    assert official.MNIST.files[0].size == 16 + 60_000 * 28 * 28
    assert official.CIFAR10.files[0].size == 10_000 * 3073


def test_a_member_with_an_endless_name_is_not_kept(formats):
    # A header of this type is read whole into memory before anything else is looked at.
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**11
    archive = header.tobuf(tarfile.GNU_FORMAT) + bytes(100_000_000)
    packed = gzip.compress(archive, 1)
    assert len(packed) < 1_000_000
    with pytest.raises(InputError, match="made holds far more than the files that are due"):
        raw.tar_members(io.BytesIO(packed), (formats.file("a.bin", b"abc"),), "made")


def test_an_archive_of_what_nobody_asked_for_is_not_read_to_the_end(formats):
    packed = formats.tar_gz({"other.bin": bytes(100_000_000)})
    with pytest.raises(InputError, match="made holds far more than the files that are due"):
        raw.tar_members(io.BytesIO(packed), (formats.file("a.bin", b"abc"),), "made")


def test_idx_sizes_whose_product_overflows_to_the_length_are_refused():
    data = bytes([0, 0, 8, 4]) + (2**16).to_bytes(4, "big") * 4  # 2**64 bytes, that is none
    with pytest.raises(InputError, match=r"announces shape \(65536, .* but holds 0 bytes"):
        raw.read_idx(data, "made")
