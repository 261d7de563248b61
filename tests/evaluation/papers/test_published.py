"""The paper's Tables 1, 2, 3 and 5, each cell as it is printed there (arXiv 2202.02595)."""

import pytest

from memdef_jax.evaluation.papers.published import SECONDS, paper_accuracy
from memdef_jax.evaluation.papers.published import printed as printed_numbers

FASHION = """
benign      | 93.66 | 62.83 / 62.52 | 59.88 / 56.10 | 59.06 / 59.08 | 48.61 / 45
adversarial | 92.36 | 89.08 / 87.55 | 86.09 / 78.62 | 85.09 / 81.04 | 77.14 / 76.35
pipeline    | 92.36 | 90.02 / 90.03 | 89.99 / 89.99 | 89.97 / 89.80 | 89.34 / 88.00
"""
CIFAR = """
benign      | 92.78 | 73.46 / 72.19 / 70.40 | 69.69 / 58.50 / 51.49 | 69.60 / 57.76 / 53.39 | 47.63 / 45
adversarial | 92.00 | 86.32 / 84.04 / 81.20 | 83.87 / 72.40 / 59.73 | 83.83 / 71.74 / 63.67 | 49.72 / 48.31
pipeline    | 92.01 | 86.95 / 86.94 / 86.93 | 86.97 / 86.97 / 86.94 | 87.00 / 86.11 / 85.01 | 89.10 / 88.33
"""  # noqa: E501


def printed(table, levels):
    """(system, attack, level in 1/255 or None, percent) of every cell of Table 1 or 2."""
    for row in table.strip().splitlines():
        system, clean, *attacked = (cell.strip() for cell in row.split("|"))
        yield system, "clean", None, float(clean)
        for attack, cell in zip(("fgsm", "bim", "pgd", "cw"), attacked):
            for level, percent in zip(levels, cell.split(" / ")):
                yield system, attack, level, float(percent)


@pytest.mark.parametrize(
    ("dataset", "table", "levels"),
    [("fashion_mnist", FASHION, (9, 25)), ("cifar10", CIFAR, (2, 8, 16))],
)
def test_every_number_is_the_printed_one(dataset, table, levels):
    cells = list(printed(table, levels))
    assert len(cells) == 3 * (1 + 3 * len(levels) + 2)
    for system, attack, level, percent in cells:
        eps = None if level is None else level / 255
        found = paper_accuracy(dataset, system, attack, eps)
        assert found == pytest.approx(percent / 100, abs=1e-12), (system, attack, level)


def test_an_eps_matches_up_to_rounding_and_no_further():
    def pgd(eps):
        return paper_accuracy("fashion_mnist", "pipeline", "pgd", eps)

    assert pgd(0.0352941) == pgd(9 / 255) == pytest.approx(0.8997)
    for eps in (8 / 255, 0.036, 9.01 / 255, 0.1, 0.0, 1.0):
        assert pgd(eps) is None


def test_cw_without_a_budget_takes_the_number_of_the_smaller_one():
    assert paper_accuracy("fashion_mnist", "pipeline", "cw", None) == pytest.approx(0.8934)
    assert paper_accuracy("cifar10", "adversarial", "cw", None) == pytest.approx(0.4972)


@pytest.mark.parametrize(
    ("dataset", "system", "attack"),
    [
        ("digits", "pipeline", "clean"),
        ("fashion_mnist", "pipeline", "autoattack"),
        ("fashion_mnist", "pipeline", "all"),
        ("mnist", "benign", "pgd"),
        ("cifar10", "oracle", "pgd"),
    ],
)
def test_elsewhere_there_is_none(dataset, system, attack):
    assert paper_accuracy(dataset, system, attack, 8 / 255) is None
    assert paper_accuracy(dataset, system, attack, None) is None


THREE = {
    "fashion_mnist": """
        Defense-VAE-REC 90.85 89.03 87.47
        Defense-VAE-E2E 90.85 91.02 88.54
        Memory-Defense  92.36 89.40 92.36
    """,
    "cifar10": """
        Defense-VAE-REC 86.52 48.52 45.91
        Defense-VAE-E2E 86.52 50.72 49.44
        Memory-Defense  92.01 86.64 91.00
    """,
}
FIVE = """
    Target Classifier,      87.62, 53.64
    Autoencoder w/o Memory, 89.70, 68.69
    Memory Selector pgd,    92.36, 87.55
    Memory Defense,         92.36, 90.03
"""


@pytest.mark.parametrize("dataset", sorted(THREE))
def test_table_3_is_the_printed_one(dataset):
    rows = [line.split() for line in THREE[dataset].strip().splitlines()]
    columns = (("clean", None), ("fgsm", 0.3), ("cw", 0.3))
    expected = [
        (name, *column, float(number))
        for name, *numbers in rows
        for column, number in zip(columns, numbers, strict=True)
    ]
    here = [p for p in printed_numbers() if (p.table, p.dataset) == (3, dataset)]
    assert [(p.row, p.attack, p.eps, p.percent) for p in here] == expected
    assert {p.row for p in here if p.system} == {"Memory-Defense"}


def test_table_5_is_the_printed_one():
    rows = [[cell.strip() for cell in line.split(",")] for line in FIVE.strip().splitlines()]
    expected = [
        (name, attack, float(number))
        for name, *numbers in rows
        for attack, number in zip(("clean", "fgsm"), numbers, strict=True)
    ]
    here = [p for p in printed_numbers() if p.table == 5]
    assert [(p.row, p.attack, p.percent) for p in here] == expected
    assert {p.eps for p in here if p.attack == "fgsm"} == {25 / 255}
    systems = ["classifier_b", "autoencoder", "adversarial", "pipeline"]
    assert list(dict.fromkeys(p.system for p in here)) == systems


@pytest.mark.parametrize(("table", "rows", "numbers"), [(1, 5, 9), (2, 5, 12)])
def test_other_authors_have_their_numbers_and_no_system_of_ours(table, rows, numbers):
    here = [p for p in printed_numbers() if p.table == table]
    assert len(here) == rows * numbers
    others = {p.row for p in here if p.system is None}
    assert others == {"PixelDefend", "ComDefend"}
    assert {p.attack for p in here if p.percent is None} == {"pgd"}
    one = {(p.row, p.attack): p.percent for p in here if p.system is None}
    assert one["PixelDefend", "clean"] == {1: 89.0, 2: 90.0}[table]
    assert one["ComDefend", "cw"] == {1: 89.0, 2: 87.0}[table]  # the last of two


def test_the_memory_costs_three_and_a_half_times_the_time():
    assert SECONDS["with_memory"] / SECONDS["without_memory"] == pytest.approx(3.617, abs=1e-3)
