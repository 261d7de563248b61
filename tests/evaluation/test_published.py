"""The paper's Tables 1 and 2, each cell as it is printed there (arXiv 2202.02595)."""

import pytest

from memdef_jax.evaluation.published import paper_accuracy

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
