"""From what an attack did to each image to the numbers of a cell, and to the worst over cells."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from memdef_jax import __version__
from memdef_jax.attacks import presets
from memdef_jax.evaluation.papers.published import paper_accuracy
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.records import Record
from memdef_jax.evaluation.sweeps.threats import WORST

Outcomes = dict[str, np.ndarray]  # by name, the first axis being the images
Found = tuple[Record, Mapping[str, np.ndarray]]  # a cell's record and its outcomes per image


def count(
    identity: Record,
    outcomes: Mapping[str, np.ndarray],
    clean: np.ndarray,
    *,
    variant: str | None = None,
    variants: Mapping[str, float] | None = None,
    own_accuracy: float | None = None,
    failed: str | None = None,
    seconds: float = 0.0,
) -> Record:
    """The line of a cell: what is counted over its outcomes, and what made it.

    Args:
      identity: with all of `records.IDENTITY`.
      outcomes: arrays [n] "correct" and "selector_correct", and what else there is.
      clean: which clean images are right, [n] or more.
      variant: the surface that hurt most, of
      variants: accuracy by surface; and
      own_accuracy: with the threat's own surfaces alone.
      failed: why the attack failed, see `failure`.
      seconds: that the cell took.
    """
    correct = outcomes["correct"]
    total = len(correct)
    found = outcomes["success"] if "success" in outcomes else np.zeros(0, bool)
    # What is wrong without any change says nothing of how much change it takes.
    norms = outcomes["norm"][found & (outcomes["norm"] > 0)] if found.any() else np.zeros(0)
    name, eps = identity["attack"], identity["eps"]
    benign = identity["selector"] == "benign"  # the paper has no pipeline with that one
    printed: dict[str, float | None] = {"pipeline": None, "selector": None}
    if identity["defense"] == "memory_defense":
        alone = "benign" if benign else "adversarial"
        printed["selector"] = paper_accuracy(identity["dataset"], alone, name, eps)
        if not benign:
            printed["pipeline"] = paper_accuracy(identity["dataset"], "pipeline", name, eps)
    return {
        **identity,
        "robust_accuracy": float(correct.mean()),
        "interval": list(wilson_interval(int(correct.sum()), total)),
        "clean_accuracy": float(clean[:total].mean()),
        "selector_accuracy": float(outcomes["selector_correct"].mean()),
        "agreement": float(outcomes["agree"].mean()) if "agree" in outcomes else None,
        "success_rate": float(found.mean()) if found.size else None,
        "median_norm": float(np.median(norms)) if norms.size else None,
        "variant": variant,
        "variants": dict(variants or {}),
        "own_accuracy": own_accuracy,
        "failed": failed,
        "paper": printed["pipeline"],
        "paper_selector": printed["selector"],
        "passes": {
            name: float(outcomes[name].mean()) if name in outcomes else 0.0
            for name in ("forward", "backward")
        },
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "versions": {
            "memdef_jax": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }


def combine(variants: Mapping[str, Outcomes], minimal: bool = False) -> Outcomes:
    """Each image as the variant left it that works on it; where none does, as the strongest did.

    Args:
      variants: outcomes of several attacks on the same images.
      minimal: of those that work, take the one that changes the image least.

    Returns:
      Outcomes, "selector_correct_any" being true where no variant misled classifier-A.
    """
    order = sorted(variants, key=lambda name: float(variants[name]["correct"].mean()))
    best = dict(variants[order[0]])
    for name in order[1:]:
        other = variants[name]
        better = best["correct"] & ~other["correct"]
        if minimal:
            better |= ~best["correct"] & ~other["correct"] & (other["norm"] < best["norm"])
        misled = best["selector_correct_any"] & other["selector_correct_any"]
        for key, values in other.items():
            here = better[: len(values)].reshape(-1, *[1] * (values.ndim - 1))
            best[key] = np.where(here, values, best[key])
        best["selector_correct_any"] = misled
    return best


def failure(own: float, accuracy: Mapping[str, float], weaker: Sequence[str]) -> str | None:
    """Why the attacks on a threat's own surfaces failed: attackers who know less do better."""
    better = {name: accuracy[name] for name in weaker if accuracy.get(name, own) < own}
    if not better:
        return None
    name = min(better, key=lambda surface: better[surface])
    return (
        f"the attack failed: differentiating the whole pipeline leaves {100 * own:.1f}%, "
        f"the {name} surface alone {100 * better[name]:.1f}%, so gradients through the choice of "
        "slot are worse than ignoring the defense; the images of the latter were counted."
    )


def worst_cases(measured: Sequence[Found]) -> list[Record]:
    """Per image the worst over threat models and seeds, for each attack and over all attacks.

    "All" at a budget is over all that `counting_at` gives. Only what has the same norm and
    attacked the same number of images is put together.

    Args:
      measured: cells with their outcomes; the clean ones among them.
    """
    clean = {record["selector"]: found for record, found in measured if record["threat"] == "none"}
    groups: dict[tuple[str, str, str, float | None, int], list[Found]] = {}
    for record, found in measured:
        if record["threat"] == "none":
            continue
        for attack in (record["attack"],) if record["eps"] is None else (record["attack"], "all"):
            key = record["selector"], attack, record["norm"], record["eps"], record["n"]
            groups.setdefault(key, []).append((record, found))
    for (selector, attack, norm, eps, n), group in groups.items():
        if attack == "all" and eps is not None:
            alike = [
                (record, found)
                for record, found in measured
                if (record["selector"], record["n"]) == (selector, n)
            ]
            group[:] = counting_at(alike, norm, eps)
    return [
        _worst(attack, eps, group, clean[selector]["correct"])
        for (selector, attack, _, eps, _), group in groups.items()
    ]


def counting_at(measured: Sequence[Found], norm: str, eps: float) -> list[Found]:
    """What counts at a budget: the attacks that have it, then the minimum-norm ones of its norm.

    An image that the latter lose with a smaller change is lost; a larger one is not counted.

    Args:
      measured: attacked cells of one defense, with their outcomes; others are passed over.
      norm: of the budget, "linf" or "l2".
      eps: the budget in [0, 1] pixels.
    """
    alike = [(record, found) for record, found in measured if record["norm"] == norm]
    budgeted = [(record, found) for record, found in alike if record["eps"] == eps]
    return budgeted + [
        (record, _within(found, eps))
        for record, found in alike
        if record["attack"] in presets.MINIMAL
    ]


def _within(outcomes: Mapping[str, np.ndarray], eps: float) -> Outcomes:
    """What a minimum-norm attack found, with changes above a budget not counted."""
    beyond = outcomes["norm"] > eps
    return {name: outcomes[name] | beyond for name in ("correct", "selector_correct_any")}


def _worst(attack: str, eps: float | None, group: Sequence[Found], clean: np.ndarray) -> Record:
    first = group[0][0]
    worst = {
        "correct": np.all([found["correct"] for _, found in group], axis=0),
        "selector_correct": np.all([found["selector_correct_any"] for _, found in group], axis=0),
    }
    # What it is the worst of is part of what it is: a narrower sweep is another cell.
    cells = sorted(records.cell_id(record) for record, _ in group)
    identity = {name: first[name] for name in records.IDENTITY}
    identity |= {"attack": attack, "eps": eps, "threat": WORST}
    identity |= {"seed": 0, "settings": {"cells": cells}}
    over = sorted({f"{record['threat']}/{record['attack']}" for record, _ in group})
    return {**count(identity, worst, clean), "over": over}
