"""One process at a time in a folder; the lock of a dead one holds nobody up."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from memdef_jax import locks
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefenseConfig, fit
from memdef_jax.evaluation.program import evaluate_run
from memdef_jax.locks import LOCK, locked
from memdef_jax.training import Silent

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import pathlib, sys, time
from memdef_jax.locks import locked

with locked(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder in which another process works, and that process."""
    folder = tmp_path_factory.mktemp("held") / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    yield folder, child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_process_is_told_who_is_there_and_changes_nothing(held):
    folder, child = held
    before = (folder / LOCK).read_bytes()
    sentence = rf"run is in use by process {child.pid} on .*; wait until that has ended"
    with pytest.raises(InputError, match=sentence), locked(folder):
        pytest.fail("it was let in")
    # Training and evaluation ask before they look at anything else.
    with pytest.raises(InputError, match=sentence):
        fit(MemoryDefenseConfig(), None, folder)
    with pytest.raises(InputError, match=sentence):
        evaluate_run(folder, {}, None, None, Silent())
    assert os.listdir(folder) == [LOCK]
    assert (folder / LOCK).read_bytes() == before


def test_the_lock_of_a_killed_process_is_taken_over(held):
    folder, child = held
    child.kill()
    child.wait()
    assert (folder / LOCK).exists()
    with locked(folder):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} ")
    assert os.listdir(folder) == []


def test_the_same_process_may_enter_again_and_only_the_outer_one_lets_go(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert os.listdir(tmp_path) == [LOCK]
    assert os.listdir(tmp_path) == []


def test_a_folder_made_for_the_lock_goes_with_it_unless_something_is_in_it(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("")
    assert os.listdir(tmp_path / "a") == ["file"]


def test_a_file_system_without_locks_is_said_and_no_obstacle(tmp_path, monkeypatch):
    def refuse(handle, flags):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    notes = []
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locked(tmp_path, notes.append):
        pass
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path, notes.append), locked(tmp_path):
        pass
    assert "cannot be locked (Operation not supported), so take care" in notes[0]
    assert "cannot be locked (this system has no flock)" in notes[1]
    assert len(notes) == 2


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="link that leads out of"), locked(tmp_path / "run"):
        pytest.fail("it was let in")
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run" / "other").write_text("precious")
    (tmp_path / "run" / LOCK).symlink_to("other")
    with pytest.raises(InputError, match=r"\.lock cannot be written"), locked(tmp_path / "run"):
        pytest.fail("it was let in")
    assert (tmp_path / "run" / "other").read_text() == "precious"


@pytest.mark.parametrize("place", ["metrics.jsonl", "stage/checkpoints", "stage/deep/report.html"])
def test_links_that_lead_out_of_the_folder_are_refused_before_anything_is_written(tmp_path, place):
    run = tmp_path / "run"
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{place} is a link that leads out of"), locked(run):
        pytest.fail("it was let in")
    assert os.listdir(tmp_path) == ["run"]


def test_links_to_the_folder_or_within_it_are_fine(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("")
    (tmp_path / "disk" / "name").symlink_to("file")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file" / "run"):
        pytest.fail("it was let in")
