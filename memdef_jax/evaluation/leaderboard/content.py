"""The board's rows as JSON, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.leaderboard.ranking import Row, Share
from memdef_jax.evaluation.leaderboard.significance import LEVEL
from memdef_jax.evaluation.reports.report import percent

_DOUBTFUL = ("fail", "warn")
_SEEDS = 3  # fewer say nothing of a memory head, which one seed shows better than its control
_FEW_SEEDS = (
    f"A memory head of fewer than {_SEEDS} seeds: nothing is claimed for it over linear_margin, "
    "its control; train more of both and use --seeds-together."
)


def describe(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Ranked rows as JSON-able dictionaries, with every digit.

    Returns:
      For each: "rank"; "name", of "runs" and "variant"; "defense", its kind; "seeds"; "n";
      "complete"; "clean", "linf" and "l2" with "accuracy", "interval" and "deviation", the latter
      two also with "attacks" (accuracy by attack), "cells" and "of_seeds" (one a seed) and
      "missing"; "checks", verdicts; "checked", these in a few words; "doubts", sentences;
      "beside", the comparison with the best, or None; "verdict", that in words.
    """
    return [_row(row, place) for place, row in enumerate(rows, 1)]


def _row(row: Row, place: int) -> dict[str, Any]:
    first = row.entries[0]
    runs = [entry.run.name for entry in row.entries]
    # A verdict on several seeds would need a rule of its own, so each seed's are there.
    checks = [{**check, "run": e.run.name} for e in row.entries for check in e.checks]
    return {
        "rank": place,
        "name": f"{', '.join(runs)}: {first.selector}",
        "runs": runs,
        "variant": first.selector,
        "defense": first.run.description.get("kind", "-"),
        "seeds": [(e.run.description.get("config") or {}).get("seed") for e in row.entries],
        "n": len(first.clean),
        "complete": row.complete,
        "clean": _numbers(row.clean),
        **{norm: _budget(row, norm) for norm in row.worst},
        "checks": checks,
        "checked": _checked(checks),
        "doubts": _doubts(row, checks),
        "beside": row.beside and dataclasses.asdict(row.beside) | {"better": row.beside.better},
        "verdict": _verdict(row, place),
    }


def _budget(row: Row, norm: str) -> dict[str, Any]:
    found = [entry.budgets[norm] for entry in row.entries]
    names = dict.fromkeys(name for budget in found for name in budget.attacks)
    return _numbers(row.worst[norm]) | {
        "attacks": {
            name: sum(budget.attacks[name] for budget in found) / len(found)
            for name in names
            if all(name in budget.attacks for budget in found)
        },
        "cells": [budget.cells for budget in found],
        "missing": sorted({name for budget in found for name in budget.missing}),
        "of_seeds": [None if b.survived is None else float(b.survived.mean()) for b in found],
    }


def _numbers(share: Share | None) -> dict[str, Any]:
    if share is None:
        return {"accuracy": None, "interval": None, "deviation": None}
    return dataclasses.asdict(share)


def _checked(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks did not pass."""
    if not checks:
        return "not made"
    counts = {name: sum(check["verdict"] == name for check in checks) for name in _DOUBTFUL}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "pass"


def _doubts(row: Row, checks: Sequence[Mapping[str, Any]]) -> list[str]:
    missing = dict.fromkeys(name for entry in row.entries for name in entry.missing)
    said = []
    if missing:
        said.append(f"Not measured: {', '.join(missing)}; the worst case may be lower.")
    if not checks:
        said.append("The evaluation was not examined.")
    if _is_memory_head(row) and len(row.entries) < _SEEDS:
        said.append(_FEW_SEEDS)
    whose = {e.run.name: f"{e.run.name}, " if len(row.entries) > 1 else "" for e in row.entries}
    said += [
        f"{whose[check['run']]}{check['title']}: {check['verdict']}; {check['advice']}"
        for check in checks
        if check["verdict"] in _DOUBTFUL
    ]
    return said + [whose[e.run.name] + text for e in row.entries for text in e.failed]


def _is_memory_head(row: Row) -> bool:
    first = row.entries[0]
    return (first.run.description.get("kind"), first.selector) == ("classifier", "memory")


def _verdict(row: Row, place: int) -> str:
    if row.beside is None:
        return "the first" if place == 1 else "not compared"
    p = f"p {row.beside.adjusted:.2g}"
    return f"lower ({p})" if row.beside.better else f"not told apart ({p})"


def headline(told: Sequence[Mapping[str, Any]], protocol: Protocol) -> list[str]:
    """Who is first, and what of that these images allow one to claim.

    Args:
      told: as `describe` gives them, one or more.
      protocol: that they were measured under.
    """
    first = told[0]
    if first["linf"]["accuracy"] is None:
        return ["Nothing was measured in Linf; run this without --no-measure."]
    said = [
        f"{first['name']} keeps {percent(first['linf']['accuracy'])}% under every attack at Linf "
        f"{255 * protocol.linf:.4g}/255"
        + ("." if first["complete"] else ", but not every attack was tried on it.")
    ]
    compared = [row["beside"] for row in told if row["beside"] is not None]
    better = sum(beside["better"] for beside in compared)
    if compared:
        said.append(
            f"It is better than {better} of the {len(compared)} it can be compared with on the "
            f"same images (McNemar's exact test with Holm's correction, p < {LEVEL:g})"
            + (
                "."
                if better == len(compared)
                else f"; {len(compared) - better} these images do not tell apart from it."
            )
        )
    if _FEW_SEEDS in first["doubts"]:
        said.append(_FEW_SEEDS)
    failing = sum(any(check["verdict"] == "fail" for check in row["checks"]) for row in told)
    if failing:
        said.append(
            f"For {failing} of {len(told)} rows a check says that the attacks may be too weak."
        )
    return said
