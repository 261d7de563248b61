"""A run's folder can only be continued as the same run."""

import json

import pytest

from memdef_jax.checks import InputError
from memdef_jax.training.run import VERSION, open_run, read_run

DESCRIPTION = {
    "dataset": "digits",
    "fingerprint": "abc",
    "config": {"selector": {"eps": 0.1, "shape": (28, 28)}, "seed": 0},
}


def changed(**fields):
    return {**DESCRIPTION, **fields}


def test_a_new_folder_is_made_and_the_same_run_continues_in_it(tmp_path):
    folder = tmp_path / "a" / "b"
    open_run(folder, DESCRIPTION)
    (folder / "metrics").write_text("")
    open_run(folder, DESCRIPTION)
    # JSON knows no tuples: they come back as lists, and must not count as a difference.
    assert read_run(folder)["config"]["selector"] == {"eps": 0.1, "shape": [28, 28]}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            changed(config={"selector": {"eps": 0.2, "shape": (28, 28)}, "seed": 0}),
            r"config\.selector\.eps was 0\.1 there and is 0\.2 now",
        ),
        (
            changed(config={"selector": {"eps": 0.1, "shape": (32, 28)}, "seed": 0}),
            r"config\.selector\.shape was \[28, 28\] there and is \[32, 28\] now",
        ),
        (changed(fingerprint="abd"), "fingerprint was 'abc' there and is 'abd' now"),
        (changed(dataset="mnist"), "dataset was 'digits' there and is 'mnist' now"),
        (changed(extra=1), "extra was None there and is 1 now"),
    ],
)
def test_another_run_is_refused_by_the_name_of_the_field(tmp_path, other, sentence):
    open_run(tmp_path, DESCRIPTION)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=sentence):
        open_run(tmp_path, other)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"not empty.*\(it has thesis\.tex\)"):
        open_run(tmp_path, DESCRIPTION)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_start_left_behind_does_not_block_the_next(tmp_path):
    (tmp_path / ".run.json.0123").write_text('{"version"')
    open_run(tmp_path, DESCRIPTION)
    assert read_run(tmp_path)["dataset"] == "digits"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 1, "ru',
        b"[1, 2]",
        b"\xff\xfe",
        b'{"version": "x", "run": {}}',
        b'{"version": Infinity, "run": {}}',
        b'{"version": 1, "run": []}',
        b"null",
        b"[" * 100_000,
    ],
)
def test_a_garbled_description_is_called_damaged(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        open_run(tmp_path, DESCRIPTION)


def test_a_run_of_a_newer_version_asks_for_an_update(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"version": VERSION + 1, "run": DESCRIPTION}))
    with pytest.raises(InputError, match=f"version {VERSION + 1}.*update memdef_jax"):
        open_run(tmp_path, DESCRIPTION)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        read_run(tmp_path)


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="are needed"):
        open_run(tmp_path / "run", DESCRIPTION, needed_bytes=10**18)
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_sentence_shows_of_a_file_is_short(tmp_path):
    content = {"version": 1, "run": {**DESCRIPTION, "x" * 10_000: "y" * 10_000}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"run: x{100}\.\.\. was 'yy.*yy' there") as caught:
        open_run(tmp_path, DESCRIPTION)
    assert len(str(caught.value)) < 800
