"""Files that are whole or absent, and one sentence where they cannot be written."""

import errno
import os
import pathlib
from types import SimpleNamespace

import pytest

from memdef_jax.checks import InputError
from memdef_jax.files import (
    MOST_JSON,
    below,
    check_links,
    check_writable,
    read_json,
    read_most,
    write_atomic,
)


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


def test_no_more_is_read_than_asked_and_one_byte_shows_that_there_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert [read_most(path, most) for most in (10, 9, 0)] == [b"0123456789"] * 2 + [b"0"]


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody ever writes to
    for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        with pytest.raises(InputError, match="is no regular file; remove it"):
            read_most(path, 10)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_most(tmp_path, 10)
    with pytest.raises(InputError, match="none cannot be read: No such file"):
        read_most(tmp_path / "none", 10)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_object_is_called_damaged(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="file is damaged; write it anew"):
        read_json(tmp_path / "file", "write it anew.")


def test_json_longer_than_any_is_not_parsed(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(10 * MOST_JSON)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match="file is damaged; write it anew"):
        read_json(tmp_path / "file", "write it anew.")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "/a",
        "a\\b",
        "a\0",
        "a\n",
        "\x1b[31m",
        "a" * 201,
        3,
        None,
        ["a"],
    ],
)
def test_what_leads_elsewhere_is_no_name_in_a_folder(tmp_path, name):
    with pytest.raises(InputError, match="is no name of something in"):
        below(tmp_path, name)


def test_a_link_is_a_name_as_long_as_it_stays_in_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "in").symlink_to("other")
    (folder / "out").symlink_to(tmp_path)
    (folder / "beside").symlink_to("../run-too")  # begins like the folder's own path
    assert below(folder, "in") == folder / "in"
    assert below(folder, "no such thing") == folder / "no such thing"
    for name in ("out", "beside"):
        with pytest.raises(InputError, match=f"{name} is a link that leads out of"):
            below(folder, name)
    with pytest.raises(InputError, match="is a link that leads out of"):
        check_links(folder)
