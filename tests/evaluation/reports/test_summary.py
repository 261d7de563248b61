"""What the page is made of, from handmade records and outcomes."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from memdef_jax.evaluation.reports.summary import confusion, curves, headline, strongest, summarise
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.threats import WORST


def record(**fields):
    base = {
        "dataset": "digits",
        "fingerprint": "f",
        "defense": "memory_defense",
        "selector": "in_loop",
        "threat": "adaptive",
        "attack": "pgd",
        "norm": "linf",
        "eps": 0.1,
        "n": 4,
        "seed": 0,
        "settings": {},
        "robust_accuracy": 0.5,
        "interval": [0.15, 0.85],
        "failed": None,
    }
    return {**base, **fields}


@pytest.fixture
def stored(tmp_path):
    """A clean, an attacked, a minimum-norm and a worst-case cell, with outcomes."""
    right = np.array([True, True, False, True])
    found = [
        (record(attack="clean", threat="none", eps=None, norm=None, robust_accuracy=0.75), right),
        (record(), np.array([True, False, False, True])),
        (record(attack="fmn", eps=None), np.array([False, False, False, True])),
    ]
    written = []
    for cell, correct in found:
        outcomes = {
            "correct": correct,
            "norm": np.array([0.2, 0.05, 0.0, 0.0]),
            "slot": np.array([1, 0, 2, 1]),
            "answer": np.array([1, 0, 0, 1]),
        }
        written.append(records.append_record(tmp_path, cell, outcomes))
    worst = record(threat=WORST, attack="all", robust_accuracy=0.25, settings={"cells": []})
    return tmp_path, [*written, records.append_record(tmp_path, worst)]


def test_a_minimum_norm_attack_gives_the_share_of_images_that_need_more_than_eps(stored):
    curve = curves(*stored)[0]
    assert curve["name"] == "in_loop, adaptive, fmn"
    at = dict(zip(np.round(curve["eps"], 3), curve["robust"]))
    # One image is wrong from the start, one cannot be fooled, two fall at 0.05 and 0.2.
    assert (at[0.0], at[0.04], at[0.06], at[0.19], at[0.21]) == (0.75, 0.75, 0.5, 0.5, 0.25)
    assert curve["robust"] == sorted(curve["robust"], reverse=True)
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    assert (curve["low"][0], curve["high"][0]) == pytest.approx(tuple(interval))


def test_the_worst_case_starts_at_clean_accuracy(stored):
    curve = curves(*stored)[-1]
    assert (curve["threat"], curve["eps"], curve["robust"]) == (WORST, [0.0, 0.1], [0.75, 0.25])


def test_confusion_counts_chosen_slots_by_answers(stored):
    counts = np.array(confusion(*stored, classes=3)["in_loop"]["slots"])
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 2, 0], [1, 0, 0]])


def test_the_strongest_cell_is_that_of_the_largest_budget_which_leaves_least():
    found = [
        record(eps=0.1, robust_accuracy=0.1),
        record(eps=0.2, robust_accuracy=0.4),
        record(eps=0.2, robust_accuracy=0.3, attack="fgsm"),
        record(eps=None, robust_accuracy=0.0, attack="cw"),
    ]
    assert strongest(found, "in_loop", "adaptive")["attack"] == "fgsm"
    assert strongest(found, "in_loop", "grey_box") is None


def test_the_headline_quotes_the_worst_case_and_attacks_that_failed(stored):
    found = stored[1]
    assert headline(found) == [
        "in_loop: 75.0% clean, 25.0% at eps 0.1 (95% interval 15.0 to 85.0, 4 images)."
    ]
    failed = [*found, record(failed="the attack failed")]
    assert headline(failed)[-1].startswith("In 1 of the cells the adaptive attack found less")


def test_the_summary_is_json_and_leaves_out_what_is_not_there(stored):
    folder, found = stored
    summary = summarise(folder, found, ["a", "b", "c"], heading="H", checks={}, latent=None)
    assert json.loads(json.dumps(summary)) == summary
    assert "checks" not in summary
    assert "latent" not in summary
    assert summary["heading"] == "H"
    assert summary["records"] == found
