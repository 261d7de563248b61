"""Files that are whole or absent, and one sentence where they cannot be written."""

import errno
import os
import pathlib
from types import SimpleNamespace

import pytest

from memdef_jax.checks import InputError
from memdef_jax.files import check_writable, write_atomic


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_written_file_holds_text_or_bytes_and_nothing_else_is_left(tmp_path):
    write_atomic(tmp_path / "new" / "text", "é\n")
    write_atomic(tmp_path / "new" / "bytes", b"\x00\xff")
    assert (tmp_path / "new" / "text").read_bytes() == "é\n".encode()
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["bytes", "text"]


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, full_disk):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(InputError, match=r"file cannot be written \(No space left on device\);"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_a_file_is_refused_with_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", "x")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_a_folder_without_permission_is_refused_by_its_own_name(tmp_path, monkeypatch):
    def refuse(self, data):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"run cannot be written \(Permission denied\)"):
        check_writable(tmp_path / "run")


def test_the_check_for_space_compares_with_what_an_ordinary_user_may_use(tmp_path, monkeypatch):
    # 10 MB are free to users; the blocks beyond are root's.
    stats = SimpleNamespace(f_bavail=10_000, f_bfree=90_000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: stats)
    check_writable(tmp_path / "run", 10_000_000)
    assert os.listdir(tmp_path / "run") == []
    with pytest.raises(InputError, match="has 10 MB free and 11 MB are needed"):
        check_writable(tmp_path / "run", 11_000_000)
