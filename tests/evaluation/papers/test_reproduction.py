"""Working off a paper's blank rows: what is run, what a failure does, and how it ends."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers import reproduction
from memdef_jax.evaluation.papers.published_vae import Row
from memdef_jax.evaluation.papers.reproduction import Options, plan, work_off
from memdef_jax.evaluation.papers.vae_blanks import Blank
from memdef_jax.training.run import VERSION

ROW = Row("defense_vae", "mnist", "a", ())


def test_an_empty_folder_gets_every_row_of_a_table_trained_and_measured(tmp_path):
    options = Options(preset="paper", count=0, cw_count=7)
    rows = plan(tmp_path / "new", "defense_vae", (1,), ("mnist",), options)
    assert [row.folder.name for row in rows] == [f"mnist-{name}" for name in "abcd"]
    training, sweep = rows[0].commands
    assert training[1] == "train.defense_vae"
    assert training[-2:] == ("--preset", "paper")
    assert sweep[1] == "eval.robustness"
    assert sweep[-5:] == ("--count", "0", "--cw-count", "7", "--no-examine")
    assert not (tmp_path / "new").exists()


def test_a_row_whose_training_was_stopped_is_trained_to_its_end(tmp_path):
    rows = plan(tmp_path, "defense_vae", (1,), ("mnist",), Options())
    config = {"classifier": {"architecture": "a"}, "mixture": {"attacks": ["fgsm", "rfgsm", "cw"]}}
    run = {
        "kind": "defense_vae",
        "dataset": "mnist",
        "fingerprint": "f",
        "config": config,
        "defenses": ["vae", "rec", "e2e"],
    }
    folder = tmp_path / "mnist-a"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    assert plan(tmp_path, "defense_vae", (1,), ("mnist",), Options()) == rows
    for name in run["defenses"]:
        (folder / "defenses" / name).mkdir(parents=True)
        (folder / "defenses" / name / "defense.json").touch()
    first, *others = plan(tmp_path, "defense_vae", (1,), ("mnist",), Options())
    assert first.commands == rows[0].commands[1:]
    assert others == rows[1:]


def test_a_row_gets_a_folder_of_its_own_where_another_run_has_its_name(tmp_path):
    for name, dataset in (("mnist-a", "fashion_mnist"), ("mnist-a-2", "digits")):
        run = {
            "kind": "classifier",
            "dataset": dataset,
            "config": {"imported": True},
            "defenses": ["linear"],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    rows = plan(tmp_path, "defense_vae", (1,), ("mnist",), Options())
    assert [row.folder.name for row in rows] == ["mnist-a-3", "mnist-b", "mnist-c", "mnist-d"]
    assert all(str(tmp_path / "mnist-a-3") in command for command in rows[0].commands)


def test_rows_that_only_compare_training_attacks_leave_end_to_end_training_out(tmp_path):
    (row,) = plan(tmp_path, "mad_vae", (2,), (), Options())
    assert [command[1] for command in row.commands] == ["train.mad_vae", "eval.black_box"]
    rows = plan(tmp_path, "defense_vae", (2,), ("fashion_mnist",), Options())
    own = {row.folder.name: row.commands[0] for row in rows}
    assert "--config.variants" in own["fashion_mnist-a-fgsm-rfgsm"]
    assert "--config.variants" not in own["fashion_mnist-a"]  # Table 1's as well


@pytest.mark.parametrize(
    ("datasets", "changes", "message"),
    [
        (("svhn",), {}, "no table on svhn; use some of fashion_mnist, mnist, "),
        ((), {"count": -1}, "count -1 is negative"),
        ((), {"cw_count": 0}, "cw_count 0 is below 1"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(tmp_path, datasets, changes, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, "defense_vae", None, datasets, Options(**changes))


def test_a_row_takes_the_classifier_of_the_usual_one_where_that_is_trained(tmp_path, monkeypatch):
    rows = plan(tmp_path, "defense_vae", (2,), ("fashion_mnist",), Options())
    own = {row.folder.name: row for row in rows}
    assert [row.like is None for row in rows] == sorted(row.like is None for row in rows)[::-1]
    assert own["fashion_mnist-a"].like is None
    assert own["fashion_mnist-a-fgsm-rfgsm"].like == tmp_path / "fashion_mnist-a"

    told = []
    monkeypatch.setattr(reproduction, "_run", lambda command, log: told.append(command) or 0)
    for _ in range(2):
        work_off([own["fashion_mnist-a-fgsm-rfgsm"]], tmp_path / "logs", print)
        own["fashion_mnist-a"].folder.mkdir(exist_ok=True)
        (own["fashion_mnist-a"].folder / "run.json").touch()
    without, sweep, with_it, again = told
    assert with_it == (*without, "--like", str(tmp_path / "fashion_mnist-a"))
    assert sweep == again


def test_a_row_that_fails_is_said_and_the_others_go_on(tmp_path):
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    fail = "import sys; print('the reason', file=sys.stderr); sys.exit(3)"

    def row(name, *programs):
        commands = tuple(("-c", program, str(tmp_path / f"{name}.done")) for program in programs)
        return Blank(ROW, pathlib.Path(name), commands)

    said = []
    rows = [row("first", fail, write), row("second", write)]
    assert work_off(rows, tmp_path / "logs", said.append) == ["first"]
    assert not (tmp_path / "first.done").exists()  # what comes after a failure is left out
    assert (tmp_path / "second.done").exists()
    assert any("status 3: the reason" in line for line in said)


def test_stopped_it_stops_what_is_running_and_says_so_with_its_own_status(tmp_path):
    program = f"""
import pathlib, sys
from memdef_jax import console
from memdef_jax.evaluation.papers.reproduction import work_off
from memdef_jax.evaluation.papers.vae_blanks import Blank
child = "import pathlib, time; pathlib.Path({str(tmp_path / "began")!r}).touch(); time.sleep(60)"
row = Blank(None, pathlib.Path("row"), (("-c", child), ("-c", "raise AssertionError")))
console.run(lambda: work_off([row], pathlib.Path({str(tmp_path)!r}), print))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "began").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert "the same command continues" in errors
    assert "failed" not in out
