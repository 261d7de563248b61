"""What is counted over outcomes: variants of a cell, and the worst over cells."""

import re

import numpy as np
import pytest

from memdef_jax.evaluation import WORST
from memdef_jax.evaluation.sweeps.counting import combine, failure, worst_cases


def outcomes(correct, norm, misled=None):
    size = len(correct)
    return {
        "correct": np.array(correct),
        "norm": np.array(norm),
        "answer": np.full(size, int(10 * sum(norm))),
        "selector_correct_any": np.array(misled or correct),
        "shown": np.full((2, 1, 1, 1), sum(norm)),
    }


def test_variants_are_combined_image_by_image():
    strong = outcomes([False, False, True, True], [0.5, 0.2, 0.1, 0.1])
    other = outcomes([False, True, False, True], [0.3, 0.4, 0.4, 0.4])
    both = combine({"strong": strong, "other": other})
    np.testing.assert_array_equal(both["correct"], [False, False, False, True])
    np.testing.assert_array_equal(both["norm"], [0.5, 0.2, 0.4, 0.1])
    np.testing.assert_array_equal(both["selector_correct_any"], both["correct"])
    np.testing.assert_array_equal(both["shown"], strong["shown"])
    least = combine({"strong": strong, "other": other}, minimal=True)
    np.testing.assert_array_equal(least["norm"], [0.3, 0.2, 0.4, 0.1])
    np.testing.assert_array_equal(least["answer"], [15, 9, 15, 9])
    np.testing.assert_allclose(least["shown"].ravel(), [1.5, 0.9])


@pytest.mark.parametrize(
    ("own", "grey", "said"), [(0.5, 0.5, None), (0.2, 0.5, None), (0.5, 0.1, "leaves 50.0%.*10.0%")]
)
def test_an_adaptive_attack_that_knows_less_attackers_do_better_is_said_to_have_failed(
    own, grey, said
):
    words = failure(own, {"joint": own, "selector": grey}, ("selector", "frozen_mask"))
    assert (words is None) if said is None else re.search(said, words)


def cell(attack, eps, correct, norm=None, threat="grey_box", norm_kind="linf"):
    size = len(correct)
    identity = {
        "dataset": "digits",
        "fingerprint": "f",
        "defense": "d",
        "selector": "benign",
        "threat": threat,
        "attack": attack,
        "norm": norm_kind,
        "eps": eps,
        "n": size,
        "seed": 0,
        "settings": {},
    }
    found = {"correct": np.array(correct), "norm": np.array(norm or [0.0] * size, np.float32)}
    return identity, found | dict.fromkeys(
        ("selector_correct", "selector_correct_any"), found["correct"]
    )


CLEAN = cell("clean", None, [True, True, True, False], threat="none")


def worst(measured):
    return {
        (r["attack"], r["eps"], r["n"]): (r["robust_accuracy"], r["over"])
        for r in worst_cases(measured)
    }


def test_an_image_lost_under_any_attack_is_lost():
    found = worst(
        [
            CLEAN,
            cell("fgsm", 0.1, [True, True, False, False]),
            cell("fgsm", 0.1, [True, False, True, False], threat="adaptive"),
            cell("pgd", 0.1, [False, True, True, False]),
        ]
    )
    assert found == {
        ("fgsm", 0.1, 4): (0.25, ["adaptive/fgsm", "grey_box/fgsm"]),
        ("pgd", 0.1, 4): (0.5, ["grey_box/pgd"]),
        ("all", 0.1, 4): (0.0, ["adaptive/fgsm", "grey_box/fgsm", "grey_box/pgd"]),
    }


def test_a_minimum_norm_attack_counts_at_every_budget_that_it_kept_within():
    found = worst(
        [
            CLEAN,
            cell("fgsm", 0.1, [True] * 3 + [False]),
            cell("fgsm", 0.2, [True] * 3 + [False]),
            # The first image is lost from 0.15 on; the third was never fooled.
            cell("fmn", None, [False, False, True, False], [0.15, 0.3, 0.0, 0.0]),
            cell("cw", None, [False] * 4, [0.01] * 4, norm_kind="l2"),
        ]
    )
    assert found["all", 0.1, 4] == (0.75, ["grey_box/fgsm", "grey_box/fmn"])
    assert found["all", 0.2, 4] == (0.5, ["grey_box/fgsm", "grey_box/fmn"])
    assert found["fmn", None, 4] == (0.25, ["grey_box/fmn"])
    assert found["cw", None, 4] == (0.0, ["grey_box/cw"])


def test_budgets_of_two_norms_are_never_put_together():
    found = worst_cases(
        [
            CLEAN,
            cell("autoattack", 1.0, [True, True, False, False]),
            cell("autoattack", 1.0, [True, False, True, False], norm_kind="l2"),
            cell("fmn", None, [False] * 4, [0.5, 2.0, 2.0, 2.0]),
            cell("cw", None, [False] * 4, [2.0, 2.0, 0.5, 2.0], norm_kind="l2"),
        ]
    )
    worst = {(r["attack"], r["norm"]): r for r in found}
    assert worst["autoattack", "linf"]["robust_accuracy"] == 0.5
    assert worst["all", "linf"]["robust_accuracy"] == 0.25
    assert worst["all", "linf"]["over"] == ["grey_box/autoattack", "grey_box/fmn"]
    # The last is wrong under the attack itself, the third with a change of 0.5.
    assert worst["all", "l2"]["robust_accuracy"] == 0.25
    assert worst["all", "l2"]["over"] == ["grey_box/autoattack", "grey_box/cw"]


def test_cells_of_fewer_images_are_not_put_together_with_the_rest():
    found = worst([CLEAN, cell("pgd", 0.1, [True] * 4), cell("pgd", 0.1, [False, False])])
    assert found["all", 0.1, 4][0] == 1.0
    assert found["all", 0.1, 2][0] == 0.0


def test_the_worst_case_names_its_cells():
    record = worst_cases([CLEAN, cell("pgd", 0.1, [True, True, False, False])])[0]
    assert (record["threat"], record["seed"], record["clean_accuracy"]) == (WORST, 0, 0.75)
    assert len(record["settings"]["cells"]) == 1
