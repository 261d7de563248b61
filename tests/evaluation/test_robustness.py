"""Sweeps: what is crossed, what is counted, and that nothing is lost or measured twice."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest

from memdef_jax.attacks import FGSM, presets
from memdef_jax.attacks.state import Result
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import THREATS, WORST, SweepConfig, sweep
from memdef_jax.evaluation.records import RECORDS, read_outcomes, read_records
from memdef_jax.evaluation.robustness import SHOWN

LINF = ("fgsm", "bim", "pgd")
WINDOWS = (slice(0, 8), slice(5, 13))  # all 13 samples in whole batches of 8


def timeless(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def lines(folder):
    return (folder / RECORDS).read_text().splitlines()


def attacked(records):
    return [r for r in records if r["threat"] in THREATS]


def test_every_cell_is_measured_exactly_once(swept, config):
    cells = [(r["selector"], r["threat"], r["attack"], r["eps"]) for r in swept[1]]
    budgets = [(name, eps) for name in LINF for eps in config.eps] + [("cw", None)]
    everywhere = [*budgets, *(("all", eps) for eps in config.eps)]
    selectors = ("benign", "in_loop")
    expected = [(s, "none", "clean", None) for s in selectors]
    expected += [(s, t, *b) for s, t, b in itertools.product(selectors, THREATS, budgets)]
    expected += [(s, WORST, *b) for s, b in itertools.product(selectors, everywhere)]
    assert sorted(map(str, cells)) == sorted(map(str, expected))
    assert len(lines(swept[0])) == len(cells)


def test_the_file_holds_what_was_returned(swept):
    assert list(read_records(swept[0]).values()) == json.loads(json.dumps(swept[1]))


def test_records_name_themselves(swept, digits):
    for record in swept[1]:
        assert record["dataset"] == "digits"
        assert record["fingerprint"] == digits.info.fingerprint
        assert record["defense"] == "memory_defense"
        assert record["norm"] == {"clean": None, "cw": "l2"}.get(record["attack"], "linf")
        assert record["n"] == (4 if record["attack"] == "cw" else 13)
        assert record["seed"] == 0
        assert isinstance(record["seconds"], float)
        for name in ("clean_accuracy", "robust_accuracy", "selector_accuracy"):
            assert 0.0 <= record[name] <= 1.0
    steps = {r["attack"]: r["settings"].get("steps") for r in attacked(swept[1])}
    assert steps == {"fgsm": None, "bim": 10, "pgd": 40, "cw": 10}


def test_the_numbers_are_those_of_the_stored_outcomes(swept):
    folder, records = swept
    clean = {r["selector"]: read_outcomes(folder, r) for r in records if r["threat"] == "none"}
    for record in [r for r in records if r["threat"] != WORST]:
        stored, n = read_outcomes(folder, record), record["n"]
        right = int(stored["correct"].sum())
        assert len(stored["correct"]) == len(stored["slot"]) == n
        assert record["robust_accuracy"] == right / n
        interval = binomtest(right, n).proportion_ci(method="wilson")
        assert record["interval"] == pytest.approx(list(interval), abs=1e-9)
        assert record["clean_accuracy"] == clean[record["selector"]]["correct"][:n].mean()
        assert record["selector_accuracy"] == stored["selector_correct"].mean()
        assert record["agreement"] == (stored["answer"] == stored["slot"]).mean()
        assert record["success_rate"] == stored["success"].mean()
        sizes = stored["norm"][stored["success"] & (stored["norm"] > 0)]
        assert record["median_norm"] == (np.median(sizes) if sizes.size else None)
        assert len(stored["shown"]) == min(SHOWN, n)


def test_pipeline_and_selector_are_told_apart(cell):
    for selector in ("benign", "in_loop"):
        clean = cell(selector=selector, threat="none")
        assert clean["robust_accuracy"] < clean["selector_accuracy"]  # slot 3 is called 5


def test_clean_cells_are_the_defense_on_the_test_images(pair, shown, cell, judge):
    x, y = shown
    for name, defense in pair.items():
        record = cell(selector=name, threat="none")
        answer, slot = judge(defense, x)
        assert record["robust_accuracy"] == record["clean_accuracy"]
        assert record["robust_accuracy"] == pytest.approx((answer == y).mean())
        assert record["selector_accuracy"] == pytest.approx((slot == y).mean())


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize(
    ("threat", "surface"), [("grey_box", "selector"), ("frozen_mask_true", "frozen_mask_true")]
)
def test_attacked_cells_are_the_defense_on_images_crafted_by_hand(
    swept, pair, shown, cell, judge, attack, threat, surface
):
    x, y = shown
    eps, defense = 9 / 255, pair["in_loop"]
    keys = jax.random.split(jax.random.key(0), len(x))
    stored = read_outcomes(
        swept[0], cell(selector="in_loop", threat=threat, attack=attack, eps=eps)
    )
    whole = dataclasses.replace(presets.memory_defense(attack, eps), early_stop=False)
    for window in WINDOWS:
        target = defense.surfaces(x[window], y[window])[surface]
        images = whole(target, x[window], y[window], key=keys[window])
        assert float(jnp.abs(images - x[window]).max()) <= eps + 1e-6
        answer, slot = judge(defense, images)
        np.testing.assert_array_equal(answer, stored["answer"][window])
        np.testing.assert_array_equal(answer == y[window], stored["correct"][window])
        np.testing.assert_array_equal(slot == y[window], stored["selector_correct"][window])


def test_the_images_kept_for_pictures_are_judged_as_stored_and_within_the_budget(
    swept, pair, shown, judge
):
    x, y = shown
    for record in attacked(swept[1]):
        stored = read_outcomes(swept[0], record)
        images = stored["shown"]
        answer, slot = judge(pair[record["selector"]], images)
        np.testing.assert_array_equal(answer, stored["answer"][:SHOWN])
        np.testing.assert_array_equal(slot, stored["slot"][:SHOWN])
        np.testing.assert_array_equal(answer == y[: len(images)], stored["correct"][:SHOWN])
        delta = np.abs(images - np.asarray(x)[: len(images)])
        assert delta.max() <= (record["eps"] or 1.0) + 1e-6
        if record["attack"] == "cw":
            length = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
            np.testing.assert_allclose(stored["norm"], length, atol=1e-5)


def test_the_batch_size_changes_nothing(swept, pair, digits, config, tmp_path, cell):
    four = dataclasses.replace(
        config, attacks=("fgsm",), threats=("grey_box",), eps=(2 / 255,), batch_size=4
    )
    for record in attacked(sweep(pair, digits, four, tmp_path)):
        wanted = {k: record[k] for k in ("selector", "threat", "attack", "eps")}
        ours, theirs = (
            read_outcomes(f, r) for f, r in ((tmp_path, record), (swept[0], cell(**wanted)))
        )
        for name in ("correct", "selector_correct", "answer", "slot", "success"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_allclose(ours["norm"], theirs["norm"], atol=1e-6)


def test_the_worst_case_is_below_every_cell_image_by_image(swept):
    folder, records = swept
    for worst in [r for r in records if r["threat"] == WORST]:
        group = [
            r
            for r in attacked(records)
            if (r["selector"], r["eps"]) == (worst["selector"], worst["eps"])
            and worst["attack"] in (r["attack"], "all")
        ]
        assert worst["over"] == sorted(f"{r['threat']}/{r['attack']}" for r in group)
        assert len(group) == len(THREATS) * (3 if worst["attack"] == "all" else 1)
        stored = [read_outcomes(folder, r) for r in group]
        both = np.all([s["correct_any"] for s in stored], axis=0)
        assert worst["robust_accuracy"] == both.mean()
        for s, r in zip(stored, group):
            assert not (both & ~s["correct"]).any()
            assert worst["robust_accuracy"] <= r["robust_accuracy"]
            assert worst["selector_accuracy"] <= r["selector_accuracy"]


def test_transfer_to_the_benign_selector_is_grey_box(swept, cell):
    for attack, eps in [*itertools.product(LINF, (2 / 255, 9 / 255)), ("cw", None)]:
        one, other = (
            cell(selector="benign", threat=threat, attack=attack, eps=eps)
            for threat in ("transfer", "grey_box")
        )
        ours, theirs = (read_outcomes(swept[0], record) for record in (one, other))
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_transfer_to_another_selector_is_crafted_on_the_benign_one(swept, cell):
    wanted = {"threat": "transfer", "attack": "pgd", "eps": 9 / 255}
    one, other = (
        read_outcomes(swept[0], cell(selector=s, **wanted)) for s in ("benign", "in_loop")
    )
    np.testing.assert_array_equal(one["shown"], other["shown"])
    assert (one["answer"] != other["answer"]).any()


def test_adaptive_reports_the_stronger_of_its_two_ways(swept):
    adaptive = [r for r in attacked(swept[1]) if r["threat"] == "adaptive"]
    assert len(adaptive) == 14
    for record in adaptive:
        assert set(record["variants"]) == {"soft_mask", "straight_through"}
        assert record["robust_accuracy"] == min(record["variants"].values())
        assert record["variants"][record["variant"]] == record["robust_accuracy"]


def test_a_frozen_mask_over_templates_hides_what_grey_box_shows(cell):
    for selector in ("benign", "in_loop"):
        for attack in LINF:
            wanted = {"selector": selector, "attack": attack}
            for threat in ("frozen_mask", "frozen_mask_true"):
                frozen = cell(threat=threat, eps=2 / 255, **wanted)
                assert frozen["robust_accuracy"] == frozen["clean_accuracy"]
            for threat in ("grey_box", "adaptive"):
                seen = cell(threat=threat, eps=9 / 255, **wanted)
                assert seen["robust_accuracy"] < 0.5 * seen["clean_accuracy"]


def test_a_failed_cw_search_returns_the_clean_image(swept, cell, shown):
    # With the mask frozen to the slot, no image changes the answer.
    record = cell(selector="benign", threat="frozen_mask", attack="cw")
    stored = read_outcomes(swept[0], record)
    failed = ~stored["success"]
    assert failed.any()
    np.testing.assert_array_equal(stored["shown"][failed], np.asarray(shown[0])[:4][failed])
    np.testing.assert_array_equal(stored["norm"][failed], 0.0)
    assert record["robust_accuracy"] == record["clean_accuracy"]
    hit = cell(selector="benign", threat="grey_box", attack="cw")
    assert hit["success_rate"] == 1.0
    assert 0.0 < hit["median_norm"] < math.sqrt(28 * 28)


# --- going on -----------------------------------------------------------------------------------


@pytest.fixture
def small(config):
    return dataclasses.replace(config, attacks=("fgsm",), threats=("grey_box", "frozen_mask"))


@pytest.fixture(scope="module")
def uninterrupted(pair, digits, config, tmp_path_factory):
    small = dataclasses.replace(config, attacks=("fgsm",), threats=("grey_box", "frozen_mask"))
    folder = tmp_path_factory.mktemp("uninterrupted")
    return sweep(pair, digits, small, folder), lines(folder)


@pytest.mark.parametrize("moment", range(1, 11))
def test_a_sweep_that_died_goes_on_as_if_it_had_not(
    uninterrupted, pair, digits, small, tmp_path, notes, moment
):
    with pytest.raises(ConnectionResetError):
        sweep(pair, digits, small, tmp_path, notes(fail_at=moment))
    assert len(lines(tmp_path)) == moment
    again = notes()
    records = sweep(pair, digits, small, tmp_path, again)
    assert again.started == [("evaluation", moment, 10, 1)]
    assert again.updates == list(range(moment + 1, 11))
    assert timeless(records) == timeless(uninterrupted[0])
    stored = [json.loads(line) for line in lines(tmp_path)]
    assert timeless(stored) == timeless(json.loads(line) for line in uninterrupted[1])


def test_a_finished_sweep_measures_and_writes_nothing(pair, digits, small, tmp_path, notes):
    first = sweep(pair, digits, small, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = notes()
    assert sweep(pair, digits, small, tmp_path, again) == first
    assert again.started == [("evaluation", 10, 10, 1)]
    assert again.updates == []
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_cell_whose_outcomes_are_damaged_is_measured_again(
    uninterrupted, pair, digits, small, tmp_path, notes
):
    sweep(pair, digits, small, tmp_path)
    files = sorted((tmp_path / "cells").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    again = notes()
    records = sweep(pair, digits, small, tmp_path, again)
    assert again.updates == [9, 10]
    assert timeless(records) == timeless(uninterrupted[0])
    assert len(lines(tmp_path)) == len(uninterrupted[1]) + 2


def test_what_was_asked_twice_is_measured_once(uninterrupted, pair, digits, small, tmp_path):
    double = dataclasses.replace(
        small, attacks=small.attacks * 2, threats=small.threats * 2, eps=small.eps * 2
    )
    assert timeless(sweep(pair, digits, double, tmp_path)) == timeless(uninterrupted[0])


def test_more_threats_are_added_and_a_narrower_worst_case_replaces_no_wider_one(
    pair, digits, small, tmp_path, notes
):
    wide = sweep(pair, digits, small, tmp_path)
    again = notes()
    narrow = sweep(
        pair, digits, dataclasses.replace(small, threats=("frozen_mask",)), tmp_path, again
    )
    assert again.updates == []
    found = read_records(tmp_path).values()
    worst = [r for r in wide + narrow if r["threat"] == WORST]
    assert [r for r in found if r["threat"] == WORST] == worst
    assert {len(r["over"]) for r in worst} == {1, 2}


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 12}])
def test_other_settings_are_other_cells(uninterrupted, pair, digits, small, tmp_path, change):
    sweep(pair, digits, small, tmp_path)
    sweep(pair, digits, dataclasses.replace(small, **change), tmp_path)
    assert len(read_records(tmp_path)) == 2 * len(uninterrupted[0])


def test_the_first_images_fare_alike_whatever_the_count(pair, digits, config, tmp_path, swept):
    few = dataclasses.replace(
        config, attacks=("pgd",), threats=("grey_box",), eps=(2 / 255,), count=8
    )
    for record in attacked(sweep(pair, digits, few, tmp_path)):
        same = [
            r
            for r in attacked(swept[1])
            if all(r[k] == record[k] for k in ("selector", "threat", "attack", "eps"))
        ]
        ours, theirs = read_outcomes(tmp_path, record), read_outcomes(swept[0], same[0])
        np.testing.assert_array_equal(ours["answer"], theirs["answer"][:8])
        np.testing.assert_array_equal(ours["shown"], theirs["shown"])


# --- refusals -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cheater:
    """An attack that leaves its budget, or the pixels' range, or gives NaN."""

    eps: float
    how: str
    norm: str = "linf"

    def check(self):
        pass

    def run(self, fn, x, y, *, key):
        images = {
            "budget": x + jnp.where(x < 0.5, 2 * self.eps, -2 * self.eps),
            "range": x - self.eps,
            "nan": x.at[0, 0, 0, 0].set(jnp.nan),
        }[self.how]
        nothing = jnp.zeros(len(x))
        return Result(images, nothing > 0, *[nothing] * 5)


@pytest.mark.parametrize("how", ["budget", "range", "nan"])
def test_images_crafted_outside_the_threat_are_refused(
    monkeypatch, pair, digits, small, tmp_path, how
):
    monkeypatch.setattr(SweepConfig, "attack", lambda self, name, eps: Cheater(eps, how))
    with pytest.raises(InputError, match=r"Cheater left its budget.*its result is not used"):
        sweep(pair, digits, small, tmp_path)
    assert all(json.loads(line)["threat"] == "none" for line in lines(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attacks": ("fgsm", "deepfool")}, "attack 'deepfool' is unknown; use some of fgsm, "),
        ({"attacks": ()}, "no attack was given; use some of fgsm, bim, pgd, cw"),
        ({"threats": ("grey_box", "white_box")}, "'white_box' is unknown; use all or some of tr"),
        ({"threats": ("all", "grey_box")}, "threat model 'all' is unknown; use all or some of"),
        ({"threats": ()}, "no threat model was given"),
        ({"threats": (WORST,)}, "no threat model was given"),
        ({"eps": (9 / 255, -0.1)}, r"eps -0\.1 is outside \[0, 1\]"),
        ({"eps": (float("nan"),)}, r"eps nan is outside \[0, 1\]"),
        ({"eps": (9.0,)}, r"eps 9 is outside \[0, 1\].*for example 8/255"),
        ({"eps": ()}, "no eps was given"),
        ({"count": 0}, "count 0 is below 1"),
        ({"count": -3}, "count -3 is below 1"),
        ({"cw_count": 0}, "cw_count 0 is below 1"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"cw_steps": 0}, "cw_steps 0 is below 1"),
        ({"cw_search_steps": -1}, "cw_search_steps -1 is below 1"),
        ({"cw_learning_rate": float("nan")}, "learning_rate nan cannot be used"),
        ({"cw_learning_rate": -1.0}, "learning_rate -1 cannot be used"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(change, sentence):
    with pytest.raises(InputError, match=sentence):
        SweepConfig(**change)


def test_no_budget_is_needed_for_cw_alone():
    assert SweepConfig(attacks=("cw",), eps=()).eps == ()


def refuse(match, defenses, dataset, config, folder):
    with pytest.raises(InputError, match=match):
        sweep(defenses, dataset, config, folder)
    assert list(folder.iterdir()) == []


def test_more_images_than_there_are_are_refused(pair, digits, config, tmp_path):
    many = dataclasses.replace(config, count=361)
    refuse("361 samples asked of a split of 360; ask 1 to 360", pair, digits, many, tmp_path)


def test_transfer_without_the_benign_defense_is_refused(pair, digits, config, tmp_path):
    alone = {"in_loop": pair["in_loop"]}
    refuse("'transfer' needs the run's benign defense", alone, digits, config, tmp_path)


def test_a_defense_of_other_images_or_classes_is_refused(pair, digits, config, tmp_path):
    benign = pair["benign"]
    spec = dataclasses.replace(benign.spec, classes=5)
    other = {"benign": MemoryDefense(spec, benign.variables)}
    refuse("the benign defense takes images .* of 5 classes", other, digits, config, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    pair, digits, config, tmp_path, notes
):
    (tmp_path / "file").write_text("")
    reporter = notes()
    with pytest.raises(InputError, match="cannot be written"):
        sweep(pair, digits, config, tmp_path / "file" / "run", reporter)
    assert reporter.started == []


def test_fgsm_is_not_stopped_early_where_the_attacker_cannot_see_the_answer(cell, swept, shown):
    """Images that the selector has wrong are perturbed all the same: the pipeline may be right."""
    record = cell(selector="benign", threat="grey_box", attack="fgsm", eps=2 / 255)
    moved = np.abs(read_outcomes(swept[0], record)["shown"] - np.asarray(shown[0])[:8])
    assert (moved.max(axis=(1, 2, 3)) > 0.9 * 2 / 255).all()
    assert FGSM(eps=0.1).early_stop
