"""Sweeps: what is crossed, what is counted, and that nothing is lost or measured twice."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest

from memdef_jax.attacks import FGSM, bpda, compose, presets
from memdef_jax.attacks.state import Result
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense, PlainDefense
from memdef_jax.evaluation import THREATS, WORST, SweepConfig, sweep
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.laboratory import SHOWN
from memdef_jax.evaluation.sweeps.records import RECORDS, read_outcomes, read_records
from memdef_jax.evaluation.sweeps.robustness import joined

LINF = ("fgsm", "pgd")
COUNT, BATCH = 13, 8
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
    assert steps == {"fgsm": None, "pgd": 40, "cw": 10}


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
    whole = dataclasses.replace(presets.named(attack, eps), early_stop=False)
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
        assert len(group) == len(THREATS) * (len(LINF) if worst["attack"] == "all" else 1)
        stored = [read_outcomes(folder, r) for r in group]
        both = np.all([s["correct"] for s in stored], axis=0)
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


def test_adaptive_counts_each_image_by_whatever_of_its_ways_works_on_it(swept, cell):
    adaptive = [r for r in attacked(swept[1]) if r["threat"] == "adaptive"]
    assert len(adaptive) == 10
    for record in adaptive:
        assert list(record["variants"]) == [
            *("joint", "straight_through", "soft_mask", "requeried"),
            *("selector", "frozen_mask"),
        ]
        assert record["variant"] == min(record["variants"], key=record["variants"].get)
        assert record["robust_accuracy"] <= record["own_accuracy"]
        assert record["own_accuracy"] <= min(list(record["variants"].values())[:4])
        wanted = {k: record[k] for k in ("selector", "attack", "eps")}
        here = read_outcomes(swept[0], record)["correct"]
        for threat, surface in (("grey_box", "selector"), ("frozen_mask", "frozen_mask")):
            other = cell(threat=threat, **wanted)
            assert record["variants"][surface] == other["robust_accuracy"]
            assert not (here & ~read_outcomes(swept[0], other)["correct"]).any()
        weaker = [record["variants"][name] for name in ("selector", "frozen_mask")]
        assert (record["failed"] is not None) == (min(weaker) < record["own_accuracy"])


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


def test_another_count_gives_other_cells(uninterrupted, pair, digits, small, tmp_path):
    sweep(pair, digits, small, tmp_path)
    sweep(pair, digits, dataclasses.replace(small, count=12), tmp_path)
    assert len(read_records(tmp_path)) == 2 * len(uninterrupted[0])


def test_seeds_are_cells_of_random_attacks_and_the_worst_case_is_over_all(pair, digits, tmp_path):
    config = SweepConfig(
        attacks=("fgsm", "noise"),
        threats=("grey_box",),
        eps=(9 / 255,),
        count=COUNT,
        batch_size=BATCH,
        seeds=(0, 1),
    )
    found = sweep({"benign": pair["benign"]}, digits, config, tmp_path)
    assert [(r["attack"], r["seed"]) for r in attacked(found)] == [
        ("fgsm", 0),
        ("noise", 0),
        ("noise", 1),
    ]
    stored = [read_outcomes(tmp_path, r) for r in attacked(found)]
    assert (stored[1]["shown"] != stored[2]["shown"]).any()
    worst = {r["attack"]: r["robust_accuracy"] for r in found if r["threat"] == WORST}
    assert worst["noise"] == (stored[1]["correct"] & stored[2]["correct"]).mean()
    assert worst["all"] == np.all([s["correct"] for s in stored], axis=0).mean()


# --- any model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear(digits):
    """A linear model of the digits, as parameters and as a function of its own."""
    x = digits.train.images[:400].reshape(400, -1) / 255
    weights = np.linalg.lstsq(x, np.eye(10)[digits.train.labels[:400]], rcond=1e-2)[0]
    return jax.tree_util.Partial(
        lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights, jnp.float32)
    )


def test_a_function_of_ones_own_is_swept_where_gradients_are_masked_only_by_its_surrogate(
    linear, digits, tmp_path
):
    # Rounding logits leaves decisions (nearly) as they are, and no gradient.
    masked = compose(linear, jax.tree_util.Partial(lambda z: jnp.round(100 * z) / 100))
    config = SweepConfig(
        attacks=("pgd",), eps=(25 / 255,), count=COUNT, batch_size=BATCH, threats=("all",)
    )
    naive = {"mine": PlainDefense.of(masked, (28, 28, 1))}
    better = {
        "mine": PlainDefense.of(
            masked, (28, 28, 1), surrogate=bpda(masked, linear), undefended=linear
        )
    }
    found = attacked(sweep(naive, digits, config, tmp_path / "naive"))
    assert [(r["threat"], r["defense"], *r["variants"]) for r in found] == [
        ("adaptive", "plain", "deployed")
    ]
    broken = attacked(sweep(better, digits, config, tmp_path / "better"))
    assert [r["threat"] for r in broken] == ["grey_box", "adaptive"]
    assert list(broken[1]["variants"]) == ["surrogate", "deployed", "selector"]
    assert broken[1]["variants"]["deployed"] == found[0]["robust_accuracy"]
    assert broken[1]["robust_accuracy"] < 0.5 * found[0]["robust_accuracy"]


def test_a_threat_that_a_defense_offers_no_surface_for_is_refused(linear, digits, tmp_path):
    config = SweepConfig(attacks=("fgsm",), threats=("frozen_mask",), count=COUNT)
    mine = {"mine": PlainDefense.of(linear, (28, 28, 1))}
    refuse(
        "mine defense offers no surface of threat model 'frozen_mask'",
        mine,
        digits,
        config,
        tmp_path,
    )


def test_a_plain_classifier_is_attacked_once_and_only_where_it_can_be(linear, digits, tmp_path):
    one = PlainDefense.of(linear, (28, 28, 1))
    same = PlainDefense(one.spec, one.model, None, one.model)
    config = SweepConfig(
        attacks=("fgsm",),
        eps=(9 / 255,),
        threats=("transfer", "grey_box", "frozen_mask", "adaptive"),
        where_offered=True,
        count=COUNT,
        batch_size=BATCH,
    )
    found = attacked(sweep({"mine": same}, digits, config, tmp_path))
    assert [(r["threat"], list(r["variants"])) for r in found] == [
        ("grey_box", ["selector"]),
        ("adaptive", ["deployed"]),
    ]
    assert found[0]["robust_accuracy"] == found[1]["robust_accuracy"]


def test_functions_that_do_not_fit_each_other_are_refused(linear):
    two = jax.tree_util.Partial(lambda x: x.reshape(len(x), -1)[:, :2])
    with pytest.raises(InputError, match="surrogate gives 2 classes and the model 10"):
        PlainDefense.of(linear, (28, 28, 1), surrogate=two)


@pytest.mark.exhaustive
def test_devices_share_the_work_and_change_nothing(tmp_path):
    """In processes of their own: the number of devices is fixed when JAX starts."""
    code = (
        "import sys, pathlib; from memdef_jax import data; from memdef_jax.evaluation import *;"
        "from tests.evaluation import handmade; digits = data.load('digits');"
        "config = SweepConfig(attacks=('fgsm',), eps=(9/255,), count=13, batch_size=8,"
        " threats=('grey_box', 'frozen_mask'));"
        "sweep({'benign': handmade.make(digits)}, digits, config, pathlib.Path(sys.argv[1]))"
    )
    found = []
    for devices in (1, 3):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"}
        folder = tmp_path / str(devices)
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        found.append(list(read_records(folder).values()))
    one, three = ([{k: r[k] for k in ("threat", "attack", "n")} for r in f] for f in found)
    assert one == three
    for a, b in zip(*found):
        assert a["robust_accuracy"] == pytest.approx(b["robust_accuracy"], abs=1.1 / 13)


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


# --- several sweeps of one folder ---------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(pair, digits, config, tmp_path_factory):
    """(folder, records of a first sweep, records of a second one with another attack)."""
    folder = tmp_path_factory.mktemp("twice")
    one, other = (
        dataclasses.replace(config, attacks=(attack,), threats=(threat,), eps=(9 / 255,))
        for attack, threat in (("fgsm", "frozen_mask"), ("pgd", "grey_box"))
    )
    return folder, sweep(pair, digits, one, folder), sweep(pair, digits, other, folder)


def test_sweeps_of_the_same_images_are_joined(twice):
    folder, first, second = twice
    both = joined(folder, second)
    assert attacked(both) == [*attacked(second), *attacked(first)[::-1]]
    assert [r for r in both if r["threat"] == "none"] == second[:2]
    for selector in ("benign", "in_loop"):
        worst = next(
            r for r in both if (r["attack"], r["selector"], r["threat"]) == ("all", selector, WORST)
        )
        assert worst["over"] == ["frozen_mask/fgsm", "grey_box/pgd"]
        cells = [r for r in attacked(both) if r["selector"] == selector]
        correct = np.all([read_outcomes(folder, r)["correct"] for r in cells], axis=0)
        assert worst["robust_accuracy"] == correct.mean()
        assert read_records(folder)[records.cell_id(worst)] == worst
    assert sorted(map(str, joined(folder, first))) == sorted(map(str, both))
    written = lines(folder)
    joined(folder, second)
    assert lines(folder) == written


def test_other_images_and_the_same_cell_with_other_settings_are_not_joined(
    pair, digits, config, tmp_path
):
    cw = dataclasses.replace(config, attacks=("cw",), threats=("grey_box",), eps=())
    sweep(pair, digits, cw, tmp_path)
    fewer = dataclasses.replace(cw, attacks=("fgsm",), eps=(9 / 255,), count=12)
    assert {
        r["attack"] for r in attacked(joined(tmp_path, sweep(pair, digits, fewer, tmp_path)))
    } == {
        "fgsm",
        "cw",
    }
    more = sweep(pair, digits, dataclasses.replace(cw, cw_steps=11), tmp_path)
    assert joined(tmp_path, more) == more


def test_a_sweep_in_l2_stays_out_of_the_worst_case_in_linf(linear, digits, tmp_path):
    mine = {"mine": PlainDefense.of(linear, (28, 28, 1))}
    linf = SweepConfig(attacks=("noise",), eps=(1.0,), count=8, batch_size=8, threats=("adaptive",))
    l2 = dataclasses.replace(linf, attacks=("noise", "fmn"), norm="l2", eps=(1.0, 3.0))
    first, second = (sweep(mine, digits, config, tmp_path) for config in (linf, l2))
    assert [(r["norm"], r["eps"]) for r in attacked(second)] == [
        *(("l2", 1.0), ("l2", 3.0), ("l2", None))
    ]
    for record in attacked(second)[:2]:
        lengths = read_outcomes(tmp_path, record)["norm"]
        assert np.all(lengths <= record["eps"] * 1.0001)
        assert lengths.max() > 0.5 * record["eps"]
    expected = (
        ({("linf", 1.0)}, ["adaptive/noise"]),
        ({("l2", 1.0), ("l2", 3.0)}, ["adaptive/fmn", "adaptive/noise"]),
    )
    for found, (budgets, attacks) in zip((first, second), expected):
        shown = joined(tmp_path, found)
        assert {(r["norm"], r["eps"]) for r in shown if r["eps"] is not None} == budgets
        (over,) = (
            r["over"] for r in shown if (r["attack"], r["eps"], r["threat"]) == ("all", 1.0, WORST)
        )
        assert over == attacks


# --- refusals -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cheater:
    """An attack that leaves its budget, or the pixels' range, or gives NaN."""

    eps: float
    how: str
    norm: str = "linf"
    random: bool = False

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


@pytest.mark.parametrize(
    ("how", "norm"), [("budget", "linf"), ("range", "linf"), ("nan", "linf"), ("budget", "l2")]
)
def test_images_crafted_outside_the_threat_are_refused(
    monkeypatch, pair, digits, small, tmp_path, how, norm
):
    monkeypatch.setattr(SweepConfig, "attack", lambda self, name, eps: Cheater(eps, how, norm))
    with pytest.raises(InputError, match=r"Cheater left its budget.*its result is not used"):
        sweep(pair, digits, small, tmp_path)
    assert all(json.loads(line)["threat"] == "none" for line in lines(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": ()}, r"seeds \(\) cannot be used"),
        ({"seeds": (0, -1)}, r"seeds \(0, -1\) cannot be used"),
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
        ({"norm": "l1"}, "norm 'l1' is unknown; choose one of linf, l2"),
        ({"norm": "l2"}, "attack 'fgsm' has no norm 'l2' here; in L2 use cw, apgd"),
        ({"norm": "l2", "attacks": ("square",), "eps": (-1.0,)}, "eps -1"),
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


def test_attacks_have_the_norm_of_the_sweep():
    config = SweepConfig(attacks=presets.L2, norm="l2", eps=(1.5,))
    assert {attack.norm for _, _, attack in config.budgeted()} == {"l2"}
    assert SweepConfig(attacks=("fmn",)).attack("fmn", None).norm == "linf"


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
    config = dataclasses.replace(config, threats=("transfer",))
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
