"""The comparison of `vae_tables` as tables and sentences, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from memdef_jax.evaluation.papers import table_report
from memdef_jax.evaluation.papers.published_vae import (
    CLEAN,
    SECONDS,
    STAND_INS,
    TABLES,
)
from memdef_jax.evaluation.papers.tables import TOLERANCE
from memdef_jax.evaluation.papers.vae_blanks import blanks, untrained
from memdef_jax.evaluation.papers.vae_sources import (
    BLACK_BOX,
    LATENT,
    NAMES,
    WHITE_BOX,
    Source,
    read_sources,
)
from memdef_jax.evaluation.papers.vae_tables import Averaged, VAECompared, average, compare
from memdef_jax.evaluation.reports.layout import as_markdown

WORDS = ("row", "attack", "system", "method", "reproduced by")
_TIMES = 4  # the table of run times, of Defense-VAE
_ABOUT = {
    WHITE_BOX: "Under `grey_box` the attack is crafted on the undefended classifier, as in the "
    "paper; under `adaptive` on the whole pipeline too; `worst_case` takes for each image what "
    "hurts it most.",
    BLACK_BOX: "In the tables with substitutes the substitute learned from the answers of the "
    "undefended classifier, as in the paper, or from those of the deployed pipeline.",
    LATENT: "Under the Overpowered attack `accuracy` is over all noise levels together, and "
    "`original_accuracy` the share of images that are right at every one of them; the search asks "
    "the deployed pipeline, or, as in the published code, its classifier alone.",
}
# What must be known of a table.
_REMARKS = {
    ("feature_denoiser", 2): (
        "Table 2 is on CIFAR-10 turned gray and brought to 28 pixels, as in the paper.",
        "The paper's Table 2 repeats Table 1's accuracies of the unsecured classifier digit by "
        "digit, 22.1 and 16.1, though one is CIFAR-10 and the other MNIST; one of them is likely a "
        "slip.",
        "The 92.9% that its text gives the classifier on clean gray images of CIFAR-10 are far "
        "above what two convolutions usually reach there.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table as text: what stands above it, its columns and its lines."""

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is shown of a comparison.

    Attributes:
      sheets: its tables.
      said: sentences below them.
      document: both in Markdown.
      numbers: all of it, JSON-able and with every digit.
    """

    sheets: Sequence[Sheet]
    said: list[str]
    document: str
    numbers: dict[str, Any]


def report(folder: pathlib.Path, paper: str, tables: Sequence[int] | None = None) -> Report:
    """Compare the runs in a folder with the tables of a paper, by default with all of them.

    Raises:
      InputError: for a table that is not here, or as `read_sources`.
    """
    wanted = TABLES[paper] if tables is None else tables
    sources = read_sources(folder, paper)
    compared = compare(paper, sources, wanted)
    shown = sheets(paper, compared, wanted)
    said = notes(folder, paper, sources, compared, wanted)
    return Report(
        shown, said, as_document(paper, shown, said), as_json(paper, compared, said, wanted)
    )


def sheets(paper: str, compared: Sequence[VAECompared], tables: Sequence[int]) -> list[Sheet]:
    """A paper's tables with ours; averages below, and Table 4 of Defense-VAE as it is printed."""
    found = []
    averaged = average(paper, compared)
    places = dict.fromkeys((c.printed.table, c.printed.dataset) for c in compared)
    for place in places:
        cells = [c for c in compared if (c.printed.table, c.printed.dataset) == place]
        below = [a for a in averaged if (a.printed.table, a.printed.dataset) == place]
        readings = next(c.columns for c in cells if c.printed.attack != CLEAN)
        header = ("row", "attack", "system", "paper %", *readings, "n", "95%", "reproduced by")
        rows = [*map(_line, cells), *map(_average_line, below)]
        found.append(Sheet(_heading(*place), header, rows))
    if paper == "defense_vae" and _TIMES in tables:
        rows = [[name, f"{seconds:.2f}"] for name, seconds in SECONDS.items()]
        sheet = Sheet(f"Table {_TIMES}, run time", ("method", "seconds for 1000 images"), rows)
        found.insert(sum(table < _TIMES for table, _ in places), sheet)
    return found


def _heading(table: int, dataset: str) -> str:
    _, name = STAND_INS.get(dataset, ("", dataset))
    return f"Table {table}, {name}"


def _line(cell: VAECompared) -> list[str]:
    p, first = cell.printed, cell.readings.get(cell.columns[0])
    shown = [
        _beside(cell.readings[name].percent, cell.differences.get(name))
        if name in cell.readings
        else ""
        for name in cell.columns
    ]
    interval = ""
    if first is not None and first.interval is not None:
        interval = "{:.1f}-{:.1f}".format(*first.interval)
    n = "" if first is None else str(first.n)
    paper = "" if p.percent is None else f"{p.percent:.2f}"
    return [p.row, p.attack, p.column, paper, *shown, n, interval, cell.verdict]


def _average_line(averaged: Averaged) -> list[str]:
    p, shown = averaged.printed, []
    for name in averaged.columns:
        if name not in averaged.means:
            shown.append("")
            continue
        mean, points, cells = averaged.means[name]
        shown.append(f"{_beside(mean, points)} over {cells} of {averaged.cells}")
    return ["Average", "", p.column, f"{p.percent:.2f}", *shown, "", "", ""]


def _beside(percent: float, points: float | None) -> str:
    return f"{percent:.1f}" + ("" if points is None else f" ({points:+.1f})")


def notes(
    folder: pathlib.Path,
    paper: str,
    sources: Sequence[Source],
    compared: Sequence[VAECompared],
    tables: Sequence[int],
) -> list[str]:
    """Sentences: what comes close to the paper, and with which commands blanks are measured."""
    said = _close(compared) + [
        text for table in tables for text in _REMARKS.get((paper, table), ())
    ]
    datasets = {c.printed.dataset for c in compared}
    said += [
        f"{name} is not the paper's {original}: nothing measured on it counts for or against the "
        "paper."
        for dataset, (original, name) in STAND_INS.items()
        if dataset in datasets
    ]
    if paper == "defense_vae" and _TIMES in tables:
        said.append(f"Ours for Table {_TIMES}: `python -m benchmarks.purify`.")
    said += [remark for source in sources for remark in source.remarks]
    for source in sources:
        if absent := untrained(source, compared):
            said.append(
                f"{source.folder} has no variant {', '.join(absent)}; its numbers need a run "
                "in another folder with more --config.variants."
            )
    commands = [str(blank) for blank in blanks(folder, paper, sources, compared)]
    if any("folder:celeba" in line for line in commands):
        said.append("The faces of CelebA are read from celeba/train/<class>/ and celeba/test/.")
    said += [
        f"{name} is read from {dataset}/train/<class>/ and {dataset}/test/<class>/."
        for dataset, (_, name) in STAND_INS.items()
        if any(f"folder:{dataset}" in line for line in commands)
    ]
    if commands:
        said.append(
            "What is blank is measured by these, a line a run, or by all of them one after the "
            f"other with `python -m eval.reproduce --paper {paper} --run {folder}`; --preset paper "
            "trains with the paper's settings, for a GPU:"
        )
    return said + commands


def _close(compared: Sequence[VAECompared]) -> list[str]:
    """How many numbers of each table come within the tolerance in the paper's own setting."""
    found: dict[tuple[int, str], list[bool]] = {}
    for c in compared:
        own, p = c.columns[0], c.printed
        if own in c.differences and p.dataset not in STAND_INS:
            place = p.table, p.dataset
            found.setdefault(place, []).append(own in c.reproduced_by)
    return [
        f"Table {table}, {dataset}: of {len(close)} numbers measured in the paper's own setting "
        f"{sum(close)} come within {TOLERANCE:g} points."
        for (table, dataset), close in found.items()
    ]


def as_document(paper: str, shown: Sequence[Sheet], said: Sequence[str]) -> str:
    """All of it in Markdown."""
    names = {name for sheet in shown for name in sheet.header}
    about = [
        "Accuracies in percent, over all images, those that are wrong without attack included; in "
        "brackets by how many points ours exceeds the paper's. Without attack it is the "
        "undefended classifier's. An average of ours is over the cells that were measured, and "
        "compared with the paper's over the same.",
        *(words for readings, words in _ABOUT.items() if set(readings) & names),
        f"The last column names the readings that come within {TOLERANCE:g} points.",
    ]
    lines = [f"# The {NAMES[paper]} paper's tables beside these runs", "", " ".join(about)]
    for sheet in shown:
        lines += ["", f"## {sheet.heading}", "", as_markdown(sheet.header, sheet.rows)]
    return "\n".join([*lines, "", *(f"- {text}" for text in said), ""])


def as_json(
    paper: str, compared: Sequence[VAECompared], said: Sequence[str], tables: Sequence[int]
) -> dict[str, Any]:
    """All of it as a JSON-able dictionary, with every digit."""
    numbers = table_report.as_json(compared, said)
    numbers["paper"] = paper
    numbers["averages"] = [
        dataclasses.asdict(a.printed)
        | {"cells": a.cells}
        | {
            "means": {
                name: {"percent": mean, "difference": points, "cells": cells}
                for name, (mean, points, cells) in a.means.items()
            }
        }
        for a in average(paper, compared)
    ]
    if paper == "defense_vae" and _TIMES in tables:
        numbers["seconds_for_1000_images"] = SECONDS
    return numbers
