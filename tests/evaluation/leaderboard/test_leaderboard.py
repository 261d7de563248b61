"""From folders of runs to the board, with records made by hand and with one that is measured."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import PlainDefense
from memdef_jax.evaluation.leaderboard import program
from memdef_jax.evaluation.leaderboard.entries import collect, runs_on
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.sweeps.records import append_record, read_records
from memdef_jax.training import Silent
from memdef_jax.training.run import VERSION
from tests.evaluation import pages

N = 8
SMALL = Protocol(count=N, attacks=("autoattack", "fmn", "pgd"))
EPS = {"linf": 25 / 255, "l2": 1.0, None: None}


def write_run(folder, defenses=("vae",), dataset="mnist", seed=0, fingerprint="f", **config):
    folder.mkdir(parents=True)
    run = {
        "kind": "defense_vae",
        "dataset": dataset,
        "fingerprint": fingerprint,
        "config": {"seed": seed, **config},
        "defenses": list(defenses),
    }
    (folder / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    return folder


def keep(folder, attack, right, norm="linf", *, variant="vae", threat="adaptive", **fields):
    """A cell with these images right, stored as a sweep stores it."""
    right = np.asarray(right, bool)
    norms = np.asarray(fields.pop("norms", np.zeros(len(right))), np.float32)
    record = {
        "dataset": "mnist",
        "fingerprint": "f",
        "defense": "defense_vae",
        "selector": variant,
        "threat": threat,
        "attack": attack,
        "norm": norm,
        "eps": None if attack == "fmn" else EPS[norm],
        "n": len(right),
        "seed": 0,
        "settings": {},
        "robust_accuracy": float(right.mean()),
        "failed": None,
    }
    outcomes = dict.fromkeys(("correct", "selector_correct", "selector_correct_any"), right)
    append_record(folder, record | fields, outcomes | {"norm": norms})


def keep_clean(folder, right, **fields):
    keep(folder, "clean", right, None, threat="none", **fields)


def keep_all(folder, linf, l2, variant="vae"):
    """A whole measurement under SMALL: so many of the images survive in each norm."""
    keep_clean(folder, np.ones(N), variant=variant)
    for norm, right in (("linf", linf), ("l2", l2)):
        for name in SMALL.names(norm):
            keep(folder, name, np.arange(N) < right, norm, variant=variant)


def board(folder, **options):
    given = {"protocol": SMALL, "dataset": "mnist", "measured": False} | options
    dataset, protocol = given.pop("dataset"), given.pop("protocol")
    return program.leaderboard(folder, dataset, protocol, Silent(), **given)[0]


def only_entry(folder):
    (run,) = runs_on(folder, "mnist")
    (found,) = collect(run, SMALL)
    return found


# --- what is collected --------------------------------------------------------------------------


def test_an_image_survives_a_norm_if_no_attack_of_that_norm_takes_it(tmp_path):
    run = write_run(tmp_path / "a")
    keep_clean(run, [1, 1, 1, 1, 1, 1, 1, 0])
    keep(run, "autoattack", [1, 1, 1, 1, 0, 0, 0, 0])
    keep(run, "autoattack", [0, 1, 1, 1, 1, 0, 0, 0], threat="grey_box")
    keep(run, "pgd", [1, 0, 1, 1, 1, 1, 0, 0])
    keep(run, "pgd", np.zeros(N), eps=0.3)  # another budget
    keep(run, "autoattack", [1, 1, 0, 0, 0, 0, 0, 0], "l2")
    # It takes the third at 0.05 and the fourth at 0.2 only; the last was lost without attack.
    keep(run, "fmn", [1, 1, 0, 0, 1, 1, 1, 0], norms=[0, 0, 0.05, 0.2, 0, 0, 0, 0])
    keep(run, "fmn", np.zeros(N), "l2", norms=[0.5, 2, 2, 2, 2, 2, 2, 2])
    found = only_entry(tmp_path)
    assert found.clean.sum() == 7
    linf, l2 = found.budgets["linf"], found.budgets["l2"]
    np.testing.assert_array_equal(linf.survived, [0, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(l2.survived, [0, 1, 0, 0, 0, 0, 0, 0])
    assert linf.attacks == {"autoattack": 3 / 8, "pgd": 5 / 8, "fmn": 6 / 8}
    assert l2.attacks == {"autoattack": 2 / 8, "fmn": 7 / 8}
    assert (linf.cells, l2.cells) == (4, 2)
    assert found.missing == ()


def test_what_is_missing_is_named_and_other_numbers_of_images_do_not_count(tmp_path):
    run = write_run(tmp_path / "a")
    keep_clean(run, np.ones(N))
    keep_clean(run, np.ones(3))
    keep(run, "autoattack", np.zeros(3))
    keep(run, "pgd", np.ones(N), threat="grey_box")
    found = only_entry(tmp_path)
    assert found.missing == (
        *("autoattack (linf)", "fmn (linf)", "pgd (linf)"),
        *("autoattack (l2)", "fmn (l2)"),
    )
    assert found.budgets["linf"].survived.all()
    assert found.budgets["l2"].survived is None
    (run,) = runs_on(tmp_path, "mnist")
    with pytest.raises(InputError, match=r"has no accuracy on 5 images \(on others: 3, 8\)"):
        collect(run, Protocol(count=5))


def test_checks_are_those_of_the_last_examination(tmp_path):
    run = write_run(tmp_path / "a", defenses=("vae", "rec"))
    keep_all(run, 4, 4)
    keep_all(run, 6, 6, variant="rec")
    verdicts = pages.summary()["checks"]["in_loop"]
    parts = {"checks rec": verdicts, "transfer": {}, "detection rec": {}}
    (run / "examination.json").write_text(json.dumps({"digest": "d", "parts": parts}))
    rec, vae = board(tmp_path).content["rows"]
    assert (rec["variant"], rec["checked"]) == ("rec", "1 fail, 1 warn")
    assert [check["verdict"] for check in rec["checks"]] == ["pass", "warn", "fail", "skipped"]
    assert len(rec["doubts"]) == 2
    assert (vae["checked"], vae["doubts"]) == ("not made", ["The evaluation was not examined."])
    (run / "examination.json").write_text("{")
    assert {row["checked"] for row in board(tmp_path).content["rows"]} == {"not made"}


def test_an_attack_that_failed_is_a_doubt(tmp_path):
    run = write_run(tmp_path / "a")
    keep_all(run, 4, 4)
    keep(run, "pgd", np.zeros(N), failed="the attack failed: look at it.")
    (row,) = board(tmp_path).content["rows"]
    assert "pgd in linf: the attack failed: look at it." in row["doubts"]


# --- which runs ---------------------------------------------------------------------------------


def test_runs_on_the_dataset_are_found_and_the_rest_is_left_out_or_said(tmp_path):
    keep_all(write_run(tmp_path / "deep" / "one"), 4, 3)
    keep_all(write_run(tmp_path / "two"), 6, 3)
    write_run(tmp_path / "bare")
    write_run(tmp_path / "other", dataset="fashion_mnist")
    write_run(tmp_path / "classifier", defenses=())
    found = board(tmp_path).content
    assert [row["runs"] for row in found["rows"]] == [["two"], ["deep/one"]]
    (remark,) = found["remarks"]
    assert remark.startswith("bare: ")
    assert "has no accuracy on 8 images (on others: none)" in remark
    assert [row["runs"] for row in board(tmp_path, only=("deep/one",)).content["rows"]] == [
        ["deep/one"]
    ]
    assert board(tmp_path / "two").content["rows"][0]["runs"] == ["two"]


def test_a_folder_of_images_is_known_by_its_name(tmp_path):
    run = write_run(tmp_path / "a", dataset="folder:faces")
    assert [r.folder for r in runs_on(tmp_path, "folder:some/where/faces")] == [run]


def test_other_images_of_the_same_name_are_said(tmp_path):
    keep_all(write_run(tmp_path / "colour"), 6, 3)
    gray = write_run(tmp_path / "gray", fingerprint="g")
    keep_clean(gray, np.ones(N), fingerprint="g")
    shown = board(tmp_path).content
    assert [row["verdict"] for row in shown["rows"]] == ["the first", "not compared"]
    assert shown["remarks"][0].startswith("Not all rows are on the same images of mnist")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "cifar10"}, "holds no run of a defense on cifar10; train one there first"),
        ({"only": ("b",)}, "run 'b' is not one of those on mnist; use some of a"),
        ({}, "no run can be shown; a: "),
        ({"measured": True}, "no run can be shown; a: .* holds an unfinished run"),
    ],
)
def test_a_board_of_nothing_is_refused(tmp_path, options, sentence):
    write_run(tmp_path / "a")
    with pytest.raises(InputError, match=sentence):
        board(tmp_path, **options)


# --- what is shown ------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path):
    for seed, right in enumerate((8, 7)):
        keep_all(write_run(tmp_path / f"s{seed}", seed=seed), right, right - 1)
    keep_all(write_run(tmp_path / "zero", epochs=1), 0, 2)
    partly = write_run(tmp_path / "partly", epochs=2)
    keep_clean(partly, np.ones(N))
    keep(partly, "pgd", np.ones(N))
    return tmp_path


def test_the_table_says_what_it_compares(four):
    shown = board(four, seeds_together=True, command="python -m eval.leaderboard")
    rows = [dict(zip(range(len(shown.header)), line)) for line in shown.lines]
    assert {len(line) for line in shown.lines} == {len(shown.header)}
    assert [row[1] for row in rows] == ["s0, s1", "zero", "partly"]
    # 8 and 7 of 8, and 7 and 6 of 8; the deviation of two is their difference / sqrt(2)
    assert [rows[0][i] for i in (5, 6, 7, 8)] == ["93.8 +- 8.8", "-", "81.2 +- 8.8", "-"]
    assert rows[1][5] == "0.0"
    assert [rows[2][i] for i in (5, 7)] == ["<= 100.0", "-"]
    # 7 images of the second seed against none: p = 2 / 2^7
    assert [row[12] for row in rows] == ["the first", "lower (p 0.016)", "not compared"]
    text = " ".join(shown.content["headline"])
    assert "s0, s1: vae keeps 93.8% under every attack at Linf 25/255." in text
    assert "better than 1 of the 1 it can be compared with" in text


def test_page_and_files_hold_the_same_numbers(four):
    shown, path = program.leaderboard(four, "mnist", SMALL, Silent(), measured=False)
    assert path == four / "leaderboard.html"
    content = json.loads((four / "leaderboard.json").read_text())
    assert content == json.loads(json.dumps(shown.content))
    read = pages.Page(path.read_text())
    assert pages.embedded(read) == content
    pages.check_numbers(read, content)
    for at, row in enumerate(content["rows"]):
        assert json.loads(read.numbers[f"/rows/{at}/clean/accuracy"][0]) == 1.0
        if row["linf"]["accuracy"] is not None:
            assert f"/rows/{at}/linf/accuracy" in read.numbers
    assert not read.all("a", href="http")
    document = (four / "leaderboard.md").read_text()
    assert all(line[1] in document for line in shown.lines)
    assert "0.098" in document
    assert "Not measured: autoattack (linf), fmn (linf)" in document


# --- measured -----------------------------------------------------------------------------------


def test_what_is_missing_is_measured_and_nothing_twice(digits, tmp_path, monkeypatch, capsys):
    x = digits.train.images[:400].reshape(400, -1) / 255
    weights = np.linalg.lstsq(x, np.eye(10)[digits.train.labels[:400]], rcond=1e-2)[0]
    linear = jax.tree_util.Partial(
        lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights, jnp.float32)
    )
    run = write_run(tmp_path / "mine", ("plain",), "digits", fingerprint=digits.info.fingerprint)
    defense = PlainDefense.of(linear, (28, 28, 1))
    monkeypatch.setattr(program, "load_run", lambda folder: {"plain": defense})
    protocol = Protocol(count=N, attacks=("noise", "fmn"), batch_size=N)
    found, _ = program.leaderboard(tmp_path, "digits", protocol, Silent(), examined=False)
    (row,) = found.content["rows"]
    assert row["complete"]
    assert row["clean"]["accuracy"] >= 0.5
    # For Linf the worst that eps can do to a linear model's margins is eps times their L1 norms.
    part = digits.test[:N]
    logits = np.asarray(linear(jnp.asarray(part.images, jnp.float32) / 255), np.float64)
    assert row["linf"]["accuracy"] <= row["clean"]["accuracy"]
    own = weights.T[part.labels][:, None] - weights.T[None]
    margins = logits[np.arange(N), part.labels][:, None] - logits
    for norm, order, eps in (("linf", 1, 25 / 255), ("l2", 2, 1.0)):
        certified = margins - eps * np.linalg.norm(own, order, axis=2)
        others = np.arange(10) != part.labels[:, None]
        least = np.where(others, certified, np.inf).min(axis=1) > 0
        assert row[norm]["accuracy"] >= least.mean()
    records = read_records(run)
    assert {(r["norm"], r["eps"]) for r in records.values() if r["threat"] == "adaptive"} == {
        *(("linf", 25 / 255), ("linf", None), ("l2", 1.0), ("l2", None))
    }
    before = (run / "robustness.jsonl").read_text()
    main = importlib.import_module("eval.leaderboard").main
    main(tmp_path, "digits", count=N, measure=False)
    assert (run / "robustness.jsonl").read_text() == before
    out = capsys.readouterr().out
    assert str(tmp_path / "leaderboard.html") in out
    assert "mine" in out
