"""Which pictures a run's evaluation is shown with."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.data import Dataset, subset
from memdef_jax.evaluation.reports import pictures
from memdef_jax.evaluation.reports.page import Picture
from memdef_jax.evaluation.reports.report import eps_name, sort_records
from memdef_jax.evaluation.reports.summary import strongest
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.config import SweepConfig
from memdef_jax.evaluation.sweeps.records import Record
from memdef_jax.evaluation.sweeps.threats import THREATS


def draw(
    folder: pathlib.Path,
    dataset: Dataset,
    defenses: Mapping[str, Any],
    config: SweepConfig,
    found: Sequence[Record],
) -> list[Picture]:
    """Grids of attacked images and of memory rows, for the defenses that rebuild images."""
    pictured = []
    for record in _pictured(found):
        defense = defenses[record["selector"]]
        outcomes = records.read_outcomes(folder, record)
        if outcomes is None or not hasattr(defense, "reconstruct"):
            continue
        words = (
            f"Defense {record['selector']}, {record['attack'].upper()} "
            f"{eps_name(record['eps'])}, threat model {record['threat']}"
        )
        split = subset(dataset.test, config.count)
        png = pictures.attack_grid(defense, split, outcomes, dataset.info.class_names, words)
        name = f"{record['selector']}-{record['threat']}-{record['attack']}"
        pictured.append(Picture(name, png, words, "attacked"))
    first = next(iter(defenses.values()))  # the selectors of a run share their stack
    if hasattr(first, "decode_rows"):
        rows = pictures.memory_grid(first, dataset.info.class_names)
        if rows:
            pictured.append(Picture("memory", rows, "memory rows decoded, by class", "memory"))
    return pictured


def _pictured(found: Sequence[Record]) -> list[Record]:
    """The strongest budgeted cell of each defense and threat model."""
    selectors = dict.fromkeys(r["selector"] for r in sort_records(found))
    cells = [strongest(found, selector, threat) for selector in selectors for threat in THREATS]
    return [cell for cell in cells if cell is not None]
