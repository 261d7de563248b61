"""Robustness sweeps: defenses x threat models x attacks x eps x seeds, cell by cell, resumable."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, subset
from memdef_jax.defenses import Defense
from memdef_jax.evaluation import records
from memdef_jax.evaluation.config import SweepConfig
from memdef_jax.evaluation.laboratory import Found, Laboratory
from memdef_jax.evaluation.records import Record
from memdef_jax.evaluation.threats import Threat, parse_threats
from memdef_jax.files import check_writable
from memdef_jax.training import Reporter, Silent, make_mesh


def sweep(
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    config: SweepConfig,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure every cell that `folder` does not have yet, then derive the worst case.

    Args:
      defenses: by selector, as `defenses.fit` returns them; "benign" is what transfer attacks are
        crafted on.
      dataset: its test split is attacked.
      config: what to cross.
      folder: the run's; lines are appended to `robustness.jsonl` as cells finish.
      reporter: told of progress.

    Returns:
      The records of this sweep: clean, attacked and worst-case cells.

    Raises:
      InputError: before any work, when something does not fit.
    """
    reporter = reporter or Silent()
    split = subset(dataset.test, config.count)
    threats = parse_threats(config.threats)
    chosen = config.threats != ("all",)
    if chosen and any(t.from_benign for t in threats) and "benign" not in defenses:
        raise InputError("threat model 'transfer' needs the run's benign defense; evaluate it too.")
    for name, defense in defenses.items():
        fits = defense.spec.image_shape, defense.spec.classes
        if fits != (dataset.info.image_shape, len(dataset.info.class_names)):
            raise InputError(
                f"the {name} defense takes images {fits[0]} of {fits[1]} classes and "
                f"{dataset.info.name} has {dataset.info.image_shape} of "
                f"{len(dataset.info.class_names)}; give the data it was trained on."
            )
    known = records.read_records(folder)
    check_writable(folder)
    lab = Laboratory(defenses, dataset, split, config, make_mesh())
    if chosen:
        _check_offered(lab, threats)
    cells = list(lab.cells(threats))
    found: dict[str, Found] = {}
    for cell in cells:
        record = known.get(cell.name)
        outcomes = None if record is None else records.read_outcomes(folder, record)
        if record is not None and outcomes is not None:
            found[cell.name] = record, outcomes
    reporter.start("evaluation", len(found), len(cells), 1)
    clean: dict[str, np.ndarray] = {}  # by selector; these cells come first
    for cell in cells:
        selector = cell.identity["selector"]
        if cell.name not in found:
            record, outcomes = lab.measure(cell, clean.get(selector))
            record = records.append_record(folder, record, outcomes)
            found[cell.name] = record, outcomes
            reporter.update(len(found), {"robust_accuracy": record["robust_accuracy"]})
        clean.setdefault(selector, found[cell.name][1]["correct"])
    measured = [found[cell.name] for cell in cells]
    worst = lab.worst_cases(measured, clean)
    for record in worst:
        if known.get(records.cell_id(record)) != record:
            records.append_record(folder, record)
    return [record for record, _ in measured] + worst


def _check_offered(lab: Laboratory, threats: Sequence[Threat]) -> None:
    for selector in lab.defenses:
        for threat in threats:
            if not lab.surfaces(selector, threat):
                raise InputError(
                    f"the {selector} defense offers no surface of threat model {threat.name!r} "
                    f"({', '.join(threat.surfaces)}); leave it out or use threats 'all'."
                )
