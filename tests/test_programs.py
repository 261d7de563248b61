"""The programs as users start them: what they refuse, show, continue, and the demo on digits."""

import dataclasses
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import pytest

from memdef_jax import data, defenses, evaluation
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import THREATS, WORST, SweepConfig, read_records
from tests.evaluation import handmade, pages

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cache():
    """The compilation cache of this run of the tests, see conftest.py."""
    return os.environ["MEMDEF_JAX_TESTS_CACHE"]


@pytest.fixture
def start(monkeypatch, capsys, cache):
    """start(module, *arguments): run a program in this process; its status, output and errors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("COLUMNS", "200")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}

    def run(module, *arguments):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
        else:
            status = 0
        return (status, *capsys.readouterr())

    yield run
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A run's folder with two handmade defenses, as training leaves it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    benign = handmade.make(digits)
    other = handmade.make(digits, seed=1).variables["selector"]
    in_loop = MemoryDefense(benign.spec, {"selector": other, "stack": benign.variables["stack"]})
    handmade.write_run(folder, digits, {"benign": benign, "in_loop": in_loop})
    return folder


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")} if folder.exists() else {}


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--attacks", "fgsm,nonsense"], "attack 'nonsense' is unknown; use some of fgsm"),
        (["--attacks", ""], "no attack was given"),
        (["--threats", "white_box"], "threat model 'white_box' is unknown; use all or some of"),
        (["--eps", "-0.1"], "eps -0.1 is outside [0, 1]"),
        (["--eps", "9/255,nan"], "eps nan is outside [0, 1]"),
        (["--eps", "9"], "eps 9 is outside [0, 1]; give it in units of [0, 1] pixels"),
        (["--eps", "nine"], "eps 'nine' is no number; write it as 0.1 or 25/255"),
        (["--eps", ""], "no eps was given"),
        (["--count", "361"], "361 samples asked of a split of 360"),
        (["--count", "-1"], "count -1 is below 1"),
        (["--batch-size", "0"], "batch_size 0 is below 1"),
        (["--dataset", "imagenet"], 'there is no dataset "imagenet"; use digits, '),
        (["--dataset", "folder:no/where"], "has no folder train/"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_in_one_sentence(
    start, trained, arguments, sentence
):
    before = files(trained)
    # "=" because a value may begin with a minus.
    joined = [f"{name}={value}" for name, value in zip(arguments[::2], arguments[1::2])]
    status, out, err = start("eval.robustness", "--run", trained, *joined)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert files(trained) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (None, "holds no run (run.json is missing); train one there first."),
        ({"version": 2}, "has version 2 and this program reads up to 1; update memdef_jax."),
        ({"fingerprint": "0" * 64}, "was trained on digits with fingerprint 000000000000 and"),
        ({"selectors": ["benign"]}, "holds an unfinished run; train there until the end first."),
    ],
)
def test_a_folder_that_cannot_be_evaluated_is_refused_in_one_sentence(
    start, trained, tmp_path, change, sentence
):
    folder = tmp_path / "run"
    if change is not None:
        content = json.loads((trained / "run.json").read_text())
        content["version"] = change.get("version", content["version"])
        content["run"]["fingerprint"] = change.get("fingerprint", content["run"]["fingerprint"])
        (folder / "defenses").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(content))
        for name in change.get("selectors", ["benign", "in_loop"]):
            shutil.copytree(trained / "defenses" / name, folder / "defenses" / name)
    before = files(folder)
    status, out, err = start("eval.robustness", "--run", folder)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "fashion"], 'there is no dataset "fashion"; use digits, mnist'),
        (["--preset", "fast", "--dataset", "nothing"], "preset 'fast' is unknown; use one of qu"),
        (["--devices", "999"], "999 devices were asked for and"),
        (["--config.train-size", "50"], "batch_size 128 does not fit a split of 50 samples"),
        (["--config.stack.memory-rows", "7"], "memory rows 7 are fewer than the 10 classes"),
        (["--config.stack.memory-rows", "15"], "memory rows 15 are not divisible by the 10 clas"),
        (["--config.selector.architecture", "vgg"], "classifier 'vgg' is unknown"),
    ],
)
def test_a_training_that_cannot_be_made_is_refused_in_one_sentence(
    start, tmp_path, arguments, sentence
):
    folder = tmp_path / "run"
    status, out, err = start(
        "train.memory_defense", "--run", folder, "--dataset", "digits", *arguments
    )
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not folder.exists()


def test_a_setting_out_of_range_is_refused_with_its_sentence(start, tmp_path):
    folder = tmp_path / "run"
    status, _, err = start(
        "train.memory_defense", "--run", folder, "--dataset", "digits",
        "--config.stack.epochs", "0",
    )  # fmt: skip
    assert status == 2
    assert "epochs 0 is below 1; use 1 or more." in err
    assert not folder.exists()


def test_a_batch_that_does_not_split_over_the_devices_is_refused(tmp_path, cache):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "train.memory_defense", "--run", folder, "--dataset", "digits"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(cache),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        },
    )
    assert done.returncode == 2
    assert done.stderr == "error: batch size 128 is not divisible by 3 devices; use 126.\n"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "fashion_mnsit"], 'there is no dataset "fashion_mnsit"'),
        (["--dataset", "folder:no/where"], "has no folder train/"),
        (["--dataset", "digits", "--count", "0"], "count 0 is below 1"),
        (["--dataset", "digits", "--train-size", "9999"], "9999 samples asked of a split of 1437"),
    ],
)
def test_a_demo_that_cannot_be_made_is_refused_and_not_replaced(
    start, tmp_path, arguments, sentence
):
    status, out, err = start("eval.demo", "--run", tmp_path / "run", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- what is shown and kept ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], {"memory-rows": "500", "selector.architecture": "small_cnn", "selector.eps": "0.1"}),
        (
            ["--preset", "robust"],
            {"softmax-scale": "20.0", "mse-reduction": "sum", "selector.architecture": "resnet18"},
        ),
        (
            ["--preset=paper"],
            {"selector.recipe": "offline", "stack.epochs": "60", "selector.eps": "0.03"},
        ),
        (["--dataset", "cifar10"], {"selector.eps": f"{8 / 255}"}),
    ],
)
def test_help_shows_the_values_of_the_chosen_preset(start, arguments, shown):
    status, out, _ = start("train.memory_defense", *arguments, "--help")
    assert status == 0
    words = " ".join(out.replace("│", " ").split())
    assert "--run" in words
    for name, value in shown.items():
        _, _, after = words.partition(f"{name} ")
        assert f"(default: {value})" in after[:600], name


PROGRAMS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("train", "eval")
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in ("__init__", "command")
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_what_it_takes_and_stands_in_the_readme(start, program):
    status, out, _ = start(program, "--help")
    assert status == 0
    assert "usage:" in out
    assert f"`{program}`" in (ROOT / "README.md").read_text()


TINY = [
    "--dataset", "digits",
    "--config.train-size", "128",
    "--config.selector.recipe", "benign",
    "--config.selector.benign-epochs", "1",
    "--config.stack.epochs", "1",
    "--config.stack.beta", "0",
    "--config.stack.memory-rows", "100",
]  # fmt: skip


def test_a_setting_given_reaches_the_run_which_continues_only_as_the_same(start, tmp_path):
    folder = tmp_path / "run"
    status, out, err = start("train.memory_defense", "--run", folder, *TINY)
    assert (status, err) == (0, "")
    assert f"trained; now: python -m eval.robustness --run {folder}\n" in out
    run = json.loads((folder / "run.json").read_text())["run"]
    assert run["dataset"] == "digits"
    assert run["config"]["stack"]["memory_rows"] == 100
    assert run["config"]["train_size"] == 128
    assert run["config"]["stack"]["learning_rate"] == 2e-3  # the preset's, as it was not given
    spec = json.loads((folder / "defenses" / "benign" / "defense.json").read_text())["spec"]
    assert spec["memory_rows"] == 100
    metrics = (folder / "stack" / "metrics.jsonl").read_bytes()

    status, out, _ = start("train.memory_defense", "--run", folder, *TINY)
    assert status == 0
    assert "selector_benign: done before" in out
    assert "stack: done before" in out
    assert (folder / "stack" / "metrics.jsonl").read_bytes() == metrics

    before = files(folder)
    status, _, err = start("train.memory_defense", "--run", folder, *TINY, "--config.seed", "1")
    assert status == 2
    assert "holds another run: config.seed was 0 there and is 1 now" in err
    assert files(folder) == before


@pytest.mark.exhaustive
def test_an_evaluation_that_was_killed_goes_on_as_if_it_had_not(
    start, trained, digits, tmp_path, cache
):
    arguments = ["--attacks", "fgsm,pgd", "--threats", "grey_box", "--count", "8", "--no-examine"]
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        folder.mkdir()
        (folder / "run.json").write_text((trained / "run.json").read_text())
        shutil.copytree(trained / "defenses", folder / "defenses")
    killed, whole = folders
    child = subprocess.Popen(
        [sys.executable, "-m", "eval.robustness", "--run", killed, *arguments],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    lines = killed / "robustness.jsonl"
    until = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 4):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = lines.read_bytes().count(b"\n")
    assert done >= 4

    status, out, err = start("eval.robustness", "--run", killed, *arguments)
    assert (status, err) == (0, "")
    if done < 10:
        assert f"evaluation: continuing at {done} of 10" in out
    assert start("eval.robustness", "--run", whole, *arguments)[0] == 0
    ours, theirs = (list(read_records(folder).values()) for folder in folders)
    assert len(ours) == 10 + 2 * 6
    for one, other in zip(ours, theirs, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    table = (killed / "report.md").read_text()
    assert f"Memory Defense on {digits.info.name}" in table
    for word in ("grey_box", "pgd", "25/255", str(killed / "report.html")):
        assert word in out


# --- the demo -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "attacks",
    [("fgsm",), pytest.param(("fgsm", "bim", "pgd", "cw"), marks=pytest.mark.exhaustive)],
)
def test_the_demo_goes_from_nothing_to_the_report_and_a_second_call_does_nothing_anew(
    attacks, start, monkeypatch, tmp_path
):
    assert SweepConfig().attacks == ("fgsm", "bim", "pgd", "cw")
    monkeypatch.setattr(evaluation, "SweepConfig", partial(SweepConfig, attacks=attacks))
    real = data.load

    def unreachable(name, **places):
        if name == "fashion_mnist":
            raise InputError("fashion_mnist cannot be had: no network.")
        return real(name, **places)

    monkeypatch.setattr(data, "load", unreachable)
    whole = defenses.preset

    def short(*what, **more):
        config = whole(*what, **more)
        selector = dataclasses.replace(config.selector, benign_epochs=3, epochs=4)
        stack = dataclasses.replace(config.stack, epochs=5)
        return dataclasses.replace(config, selector=selector, stack=stack)

    monkeypatch.setattr(defenses, "preset", short)
    folder = tmp_path / "demo"
    arguments = ["--run", folder, "--count", "8", "--cw-count", "4", "--cw-steps", "10"]
    arguments += ["--train-size", "128", "--no-examine"]
    status, out, err = start("eval.demo", *arguments)
    assert (status, err) == (0, "")
    assert "note: fashion_mnist cannot be had: no network." in out
    assert "note: going on with the digits bundled with scikit-learn instead." in out

    found = list(read_records(folder).values())
    cells = {(r["selector"], r["threat"], r["attack"]) for r in found}
    for selector in ("benign", "in_loop"):
        assert (selector, "none", "clean") in cells
        assert cells >= {(selector, t, a) for t in (*THREATS, WORST) for a in attacks}
    linf = len({*attacks} - {"cw"})
    assert len(found) == len(cells) + 2 * (len(THREATS) + 1) * linf + 2  # a second eps
    for record in found:
        assert {"dataset", "defense", "threat", "attack", "norm", "eps", "n", "seed"} <= set(record)
        assert record["dataset"] == "digits"
        assert record["n"] == (4 if record["attack"] == "cw" else 8)

    text = (folder / "report.md").read_text()
    title = text.splitlines()[0]
    assert "digits" in title
    assert "because fashion_mnist could not be had" in title
    assert title.removeprefix("# ") in out.replace("\n", "")
    assert f"report: {folder / 'report.html'}" in out
    page, numbers = (folder / "report.html").read_text(), (folder / "report.json").read_text()
    assert json.loads(numbers)["records"] == found
    assert page.startswith("<!doctype html>")
    shown = pages.Page(page)
    assert len(shown.numbers) > 125 * len(attacks)
    pages.check_numbers(shown, json.loads(numbers))
    assert text.split("\n\n")[1] in out
    for selector in ("benign", "in_loop"):
        for threat in THREATS:
            assert len(list((folder / "pictures").glob(f"{selector}-{threat}-*.png"))) == 1
    assert set(json.loads((folder / "diagnostics.json").read_text())) == {"benign", "in_loop"}

    kept = (folder / "robustness.jsonl").read_bytes()
    status, again, err = start("eval.demo", *arguments)
    assert (status, err) == (0, "")
    for stage in ("selector_benign", "selector_in_loop", "stack", "evaluation"):
        assert f"{stage}: done before" in again
    assert (folder / "robustness.jsonl").read_bytes() == kept
    assert text.split("\n\n")[1] in again
