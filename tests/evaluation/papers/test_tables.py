"""The paper's tables beside records made by hand: whose numbers, which reading, what is missing."""

import importlib
import json

import numpy as np
import pytest
import tyro

from memdef_jax.checks import InputError
from memdef_jax.evaluation import THREATS, WORST
from memdef_jax.evaluation.papers import table_report, tables
from memdef_jax.evaluation.reports.layout import as_markdown, as_text
from memdef_jax.evaluation.sweeps.records import append_record
from memdef_jax.training.run import VERSION

NINE, TWENTY_FIVE = 9 / 255, 25 / 255


def record(threat, attack, eps, right, n=100, selector="offline", before=90, alone=None, **fields):
    """A cell: of n images so many right, `before` the attack, `alone` by classifier-A."""
    return {
        "dataset": "fashion_mnist",
        "fingerprint": "f",
        "defense": "memory_defense",
        "selector": selector,
        "threat": threat,
        "attack": attack,
        "norm": None,
        "eps": eps,
        "n": n,
        "seed": 0,
        "settings": {},
        "robust_accuracy": right / n,
        "clean_accuracy": before / n,
        "selector_accuracy": (right if alone is None else alone) / n,
        **fields,
    }


def sources(*records, **fields):
    defaults = {"folder": "runs/r", "dataset": "fashion_mnist", "adversarial": "offline"}
    return tables.Sources(run=records, **(defaults | fields))


def cell(source, system, attack, eps=None, table=1):
    """The one comparison of a system's number on the run's dataset."""
    wanted = (source.dataset, system, attack, eps)
    here = ((c.printed, c) for c in tables.compare(source, (table,)))
    (found,) = [c for p, c in here if (p.dataset, p.system, p.attack, p.eps) == wanted]
    return found


def percents(compared):
    return {name: reading.percent for name, reading in compared.readings.items()}


def test_each_threat_model_is_a_reading_with_its_difference_from_the_paper():
    source = sources(
        record("grey_box", "pgd", NINE, 60),
        record("frozen_mask", "pgd", NINE, 89),
        record("frozen_mask", "pgd", TWENTY_FIVE, 11),  # another budget
        record("frozen_mask", "bim", NINE, 12),  # another attack
        record("frozen_mask", "pgd", NINE, 13, selector="benign"),  # another classifier-A
        record("frozen_mask", "pgd", NINE, 14, dataset="cifar10"),
    )
    found = cell(source, "pipeline", "pgd", NINE)  # the paper prints 89.97
    ours = {k: v for k, v in percents(found).items() if "pooled" not in k}
    assert ours == pytest.approx({"grey_box": 60.0, "frozen_mask": 89.0})
    assert found.differences["grey_box"] == pytest.approx(60 - 89.97)
    assert found.differences["frozen_mask"] == pytest.approx(89 - 89.97)
    low, high = found.readings["grey_box"].interval
    assert low < 60 < high
    assert found.readings["grey_box"].n == 100


@pytest.mark.parametrize(
    ("right", "before", "verdict"),
    [
        ({"grey_box": 88}, 40, "grey_box"),  # 89.97: within two points; pooled it is 64
        ({"grey_box": 88, "frozen_mask": 91}, 40, "several: grey_box, frozen_mask"),
        ({"grey_box": 87, "frozen_mask": 10}, 10, "none"),  # 2.97 off
        ({"grey_box": 80}, 99, "grey_box pooled"),  # (99 + 80) / 200
        ({}, 90, ""),
    ],
)
def test_the_reading_that_reproduces_a_number_is_named(right, before, verdict):
    records = [record(t, "pgd", NINE, n, before=before) for t, n in right.items()]
    assert cell(sources(*records), "pipeline", "pgd", NINE).verdict == verdict


@pytest.mark.parametrize(("percent", "named"), [(92.0, True), (88.0, True), (92.01, False)])
def test_two_points_either_way_still_reproduce(percent, named):
    number = tables.Printed(1, "fashion_mnist", "r", "pipeline", "pgd", NINE, 90.0)
    compared = tables.Compared(number, {"grey_box": tables.Reading(percent, 100)})
    assert (compared.reproduced_by == ("grey_box",)) is named


def test_pooled_counts_clean_and_attacked_images_together():
    source = sources(record("transfer", "fgsm", NINE, 37, before=91, n=128))
    pooled = cell(source, "pipeline", "fgsm", NINE).readings["transfer pooled"]
    assert pooled.percent == pytest.approx(100 * (91 + 37) / (2 * 128))
    assert pooled.n == 128
    assert pooled.interval is None


def test_classifier_a_alone_is_judged_by_its_own_answers_on_its_own_clean_images():
    right = np.arange(10) < 6  # of the first 5 all, of all 10 six
    source = sources(
        record("none", "clean", None, 9, n=10, alone=6),
        record("grey_box", "fgsm", NINE, 9, n=10, before=9, alone=3),
        record("grey_box", "cw", None, 4, n=5, before=4, alone=2),
        selector_correct={"offline": right},
    )
    assert percents(cell(source, "adversarial", "clean")) == pytest.approx({"clean": 60.0})
    assert percents(cell(source, "pipeline", "clean")) == pytest.approx({"clean": 90.0})
    fgsm = percents(cell(source, "adversarial", "fgsm", NINE))
    assert fgsm == pytest.approx({"grey_box": 30.0, "grey_box pooled": (60 + 30) / 2})
    cw = percents(cell(source, "adversarial", "cw", NINE))
    assert cw == pytest.approx({"grey_box": 40.0, "grey_box pooled": (100 + 40) / 2})


def test_without_outcomes_of_enough_clean_images_nothing_is_pooled():
    cells = [record("grey_box", "fgsm", NINE, 50)]
    for known in ({}, {"offline": np.ones(99, bool)}, {"benign": np.ones(100, bool)}):
        source = sources(*cells, selector_correct=known)
        assert set(cell(source, "adversarial", "fgsm", NINE).readings) == {"grey_box"}


def test_cw_has_no_budget_and_is_compared_with_both_numbers():
    source = sources(record("grey_box", "cw", None, 88, before=20))
    for eps in (NINE, TWENTY_FIVE):  # 89.34 and 88.00
        found = cell(source, "pipeline", "cw", eps)
        assert found.readings["grey_box"].percent == pytest.approx(88.0)
        assert found.verdict == "grey_box"
    assert cell(source, "pipeline", "cw", 0.3, table=3).differences["grey_box"] < -4


def test_of_several_measurements_the_one_with_most_images_counts_and_then_the_last():
    def measured(*records):
        return cell(sources(*records), "pipeline", "pgd", NINE).readings["adaptive"].percent

    many, few = record("adaptive", "pgd", NINE, 300, n=400), record("adaptive", "pgd", NINE, 50)
    assert measured(many, few) == measured(few, many) == pytest.approx(75.0)
    steps = {"settings": {"steps": 40}}
    later = record("adaptive", "pgd", NINE, 20, **steps)
    assert measured(few, later) == pytest.approx(20.0)
    seeded = record("adaptive", "pgd", NINE, 33, seed=1)
    assert measured(few, seeded) == measured(seeded, few) == pytest.approx(50.0)
    wide, narrow = (
        record(WORST, "pgd", NINE, right, settings={"cells": ["a"] * size})
        for right, size in ((10, 5), (80, 2))
    )
    worst = cell(sources(wide, narrow), "pipeline", "pgd", NINE).readings[WORST]
    assert worst.percent == pytest.approx(10.0)


def test_the_cells_of_a_row_are_of_one_number_of_images():
    few = [record(threat, "pgd", NINE, right) for threat, right in (("adaptive", 5), (WORST, 4))]
    few.append(record("grey_box", "pgd", NINE, 80))
    many = [record(threat, "pgd", NINE, 340, n=400) for threat in ("grey_box", WORST)]
    for records in ([*few, *many], [*many, *few]):
        found = cell(sources(*records), "pipeline", "pgd", NINE).readings
        counts = {name: found[name].n for name in ("adaptive", "grey_box", WORST)}
        assert counts == {
            "adaptive": 100,
            WORST: 100,
            "grey_box": 100,
        }
        assert found[WORST].percent == pytest.approx(4.0)
        assert found["grey_box"].percent == pytest.approx(80.0)


def test_the_benign_row_is_the_benign_classifier_a_alone():
    source = sources(record("grey_box", "fgsm", NINE, 99, selector="benign", alone=62))
    found = cell(source, "benign", "fgsm", NINE)  # the paper prints 62.83
    assert found.readings["grey_box"].percent == pytest.approx(62.0)
    assert found.verdict == "grey_box"


def test_table_5_takes_two_rows_from_an_ablation():
    source = sources(
        autoencoder=[record("frozen_mask", "fgsm", TWENTY_FIVE, 68, selector="benign")],
        classifier_b=[record("grey_box", "fgsm", TWENTY_FIVE, 54, selector="target_classifier")],
    )
    one = cell(source, "autoencoder", "fgsm", TWENTY_FIVE, table=5)
    assert one.readings["frozen_mask"].percent == pytest.approx(68.0)
    assert one.verdict == "frozen_mask"  # 68.69
    assert cell(source, "classifier_b", "fgsm", TWENTY_FIVE, table=5).verdict == "grey_box"


def test_numbers_of_other_authors_stand_alone():
    for compared in tables.compare(sources(record("grey_box", "fgsm", NINE, 82))):
        if compared.printed.system is None:
            assert not compared.readings
            assert compared.verdict == ""


def test_a_table_that_is_not_compared_is_refused():
    with pytest.raises(InputError, match=r"table 4 is not one of those compared here; use 1, 2, "):
        tables.compare(sources(), (1, 4))


# --- what is missing ----------------------------------------------------------------------------


def said(source, *wanted):
    return tables.notes(source, tables.compare(source, wanted or tables.TABLES))


def whole(selectors=("benign", "offline"), budgets=(NINE, TWENTY_FIVE, 0.3), attacks=None):
    attacks = attacks or ("fgsm", "bim", "pgd", "cw")
    yield from (record("none", "clean", None, 90, n=200, selector=s) for s in selectors)
    for selector in selectors:
        for threat in THREATS:
            for attack in attacks:
                for eps in (None,) if attack == "cw" else budgets:
                    yield record(threat, attack, eps, 50, selector=selector)


def test_blank_cells_are_listed_with_the_command_that_measures_them():
    first = said(sources(), 1)
    assert first[-2:] == [
        "`python -m eval.robustness --run runs/r --attacks fgsm,bim,pgd --eps 9/255,25/255`",
        "`python -m eval.robustness --run runs/r --attacks cw`",
    ]
    lacking = [
        r for r in whole() if (r["threat"], r["attack"], r["eps"]) != ("adaptive", "bim", NINE)
    ]
    command = "python -m eval.robustness --run runs/r --attacks bim --eps 9/255 --count 200"
    assert said(sources(*lacking), 1)[-1] == f"`{command}`"
    few = whole(budgets=(NINE, TWENTY_FIVE))
    assert said(sources(*few), 3)[-1].endswith("--attacks fgsm --eps 0.3 --count 200`")


def test_a_whole_run_lacks_nothing():
    assert said(sources(*whole()), 1) == []


def test_a_run_without_an_adversarial_classifier_a_says_how_to_get_one():
    source = sources(*whole(("benign",)), adversarial=None)
    (sentence,) = said(source, 1)
    assert "no adversarially trained classifier-A" in sentence
    assert "python -m train.memory_defense --run NEW --config.selector.recipe offline" in sentence
    assert not cell(source, "pipeline", "clean").readings


def test_tables_of_another_dataset_name_it():
    (sentence,) = said(sources(*whole()), 2)
    assert "--dataset cifar10" in sentence
    assert len(said(sources(dataset="digits"), 1, 2)) == 2


def test_rows_that_no_run_has_name_the_ablation():
    source = sources(*whole())
    (sentence,) = said(source, 5)
    assert "python -m eval.ablation --run runs/ablation --dataset fashion_mnist" in sentence
    both = {name: [record("none", "clean", None, 1)] for name in ("autoencoder", "classifier_b")}
    assert len(said(sources(*whole(), **both), 5)) == 1  # attacked cells are still blank


# --- what is shown ------------------------------------------------------------------------------


def test_lines_show_our_number_and_by_how_much_it_exceeds_the_papers():
    source = sources(record("none", "clean", None, 92), record("grey_box", "pgd", NINE, 88))
    rows = table_report.table_rows(tables.compare(source, (1,)))
    at = {name: index for index, name in enumerate(table_report.HEADER)}
    assert {len(row) for row in rows} == {len(at)}
    (clean,) = [r for r in rows if r[:2] == ["Memory-Defense", "clean"]]
    assert (clean[at["eps"]], clean[at["paper %"]]) == ("-", "92.36")
    assert (clean[at["clean"]], clean[at["counted"]]) == ("92.0 (-0.4)", "clean")
    index = next(i for i, r in enumerate(rows) if r[:3] == ["Memory-Defense", "pgd", "9/255"])
    attacked, pooled = rows[index : index + 2]
    assert attacked[at["grey_box"]] == "88.0 (-2.0)"
    assert attacked[at["reproduced by"]] == "several: grey_box, grey_box pooled"
    assert (pooled[at["counted"]], pooled[at["grey_box"]]) == ("pooled", "89.0 (-1.0)")
    (other,) = [r for r in rows if r[:3] == ["PixelDefend", "pgd", "9/255"]]
    assert other[at["paper %"]] == "NA"
    assert not any(other[at["paper %"] + 1 :])


def test_text_is_shown_as_it_is():
    header, rows = ("a|b", "c"), [["[bold]x[/bold]", "1"], [":smile:", "22"]]
    text = as_text("a title", header, rows, width=60)
    for part in ("a title", "a|b", "[bold]x[/bold]", ":smile:", "22"):
        assert part in text
    assert as_markdown(header, rows).splitlines()[:3] == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| [bold]x[/bold] | 1 |",
    ]


@pytest.fixture
def run(tmp_path):
    """A run's folder with a few cells, and an ablation beside it."""
    folder, ablation = tmp_path / "run", tmp_path / "ablation"
    config = {"selector": {"recipe": "offline"}}
    content = {"kind": "memory_defense", "dataset": "fashion_mnist", "config": config}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"version": VERSION, "run": content}))
    clean = {"selector_correct": np.arange(100) < 95}
    append_record(folder, record("none", "clean", None, 92, alone=95), clean)
    append_record(folder, record("frozen_mask", "fgsm", TWENTY_FIVE, 90, alone=45))
    for name, right in (("memory_rows=0", 20), ("target_classifier", 54)):
        (ablation / name).mkdir(parents=True)
        threat = "frozen_mask" if "rows" in name else "grey_box"
        append_record(ablation / name, record(threat, "fgsm", TWENTY_FIVE, right))
    return folder


def test_the_program_writes_what_it_prints(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    program = importlib.import_module("eval.paper_tables").main
    arguments = ["--run", run, "--table", "1", "5", "--ablation", run.parent / "ablation"]
    tyro.cli(program, args=[str(a) for a in arguments])
    out = capsys.readouterr().out
    assert "Table 1, fashion_mnist" in out
    assert "Table 2" not in out
    assert str(run / "paper_tables.md") in out
    document = (run / "paper_tables.md").read_text()
    numbers = json.loads((run / "paper_tables.json").read_text())
    cells = {(c["table"], c["row"], c["attack"], c["eps"]): c["readings"] for c in numbers["cells"]}
    fgsm = cells[1, "Memory-Defense", "fgsm", TWENTY_FIVE]
    assert fgsm["frozen_mask"]["percent"] == pytest.approx(90.0)
    assert fgsm["frozen_mask"]["difference"] == pytest.approx(90 - 90.03)
    alone = cells[1, "ResNet-50 pgd", "fgsm", TWENTY_FIVE]
    assert alone["frozen_mask pooled"]["percent"] == pytest.approx((95 + 45) / 2)
    five = cells[5, "Autoencoder w/o Memory", "fgsm", TWENTY_FIVE]
    assert five["frozen_mask"]["percent"] == pytest.approx(20.0)
    assert cells[5, "Target Classifier", "fgsm", TWENTY_FIVE]["grey_box"]["percent"] == 54.0
    for text in (out, document):
        assert "90.0 (-0.0)" in text
        assert "54.0 (+0.4)" in text
        for sentence in numbers["notes"]:
            assert sentence in text


def test_the_program_refuses_what_is_no_run(tmp_path):
    program = importlib.import_module("eval.paper_tables").main
    with pytest.raises(InputError, match="holds no run"):
        tyro.cli(program, args=["--run", str(tmp_path)])
    (tmp_path / "run.json").write_text(json.dumps({"version": VERSION, "run": {"kind": "other"}}))
    with pytest.raises(InputError, match="holds no Memory Defense; give the folder of one"):
        tyro.cli(program, args=["--run", str(tmp_path)])
    run = {"kind": "memory_defense", "config": {"imported": {"in_loop": "0"}}}
    (tmp_path / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    with pytest.raises(InputError, match="does not say how its selectors were trained, as "):
        tyro.cli(program, args=["--run", str(tmp_path)])
