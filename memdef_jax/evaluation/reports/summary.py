"""Everything that a run's evaluation found, as one JSON-able dictionary: what the page shows."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from memdef_jax.attacks import presets
from memdef_jax.evaluation.reports.report import eps_name
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.records import Record, select
from memdef_jax.evaluation.sweeps.threats import THREATS, WORST

_POINTS = 41  # of a curve over eps
_FARTHEST = 0.4  # eps at its end


def strongest(found: Sequence[Record], selector: str, threat: str) -> Record | None:
    """The cell that leaves least at the largest budget, of one defense under one threat model."""
    cells = [r for r in select(found, selector=selector, threat=threat) if r["eps"] is not None]
    return max(cells, key=lambda r: (r["eps"], -r["robust_accuracy"])) if cells else None


def curves(folder: pathlib.Path, found: Sequence[Record]) -> list[dict[str, Any]]:
    """Robust accuracy over eps: from minimum-norm attacks, and the worst case at each budget.

    A minimum-norm attack gives a whole curve, because an image that it changes by so much is lost
    at every eps from there on. Failures count as robust at any eps.

    Returns:
      For each, "name", "selector", "threat", and lists "eps", "robust", "low" and "high" (95%).
    """
    result = []
    grid = np.linspace(0.0, _FARTHEST, _POINTS)
    for record in found:
        if record["attack"] not in presets.MINIMAL or record["norm"] != "linf":
            continue
        outcomes = records.read_outcomes(folder, record)
        if record["threat"] not in THREATS or outcomes is None:
            continue
        right = [int((outcomes["correct"] | (outcomes["norm"] > eps)).sum()) for eps in grid]
        result.append(_curve(record, record["attack"], grid.tolist(), right, record["n"]))
    for selector in dict.fromkeys(r["selector"] for r in found):
        clean = select(found, selector=selector, attack="clean")
        worst = select(found, selector=selector, threat=WORST, attack="all")
        points = sorted([*clean, *worst], key=lambda r: r["eps"] or 0.0)
        if not worst:
            continue
        right = [round(r["robust_accuracy"] * r["n"]) for r in points]
        eps = [r["eps"] or 0.0 for r in points]
        result.append(_curve(worst[0], "all attacks", eps, right, worst[0]["n"]))
    return result


def _curve(
    record: Record, attack: str, eps: Sequence[float], right: Sequence[int], total: int
) -> dict[str, Any]:
    intervals = [wilson_interval(count, total) for count in right]
    return {
        "name": f"{record['selector']}, {record['threat']}, {attack}",
        "selector": record["selector"],
        "threat": record["threat"],
        "eps": list(eps),
        "robust": [count / total for count in right],
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
    }


def confusion(
    folder: pathlib.Path, found: Sequence[Record], classes: int
) -> dict[str, dict[str, Any]]:
    """Undefended classifier's answer by the pipeline's, under the strongest attack on each defense.

    Returns:
      By selector, "words" that name the cell and "slots", counts [K, K]: row undefended (in Memory
      Defense the chosen slot), column pipeline.
    """
    result = {}
    for selector in dict.fromkeys(r["selector"] for r in found):
        record = strongest(found, selector, "adaptive") or strongest(found, selector, "grey_box")
        outcomes = None if record is None else records.read_outcomes(folder, record)
        if record is None or outcomes is None:
            continue
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (outcomes["slot"], outcomes["answer"]), 1)
        words = f"{record['attack']}, {record['threat']}, eps {eps_name(record['eps'])}"
        result[selector] = {"words": words, "slots": counts.tolist()}
    return result


def headline(found: Sequence[Record]) -> list[str]:
    """A few short sentences: clean and worst-case accuracy, and attacks that failed."""
    said = []
    for selector in dict.fromkeys(r["selector"] for r in found):
        worst = select(found, selector=selector, threat=WORST, attack="all")
        clean = select(found, selector=selector, attack="clean")
        if not worst or not clean:
            continue
        last = max(worst, key=lambda r: r["eps"])
        low, high = last["interval"]
        said.append(
            f"{selector}: {100 * clean[0]['robust_accuracy']:.1f}% clean, "
            f"{100 * last['robust_accuracy']:.1f}% at eps {eps_name(last['eps'])} "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f}, {last['n']} images)."
        )
    failures = [r for r in found if r.get("failed")]
    if failures:
        said.append(
            f"In {len(failures)} of the cells the adaptive attack found less than attackers who "
            "know less; their images were counted."
        )
    return said


def summarise(
    folder: pathlib.Path,
    found: Sequence[Record],
    class_names: Sequence[str],
    **sections: Any,
) -> dict[str, Any]:
    """All sections of the page; those that are None or empty are left out."""
    whole = {
        "headline": headline(found),
        "records": list(found),
        "curves": curves(folder, found),
        "confusion": confusion(folder, found, len(class_names)),
        "class_names": list(class_names),
        **sections,
    }
    return {name: section for name, section in whole.items() if section}
