"""The comparison of `tables` as lines of a table, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from memdef_jax.evaluation.papers.tables import POOLED, THREAT_NAMES, TOLERANCE, Compared
from memdef_jax.evaluation.reports.layout import as_markdown
from memdef_jax.evaluation.reports.report import eps_name

HEADER = ("row", "attack", "eps", "counted", "paper %", "clean", *THREAT_NAMES, "reproduced by")
WORDS = ("row", "attack", "eps", "counted", "reproduced by")


def table_rows(compared: Sequence[Compared]) -> list[list[str]]:
    """Lines under `HEADER`: ours, and by how many points it exceeds the paper's.

    A number of which something was measured has two lines, the second for the pooled readings.
    """
    rows = []
    for cell in compared:
        p = cell.printed
        name = [p.row, p.attack, eps_name(p.eps)]
        paper = "NA" if p.percent is None else f"{p.percent:.2f}"
        counted = "clean" if p.attack == "clean" else "attacked" if cell.readings else ""
        lines = [(name, counted, paper, "", cell.verdict)]
        if any(reading.endswith(POOLED) for reading in cell.readings):
            lines.append((["", "", ""], "pooled", "", POOLED, ""))
        for start, counted, paper, suffix, verdict in lines:
            shown = [_shown(cell, reading + suffix) for reading in ("clean", *THREAT_NAMES)]
            rows.append([*start, counted, paper, *shown, verdict])
    return rows


def _shown(cell: Compared, reading: str) -> str:
    if reading not in cell.readings:
        return ""
    percent, points = cell.readings[reading].percent, cell.differences.get(reading)
    return f"{percent:.1f}" + ("" if points is None else f" ({points:+.1f})")


def headings(compared: Sequence[Compared]) -> dict[str, list[Compared]]:
    """The numbers by the table they stand in, under its name and dataset."""
    groups: dict[str, list[Compared]] = {}
    for cell in compared:
        p = cell.printed
        groups.setdefault(f"Table {p.table}, {p.dataset}", []).append(cell)
    return groups


def as_document(compared: Sequence[Compared], said: Sequence[str]) -> str:
    """All of it in Markdown."""
    lines = [
        "# The Memory Defense paper's tables beside this run",
        "",
        "Accuracies in percent; in brackets by how many points ours exceeds the paper's. Each "
        "column is a threat model: what the attack was crafted on. A line `pooled` counts clean "
        "and attacked images together, as the paper's published test script does. The last column "
        f"names the readings that come within {TOLERANCE:g} points. CW-L2 has no budget, so both "
        "numbers that the paper prints for it are compared with the same one of ours.",
    ]
    for heading, cells in headings(compared).items():
        lines += ["", f"## {heading}", "", as_markdown(HEADER, table_rows(cells))]
    return "\n".join([*lines, "", *(f"- {text}" for text in said), ""])


def as_json(compared: Sequence[Compared], said: Sequence[str]) -> dict[str, Any]:
    """All of it as a JSON-able dictionary, with every digit."""
    cells = [
        {
            **dataclasses.asdict(cell.printed),
            "readings": {
                name: dataclasses.asdict(reading) | {"difference": cell.differences.get(name)}
                for name, reading in cell.readings.items()
            },
            "reproduced_by": list(cell.reproduced_by),
        }
        for cell in compared
    ]
    return {"tolerance": TOLERANCE, "cells": cells, "notes": list(said)}
