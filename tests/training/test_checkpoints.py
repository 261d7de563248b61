"""Checkpoints are whole or absent; what was altered is noticed and the one before is used."""

import errno
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from memdef_jax.checks import InputError
from memdef_jax.training import checkpoints


def tree_of(step):
    rng = np.random.default_rng(step)
    return {
        "params": {"w": rng.normal(size=(3, 4)).astype(np.float32), "b": np.float32(step)},
        "count": np.int32(step),
        "empty": {},
    }


LIKE = tree_of(0)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A store with checkpoints of steps 1 and 2, to be copied."""
    store = tmp_path_factory.mktemp("two") / "checkpoints"
    for step in (1, 2):
        checkpoints.save(store, step, tree_of(step))
    return store


@pytest.fixture
def store(two, tmp_path):
    shutil.copytree(two, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_arrays_come_back_exactly(store):
    restored = checkpoints.restore_latest(store, LIKE)
    assert (restored.step, restored.notes) == (2, ())
    same(restored.tree, tree_of(2))


def test_an_absent_store_holds_nothing(tmp_path):
    assert checkpoints.restore_latest(tmp_path / "none", LIKE) == checkpoints.Restored(None, None)


def test_only_the_newest_are_kept(store):
    checkpoints.save(store, 10, tree_of(10))  # by number: as text, 10 comes before 2
    assert sorted(p.name for p in store.iterdir()) == ["step_10", "step_2"]


def test_a_flipped_byte_in_any_file_falls_back_to_the_one_before_and_says_so(two, tmp_path):
    for number, victim in enumerate(files_of(two / "step_2")):
        store = tmp_path / str(number)
        shutil.copytree(two, store)
        path = store / victim.relative_to(two)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        restored = checkpoints.restore_latest(store, LIKE)
        assert restored.step == 1, path
        same(restored.tree, tree_of(1))
        (note,) = restored.notes
        assert "checkpoint of step 2 passed over" in note
        assert "is damaged" in note


def truncate(folder):
    largest = max(files_of(folder / "tree"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def drop_a_file(folder):
    files_of(folder / "tree" / "d")[0].unlink()


def add_a_file(folder):
    (folder / "tree" / "more").write_bytes(b"")


def drop_the_digests(folder):
    (folder / "digests.json").unlink()


def garble_the_digests(folder):
    (folder / "digests.json").write_bytes(b"\xff{")


def empty_it(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def empty_but_consistent(folder):
    empty_it(folder)
    (folder / "digests.json").write_text("{}")


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        drop_a_file,
        add_a_file,
        drop_the_digests,
        garble_the_digests,
        empty_it,
        empty_but_consistent,
    ],
)
def test_a_harmed_checkpoint_falls_back_to_the_one_before_and_says_so(store, harm):
    harm(store / "step_2")
    restored = checkpoints.restore_latest(store, LIKE)
    assert restored.step == 1
    same(restored.tree, tree_of(1))
    assert len(restored.notes) == 1
    assert restored.notes[0].startswith("checkpoint of step 2 passed over: ")


def test_with_every_checkpoint_damaged_nothing_is_restored_and_each_is_named(store):
    truncate(store / "step_1")
    truncate(store / "step_2")
    restored = checkpoints.restore_latest(store, LIKE)
    assert restored.step is restored.tree is None
    assert [note.split(" passed")[0] for note in restored.notes] == [
        "checkpoint of step 2",
        "checkpoint of step 1",
    ]


def test_saving_after_a_fall_back_never_prefers_a_damaged_later_checkpoint(store):
    for step in (1, 2):
        shutil.move(store / f"step_{step}", store / f"step_{step * 10}")
    truncate(store / "step_10")
    truncate(store / "step_20")
    checkpoints.save(store, 5, tree_of(5))
    restored = checkpoints.restore_latest(store, LIKE)
    assert (restored.step, restored.notes) == (5, ())


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(store):
    truncate(store / "step_2")
    checkpoints.save(store, 2, tree_of(7))
    same(checkpoints.restore_latest(store, LIKE).tree, tree_of(7))


def test_what_a_killed_save_left_is_never_read_and_is_swept_away(store):
    leftover = store / ".saving-step_3-0123"
    shutil.copytree(store / "step_2", leftover)
    (leftover / "digests.json").unlink()
    assert checkpoints.restore_latest(store, LIKE).step == 2
    assert not leftover.exists()
    # A defense is written without a restore before it.
    leftover = store / ".saving-variables-0123"
    leftover.mkdir()
    checkpoints.write_tree(store / "variables", tree_of(3))
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("like", "named"),
    [
        ({**LIKE, "count": np.zeros(2, np.int32)}, r"count is int32\[\] there and int32\[2\] here"),
        ({**LIKE, "count": np.float32(0)}, r"count is int32\[\] there and float32\[\] here"),
        ({**LIKE, "more": np.int32(0)}, r"more is absent there and int32\[\] here"),
        ({"count": LIKE["count"]}, r"params/b is float32\[\] there and absent here"),
    ],
)
def test_another_structure_is_an_error_that_names_the_array_not_damage(store, like, named):
    with pytest.raises(checkpoints.OtherStructure, match=f"another model.*{named}"):
        checkpoints.restore_latest(store, like)
    assert (store / "step_2").is_dir()


def test_nothing_that_could_be_unpickled_is_written(store):
    for path in files_of(store):
        content = path.read_bytes()
        assert content[:1] != b"\x80", path  # protocol 2 and later begin with it
        assert path.suffix not in (".pkl", ".pickle", ".npy", ".npz"), path
    names = json.loads((store / "step_2" / "digests.json").read_text())
    assert {f"step_2/{name}" for name in names} | {"step_2/digests.json"} == {
        p.relative_to(store).as_posix() for p in files_of(store / "step_2")
    }


def test_too_little_space_is_noticed_before_a_save_and_the_old_ones_stay(store, monkeypatch):
    stats = SimpleNamespace(f_bavail=1, f_frsize=100)
    monkeypatch.setattr(os, "statvfs", lambda path: stats)
    with pytest.raises(InputError, match="MB are needed"):
        checkpoints.save(store, 3, tree_of(3))
    monkeypatch.undo()
    assert checkpoints.restore_latest(store, LIKE).step == 2


FILL_UP = """
import pathlib, resource, sys
import numpy as np
from memdef_jax.checks import InputError
from memdef_jax.training import checkpoints

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
noise = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
try:
    checkpoints.save(pathlib.Path(sys.argv[1]), 3, {"noise": noise})
except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_up_during_a_save_gives_one_sentence_and_the_old_ones_stay(store):
    # The limit on a file's size is a real one: TensorStore itself meets it. In a process of its
    # own, because Orbax's threads go on complaining for a while after the error.
    command = [sys.executable, "-c", FILL_UP, str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "step_3 cannot be written (File too large)" in done.stdout, done.stderr
    assert sorted(p.name for p in store.iterdir()) == ["step_1", "step_2"]
    assert checkpoints.restore_latest(store, LIKE).step == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_during_a_save_is_one_sentence(store, monkeypatch, code):
    def refuse(self, path, tree):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", refuse)
    with pytest.raises(InputError, match=rf"step_3 cannot be written \({os.strerror(code)}\)"):
        checkpoints.save(store, 3, tree_of(3))
    monkeypatch.undo()
    assert checkpoints.restore_latest(store, LIKE).step == 2


def seal(folder, tree):
    """As somebody would who altered a checkpoint on purpose."""
    (folder / "arrays.json").write_text(json.dumps(checkpoints._arrays(tree)))
    (folder / "digests.json").write_text(json.dumps(checkpoints._digests(folder)))


def test_arrays_of_other_shapes_than_the_names_say_are_refused(tmp_path):
    checkpoints.write_tree(tmp_path / "step_1", {"w": np.zeros((300, 400), np.float32)})
    said = {"w": np.zeros((3, 4), np.float32)}
    seal(tmp_path / "step_1", said)
    with pytest.raises(InputError, match=r"step_1 cannot be read \(.*shape.*\); delete it"):
        checkpoints.read_tree(tmp_path / "step_1", said)


def test_more_than_any_model_has_is_refused_before_anything_is_read(tmp_path):
    like = {"memory": jax.ShapeDtypeStruct((10**12, 1024), np.float32)}
    with pytest.raises(
        InputError, match=r"is of a model of 4\.1e\+15 bytes and at most 17179869184"
    ):
        checkpoints.read_tree(tmp_path, like)


def test_a_link_or_a_pipe_in_a_checkpoint_is_no_file_of_it(store, tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    (store / "step_2" / "tree" / "more").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(store / "step_1" / "tree" / "pipe")
    restored = checkpoints.restore_latest(store, LIKE)
    assert restored.step is None
    assert "more is no file" in restored.notes[0]
    assert "pipe is no file" in restored.notes[1]


def test_a_checkpoint_larger_than_any_is_refused_before_it_is_read(store, monkeypatch):
    with (store / "step_2" / "tree" / "more").open("wb") as file:
        file.truncate(2 * checkpoints.MOST_BYTES + 1)  # a hole, which takes no room on the disk
    restored = checkpoints.restore_latest(store, LIKE)
    assert restored.step == 1
    assert "step_2 holds more than" in restored.notes[0]


@pytest.mark.parametrize(
    "name", ["step_\u00b2", "step_007", "step_-1", "step_x", "step_" + "9" * 200]
)
def test_folders_that_are_named_almost_like_checkpoints_are_passed_over(store, name):
    shutil.copytree(store / "step_2", store / name)
    restored = checkpoints.restore_latest(store, LIKE)
    assert (restored.step, restored.notes) == (2, ())


@pytest.mark.parametrize("content", ["[]", "null", "3", "{", "", "[" * 100_000])
def test_names_of_arrays_that_are_none_are_called_damaged(store, content):
    for step in (1, 2):
        (store / f"step_{step}" / "arrays.json").write_text(content)
        known = json.dumps(checkpoints._digests(store / f"step_{step}"))
        (store / f"step_{step}" / "digests.json").write_text(known)
    restored = checkpoints.restore_latest(store, LIKE)
    assert restored.step is None
    assert all("arrays.json is damaged" in note for note in restored.notes)
