"""Several runs side by side on one HTML page."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.evaluation.reports import figures, page
from memdef_jax.evaluation.reports.report import sort_records
from memdef_jax.files import read_json

REPORT = "report.json"
_CELL = ("threat", "attack", "norm", "eps")
_Column = tuple[int, str]  # position of the run, selector
_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to compare.

    Attributes:
      name: how the page calls it.
      summary: the content of its `report.json`.
    """

    name: str
    summary: Mapping[str, Any]


def read_runs(folders: Sequence[pathlib.Path]) -> list[Run]:
    """The runs in these folders, called by the folder's name, or its path where names repeat.

    Raises:
      InputError: for fewer than two, or when a `report.json` is missing or damaged.
    """
    if len(folders) < 2:
        given = "1 run was" if len(folders) == 1 else "no run was"
        raise InputError(f"{given} given and two are needed; name more folders.")
    short = [folder.resolve().name for folder in folders]
    names = [str(f) if short.count(name) > 1 else name for f, name in zip(folders, short)]
    return [Run(name, _read(folder / REPORT)) for name, folder in zip(names, folders)]


def _read(path: pathlib.Path) -> dict[str, Any]:
    remedy = f"python -m eval.robustness --run {path.parent} writes it anew."
    if not path.is_file():
        raise InputError(f"{path} is not there; {remedy}")
    summary = read_json(path, remedy)
    try:
        for record in summary["records"]:
            _ = [record[name] for name in ("selector", *_CELL, "n", "robust_accuracy", "interval")]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; {remedy}") from error
    return summary


def differences(runs: Sequence[Run]) -> list[str]:
    """What keeps the runs' numbers from being compared, a sentence each: data, sample counts."""
    said = []
    data = {run.name: run.summary.get("data") or {} for run in runs}
    sets = {name: found.get("name", "no named data") for name, found in data.items()}
    if len(set(sets.values())) > 1:
        said.append(f"The data sets differ: {_each(sets)}; their numbers cannot be compared.")
    elif len({found.get("fingerprint") for found in data.values()}) > 1:
        prints = {name: str(found.get("fingerprint"))[:12] for name, found in data.items()}
        said.append(f"The data's fingerprints differ: {_each(prints)}; their images differ.")
    attacks = dict.fromkeys(r["attack"] for run in runs for r in run.summary["records"])
    for attack in attacks:
        counts = {
            run.name: sorted({r["n"] for r in run.summary["records"] if r["attack"] == attack})
            for run in runs
        }
        counts = {name: found for name, found in counts.items() if found}
        if len({tuple(found) for found in counts.values()}) > 1:
            numbers = {name: " and ".join(map(str, found)) for name, found in counts.items()}
            said.append(f"The numbers of images under {attack} differ: {_each(numbers)}.")
    return said


def _each(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} in {name}" for name, value in values.items())


def render(runs: Sequence[Run]) -> str:
    """The page: accuracies, curves and checks side by side, and where the provenance differs.

    A cell measured several times (with other seeds, counts or settings) is shown as last recorded.

    Returns:
      The text of an HTML file.
    """
    columns, rows = _accuracies(runs)
    pictures, checks, provenance = _curves(runs), _checks(runs), _provenance(runs)
    sections = {
        "results": ("Results", rows),
        "curves": ("Accuracy against the budget", pictures),
        "checks": ("Checks of the evaluations", checks),
        "provenance": ("Where the provenance differs", provenance),
    }
    return page.fill(
        "compare.html",
        {"runs": [{"name": run.name, "summary": run.summary} for run in runs]},
        heading="Comparison of " + ", ".join(run.name for run in runs),
        sections={name: title for name, (title, content) in sections.items() if content},
        differences=differences(runs),
        columns=columns,
        rows=rows,
        pictures=pictures,
        checks=checks,
        provenance=provenance,
    )


def _accuracies(
    runs: Sequence[Run],
) -> tuple[list[_Column], list[tuple[dict[str, Any], dict[_Column, int]]]]:
    """Columns (run, selector), and rows: the cell's names with each column's record position."""
    columns: dict[_Column, None] = {}
    cells: dict[tuple[Any, ...], dict[_Column, int]] = {}
    for index, run in enumerate(runs):
        for record in sort_records(run.summary["records"]):
            columns[index, record["selector"]] = None
        for position, record in enumerate(run.summary["records"]):
            cell = cells.setdefault(tuple(record[name] for name in _CELL), {})
            cell[index, record["selector"]] = position
    named = [dict(zip(_CELL, key), selector="", key=key) for key in cells]
    return list(columns), [(names, cells[names["key"]]) for names in sort_records(named)]


def _curves(runs: Sequence[Run]) -> list[page.Picture]:
    """One figure a curve's name, a line a run that has it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for curve in run.summary.get("curves") or []:
            found.setdefault(curve["name"], []).append({**curve, "name": run.name})
    return [
        page.Picture(
            name,
            figures.curves(lines),
            f"Lines of robust accuracy against eps, {name}: "
            f"{', '.join(line['name'] for line in lines)}.",
            "curves",
        )
        for name, lines in found.items()
    ]


def _checks(runs: Sequence[Run]) -> dict[str, dict[_Column, int]]:
    """For each check's title the position of its verdict in each column that has one."""
    found: dict[str, dict[_Column, int]] = {}
    for index, run in enumerate(runs):
        for selector, verdicts in (run.summary.get("checks") or {}).items():
            for position, verdict in enumerate(verdicts):
                found.setdefault(verdict["title"], {})[index, selector] = position
    return found


def _provenance(runs: Sequence[Run]) -> list[tuple[_Path, list[Any]]]:
    """Settings that are not the same in all runs: their path and each run's value, or None."""
    flat = [dict(_leaves(run.summary.get("provenance") or {})) for run in runs]
    paths = dict.fromkeys(path for leaves in flat for path in leaves)
    rows = [(path, [leaves.get(path) for leaves in flat]) for path in paths]
    return [(path, values) for path, values in rows if any(v != values[0] for v in values)]


def _leaves(tree: Mapping[str, Any], path: _Path = ()) -> list[tuple[_Path, Any]]:
    found: list[tuple[_Path, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += _leaves(value, (*path, name))
        else:
            found.append(((*path, name), value))
    return found
