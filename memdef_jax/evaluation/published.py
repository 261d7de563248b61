"""Accuracies in percent that the Memory Defense paper (arXiv 2202.02595) prints.

Only cells of Tables 1 and 2 for the paper's own systems; eps in 1/255. CW has one number an eps in
the paper, though its CW-L2 has no eps: `paper_accuracy` gives the first, of the smaller eps.
"""

from __future__ import annotations

_PAPER: dict[str, dict[str, dict[str, dict[int, float]]]] = {
    "fashion_mnist": {
        "pipeline": {
            "clean": {0: 92.36},
            "fgsm": {9: 90.02, 25: 90.03},
            "bim": {9: 89.99, 25: 89.99},
            "pgd": {9: 89.97, 25: 89.80},
            "cw": {9: 89.34, 25: 88.00},
        },
        "benign": {
            "clean": {0: 93.66},
            "fgsm": {9: 62.83, 25: 62.52},
            "bim": {9: 59.88, 25: 56.10},
            "pgd": {9: 59.06, 25: 59.08},
            "cw": {9: 48.61, 25: 45.0},
        },
        "adversarial": {
            "clean": {0: 92.36},
            "fgsm": {9: 89.08, 25: 87.55},
            "bim": {9: 86.09, 25: 78.62},
            "pgd": {9: 85.09, 25: 81.04},
            "cw": {9: 77.14, 25: 76.35},
        },
    },
    "cifar10": {
        "pipeline": {
            "clean": {0: 92.01},
            "fgsm": {2: 86.95, 8: 86.94, 16: 86.93},
            "bim": {2: 86.97, 8: 86.97, 16: 86.94},
            "pgd": {2: 87.00, 8: 86.11, 16: 85.01},
            "cw": {2: 89.10, 8: 88.33},
        },
        "benign": {
            "clean": {0: 92.78},
            "fgsm": {2: 73.46, 8: 72.19, 16: 70.40},
            "bim": {2: 69.69, 8: 58.50, 16: 51.49},
            "pgd": {2: 69.60, 8: 57.76, 16: 53.39},
            "cw": {2: 47.63, 8: 45.0},
        },
        "adversarial": {
            "clean": {0: 92.00},
            "fgsm": {2: 86.32, 8: 84.04, 16: 81.20},
            "bim": {2: 83.87, 8: 72.40, 16: 59.73},
            "pgd": {2: 83.83, 8: 71.74, 16: 63.67},
            "cw": {2: 49.72, 8: 48.31},
        },
    },
}


def paper_accuracy(dataset: str, system: str, attack: str, eps: float | None) -> float | None:
    """The paper's accuracy as a fraction, None where it has none.

    Args:
      dataset: as in `data.load`.
      system: "pipeline" (Memory-Defense), "benign" (ResNet-50 ben) or "adversarial" (ResNet-50
        pgd), the latter two being classifier-A alone.
      attack: "clean", "fgsm", "bim", "pgd" or "cw".
      eps: Linf budget in [0, 1]; None for clean and CW.
    """
    cells = _PAPER.get(dataset, {}).get(system, {}).get(attack, {})
    if not cells:
        return None
    if eps is None:
        return next(iter(cells.values())) / 100
    level = round(eps * 255, 3)
    return cells[int(level)] / 100 if level in cells else None
