"""The numbers of the VAE defenses' and denoiser's papers, against what else is printed there."""

from collections import Counter

import numpy as np
import pytest

from memdef_jax.evaluation.papers.published_vae import SECONDS, TABLES, averages, printed
from memdef_jax.nn import CLASSIFIERS

# (table, dataset, column): the printed average, and what its cells give.
WRONG_IN_THE_PAPER = {
    (1, "fashion_mnist", "No Attack"): (84.05, 85.05),
    (1, "mnist", "Adversarial Training"): (27.38, 41.54),
    (3, "mnist", "Adversarial Training"): (71.92, 71.94),
    (8, "cifar10", "No Defense"): (12.16, 12.26),
    (8, "cifar10", "Defense-GAN"): (16.32, 15.96),
}


def column(paper, table, dataset, name):
    """The numbers of a column from top to bottom."""
    place = table, dataset, name
    return [p.percent for p in printed(paper) if (p.table, p.dataset, p.column) == place]


@pytest.mark.parametrize("average", averages("defense_vae"), ids=str)
def test_the_columns_average_to_what_is_printed(average):
    place = average.table, average.dataset, average.column
    mean = np.mean(column("defense_vae", *place))
    if place in WRONG_IN_THE_PAPER:
        stated, right = WRONG_IN_THE_PAPER[place]
        assert average.percent == stated
        assert mean == pytest.approx(right, abs=0.0051)
        assert abs(mean - stated) > 0.0051
    else:
        assert mean == pytest.approx(average.percent, abs=0.0051)  # rounded to two digits


def test_every_column_of_the_tables_with_averages_has_one():
    have = [(a.table, a.dataset, a.column) for a in averages("defense_vae")]
    wanted = [(p.table, p.dataset, p.column) for p in printed("defense_vae") if p.table != 2]
    assert have == list(dict.fromkeys(wanted))
    assert averages("mad_vae") == ()
    assert set(WRONG_IN_THE_PAPER) <= set(have)


@pytest.mark.parametrize(
    ("paper", "counts"),
    [
        # without attack once a row, and then each column for each attack
        (
            "defense_vae",
            {
                (1, "fashion_mnist"): 4 + 12 * 7,
                (1, "mnist"): 4 + 12 * 7,
                (2, "fashion_mnist"): 12 * 2 + 4,
                (3, "fashion_mnist"): 8 * 8,
                (3, "mnist"): 8 * 8,
                (7, "celeba"): 4 + 12 * 7,
                (7, "cifar10"): 3 + 9 * 5,
                (8, "cifar10"): 2 * 6,
            },
        ),
        ("mad_vae", {(1, "mnist"): 1 + 6 * 5, (2, "mnist"): 5 * 6, (3, "mnist"): 2 * 5}),
    ],
)
def test_every_cell_is_there_once(paper, counts):
    numbers = printed(paper)
    assert Counter((p.table, p.dataset) for p in numbers) == counts
    cells = {(p.table, p.dataset, p.row, p.attack, p.column) for p in numbers}
    assert len(cells) == len(numbers)
    tables = {table for table, _ in counts}
    assert set(TABLES[paper]) - tables == ({4} if paper == "defense_vae" else set())


def test_table_2_repeats_the_retrained_classifiers_numbers_of_table_1():
    three = column("defense_vae", 2, "fashion_mnist", "Trained on 3")
    assert three == column("defense_vae", 1, "fashion_mnist", "Defense-VAE-REC")
    assert len(three) == 12


def test_table_2_names_what_each_purifier_was_trained_on():
    here = [p for p in printed("defense_vae") if p.table == 2]
    assert {p.system for p in here} == {"rec"}
    for p in here:
        two = {"fgsm", "rfgsm", "cw"} - {p.attack}
        expected = {
            "Trained on other 2": two,
            "Trained on other 2 and DeepFool": two | {"deepfool"},
            "Trained on 3": {"fgsm", "rfgsm", "cw"},
        }[p.column]
        assert set(p.trained) == expected
        assert list(p.trained) == sorted(expected)
    elsewhere = [p for p in printed("defense_vae") if p.table != 2]
    assert {p.trained for p in (*elsewhere, *printed("mad_vae"))} == {("cw", "fgsm", "rfgsm")}


# Written down a second time, column by column.
COLUMNS = {
    ("defense_vae", 2, "fashion_mnist"): {
        "Trained on other 2": [
            *(87.34, 73.38, 88.03, 86.49),
            *(87.30, 73.59, 88.19, 86.73),
            *(43.48, 34.52, 44.45, 30.77),
        ],
        "Trained on other 2 and DeepFool": [85.06, 71.64, 85.22, 84.69],
    },
    ("mad_vae", 1, "mnist"): {
        "No Attack": [99.31],
        "No Defense": [13.16, 15.21, 0.75, 0.74, 0.73, 99.77],
        "Vanilla": [96.75, 97.34, 97.72, 96.3, 97.25, 98.45],
        "Classification": [98.99, 99.14, 99.06, 98.9, 98.83, 98.87],
        "Proximity and Distance": [98.36, 98.62, 98.5, 98.16, 98.27, 98.77],
        "Combined": [99.05, 99.0, 99.14, 98.87, 98.8, 98.87],
    },
    ("mad_vae", 2, "mnist"): {
        "No Attack": [99.39, 99.25, 99.38, 98.12, 98.07],
        "No Defense": [4.87, 1.44, 5.46, 1.73, 1.55],
        "Vanilla": [96.15, 95.13, 96.53, 93.19, 93.05],
        "Classification": [97.92, 97.26, 97.41, 94.19, 94.6],
        "Proximity and Distance": [96.98, 96.32, 96.7, 95.0, 95.28],
        "Combined": [97.74, 97.04, 96.6, 93.87, 93.89],
    },
    ("mad_vae", 3, "mnist"): {
        "Identity": [30.78, 19.9],
        "Vanilla": [44.43, 33.5],
        "Classification": [38.6, 27.3],
        "Proximity and Distance": [43.45, 32.9],
        "Combined": [38.85, 28.4],
    },
    ("feature_denoiser", 1, "mnist"): {
        "No Attack": [99.5],
        "Unsecured": [22.1, 16.1],
        "Madry": [96.4, 92.5],
        "HGD": [95.9, 83.3],
        "Ours": [92.1, 83.0],
        "Ours on pixels alone": [None, None],  # not in the paper
    },
    ("feature_denoiser", 2, "cifar10"): {
        "No Attack": [92.9],
        "Unsecured": [22.1, 16.1],
        "Madry": [55.5, 47.0],
        "HGD": [48.9, 42.2],
        "Ours": [43.6, 38.5],
    },
}


@pytest.mark.parametrize("place", COLUMNS, ids=str)
def test_tables_without_averages_are_the_printed_ones(place):
    for name, numbers in COLUMNS[place].items():
        assert column(*place, name) == numbers, name


def test_attacks_stand_in_the_order_of_the_paper():
    def attacks(paper, table):
        found = (p.attack for p in printed(paper) if p.table == table)
        return [name for name in dict.fromkeys(found) if name != "clean"]

    assert attacks("defense_vae", 1) == ["fgsm", "rfgsm", "cw"]
    assert attacks("mad_vae", 1) == ["fgsm", "rfgsm", "cw", "mifgsm", "pgd", "single_pixel"]
    assert attacks("mad_vae", 3) == ["overpowered"]
    budgets = {(p.attack, p.eps) for paper in TABLES for p in printed(paper)}
    have = {name for name, eps in budgets if eps == 0.3}
    assert have == {"fgsm", "rfgsm", "mifgsm", "pgd"}
    assert {eps for _, eps in budgets if eps != 0.3} == {None, 0.2}
    assert {p.eps for p in printed("feature_denoiser") if p.attack == "pgd"} == {0.2}
    assert {name for name, eps in budgets if eps is None} == {
        *("clean", "cw", "single_pixel", "overpowered")
    }


def test_rows_name_classifiers_and_substitutes():
    for paper in TABLES:
        for p in printed(paper):
            assert p.classifier in CLASSIFIERS
            if p.substitute is not None:
                assert p.row.lower() == f"{p.classifier}/{p.substitute}"
                assert p.substitute in CLASSIFIERS
            elif p.attack != "overpowered":
                assert p.row.lower() == p.classifier
    others = {p.column for p in printed("defense_vae") if p.system is None}
    assert others == {"Defense-GAN", "MagNet", "Adversarial Training"}
    assert all(p.system for p in printed("mad_vae"))


def test_the_purifier_is_fifty_times_as_fast_as_defense_gan():
    recommended = SECONDS["Defense-GAN, L = 200, R = 10 (recommended)"]
    assert recommended / SECONDS["Defense-VAE"] == pytest.approx(50, rel=0.03)
    # twice the iterations or twice the restarts take twice as long, both four times
    ratios = [seconds / recommended for seconds in list(SECONDS.values())[2:]]
    assert ratios == pytest.approx([2, 2, 4], rel=0.03)
