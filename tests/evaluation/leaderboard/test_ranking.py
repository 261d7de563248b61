"""The order of the rows, seeds together, and the comparison with the best."""

import pathlib

import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation import wilson_interval
from memdef_jax.evaluation.leaderboard.content import describe, headline
from memdef_jax.evaluation.leaderboard.entries import Budget, Entry, Run
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.leaderboard.ranking import rank
from memdef_jax.evaluation.leaderboard.significance import mcnemar

N = 40
PROTOCOL = Protocol(count=N)


def first(right):
    """The first so many of the images."""
    return np.arange(N) < right


def entry(name, linf, l2=0, clean=N, seed=0, missing=(), selector="vae", **config):
    description = {
        "kind": "defense_vae",
        "dataset": "mnist",
        "fingerprint": config.pop("fingerprint", "f"),
        "config": {"seed": seed, **config},
        "defenses": ["vae", "rec"],
    }
    images = {"linf": linf, "l2": l2}
    budgets = {
        norm: Budget(first(right) if np.isscalar(right) else right, {"pgd": 0.5}, 1, missing)
        for norm, right in images.items()
    }
    return Entry(Run(name, pathlib.Path(name), description), selector, first(clean), budgets)


def names(rows):
    return [row.entries[0].run.name for row in rows]


def test_rows_are_in_the_order_of_the_linf_worst_case_and_then_of_l2():
    entries = [entry("a", 10), entry("b", 30), entry("c", 20, 5), entry("d", 20, 9, 30)]
    assert names(rank(entries, PROTOCOL)) == ["b", "d", "c", "a"]


def test_what_was_not_measured_in_full_comes_last_and_is_not_compared():
    rows = rank([entry("a", 39, missing=("autoattack",)), entry("b", 30), entry("c", 2)], PROTOCOL)
    assert names(rows) == ["b", "c", "a"]
    assert [row.complete for row in rows] == [True, True, False]
    assert [row.beside is not None for row in rows] == [False, True, False]


def test_one_defense_has_an_interval_and_several_seeds_a_deviation():
    group = [entry(f"s{seed}", right, seed=seed) for seed, right in enumerate((10, 20, 24))]
    other = entry("other", 15, seed=7, learning_rate=0.1)
    alone = rank([*group, other], PROTOCOL)
    assert len(alone) == 4
    assert alone[0].worst["linf"].interval == wilson_interval(24, N)
    together = rank([*group, other], PROTOCOL, seeds_together=True)
    assert [len(row.entries) for row in together] == [3, 1]
    share = together[0].worst["linf"]
    assert share.interval is None
    assert share.accuracy == pytest.approx(np.mean([10, 20, 24]) / N)
    assert share.deviation == pytest.approx(np.std([10, 20, 24], ddof=1) / N)


def test_variants_and_other_settings_are_no_seeds_of_each_other():
    entries = [entry("a", 10), entry("a", 12, selector="rec"), entry("b", 9, seed=1, epochs=3)]
    assert len(rank(entries, PROTOCOL, seeds_together=True)) == 3


def test_the_best_is_better_only_where_paired_images_say_so():
    rows = rank([entry("a", 30), entry("b", 28), entry("c", 10)], PROTOCOL)
    _, near, far = (row.beside for row in rows)
    assert (near.best_only, near.this_only, near.p) == (2, 0, 0.5)
    assert (far.best_only, far.this_only) == (20, 0)
    assert far.p == pytest.approx(2 / 2**20)
    assert far.adjusted == pytest.approx(2 * far.p)  # the smaller of two
    assert (near.better, far.better) == (False, True)


def test_images_and_not_shares_decide():
    swapped = ~first(20)  # 20 right, as many as the other, and none in common
    rows = rank([entry("a", 21), entry("b", swapped)], PROTOCOL)
    assert (rows[1].beside.best_only, rows[1].beside.this_only) == (21 - 1, 20 - 1)
    assert not rows[1].beside.better


def test_of_several_seeds_the_closest_pair_counts_and_a_pair_the_other_way_round_is_no_difference():
    best = [entry(f"s{seed}", right, seed=seed) for seed, right in enumerate((38, 30))]
    row = rank([*best, entry("low", 20, epochs=1)], PROTOCOL, seeds_together=True)[1]
    assert row.beside.p == pytest.approx(mcnemar(first(30), first(20))[2])
    above = rank([*best, entry("mid", 33, epochs=1)], PROTOCOL, seeds_together=True)[1]
    assert above.beside.p == 1.0


def test_other_images_are_not_compared():
    rows = rank([entry("a", 30), entry("b", 2, fingerprint="g")], PROTOCOL)
    assert rows[1].beside is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"linf": 0.0}, "linf budget 0 is not above 0"),
        ({"linf": 25.0}, r"eps 25 is outside \[0, 1\]"),
        ({"l2": -1.0}, "l2 budget -1 is not above 0"),
        ({"count": 0}, "count 0 is below 1"),
        ({"attacks": ("deepfool",)}, "attack 'deepfool' is unknown"),
        ({"attacks": ("pgd",)}, "no attack was given"),  # none of L2
    ],
)
def test_a_protocol_that_cannot_be_used_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Protocol(**change)


def test_the_protocol_says_what_a_tenth_became():
    assert "0.098: the usual 0.1" in " ".join(Protocol().words())
    assert "0.098" not in " ".join(Protocol(linf=8 / 255).words())


@pytest.mark.parametrize(("seeds", "told"), [(1, True), (2, True), (3, False)])
@pytest.mark.parametrize(("kind", "selector"), [("classifier", "memory"), ("classifier", "linear")])
def test_a_memory_head_of_few_seeds_claims_nothing(kind, selector, seeds, told):
    entries = [entry(f"at{s}", 9, seed=s, selector=selector) for s in range(seeds)]
    for one in entries:
        one.run.description["kind"] = kind
    content_of = describe(rank([*entries, entry("other", 0)], PROTOCOL, seeds_together=True))
    said = [text for text in headline(content_of, PROTOCOL) if "nothing is claimed" in text]
    doubts = [text for text in content_of[0]["doubts"] if "nothing is claimed" in text]
    assert len(said) == len(doubts) == (told and selector == "memory")
