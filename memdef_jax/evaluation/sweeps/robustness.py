"""Robustness sweeps: defenses x threat models x attacks x eps x seeds, cell by cell, resumable."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from memdef_jax import processes
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, subset
from memdef_jax.defenses import Defense
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.config import SweepConfig
from memdef_jax.evaluation.sweeps.counting import Found, worst_cases
from memdef_jax.evaluation.sweeps.laboratory import Cell, Laboratory
from memdef_jax.evaluation.sweeps.records import Record
from memdef_jax.evaluation.sweeps.threats import WORST, Threat, parse_threats
from memdef_jax.files import check_writable
from memdef_jax.locks import locked
from memdef_jax.training import Reporter, Silent, make_mesh


def sweep(
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    config: SweepConfig,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure every cell that `folder` does not have yet, then derive the worst case.

    Several processes share the images of every cell, and the first writes what they find.

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
      InputError: before any work, when something does not fit or another process works there.
    """
    reporter = reporter or Silent()
    split = subset(dataset.test, config.count)
    threats = parse_threats(config.threats)
    chosen = config.threats != ("all",) and not config.where_offered
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
    lab = Laboratory(defenses, dataset, split, config, make_mesh(local=True))
    if chosen:
        _check_offered(lab, threats)
    with locked(folder, reporter.note):
        check_writable(folder)
        return _with_worst(_swept(lab, list(lab.cells(threats)), folder, reporter), folder)


def _swept(
    lab: Laboratory, cells: Sequence[Cell], folder: pathlib.Path, reporter: Reporter
) -> list[Found]:
    """Every cell: what the folder has, and the rest measured and stored one by one."""
    known = records.read_records(folder)
    found: dict[str, Found] = {}
    for cell in cells:
        record = known.get(cell.name)
        outcomes = None if record is None else records.read_outcomes(folder, record)
        if record is not None and outcomes is not None:
            found[cell.name] = record, outcomes
    processes.agree(f"the finished cells in {folder}", list(found))
    reporter.start("evaluation", len(found), len(cells), 1)
    clean: dict[str, np.ndarray] = {}  # by selector; these cells come first
    for cell in cells:
        selector = cell.identity["selector"]
        if cell.name not in found:
            record, outcomes = lab.measure(cell, clean.get(selector))
            record = processes.by_one(partial(records.append_record, folder, record, outcomes))
            found[cell.name] = record, outcomes
            reporter.update(len(found), {"robust_accuracy": record["robust_accuracy"]})
        clean.setdefault(selector, found[cell.name][1]["correct"])
    return [found[cell.name] for cell in cells]


def joined(folder: pathlib.Path, found: Sequence[Record]) -> list[Record]:
    """A sweep's cells with those of earlier sweeps of the same defenses on as many images.

    Args:
      folder: the run's.
      found: what `sweep` returned. Where an earlier cell differs in nothing but an attack's
        settings, this one stands for it. Budgets of another norm than this sweep's stay out.

    Returns:
      All cells, and the worst cases over all of them.
    """
    norm = next((r["norm"] for r in found if r["eps"] is not None), "linf")
    return _with_worst(stored(folder, found, norm), folder)


def stored(folder: pathlib.Path, found: Sequence[Record], norm: str) -> list[Found]:
    """The cells that `joined` shows, with their outcomes and without worst cases.

    Args:
      folder: the run's.
      found: cells of a sweep, of each defense the clean one at least.
      norm: of the budgets; cells that have no budget are there with any.
    """
    own = [record for record in found if record["threat"] != WORST]
    counts = {_subject(r): r["n"] for r in own if r["threat"] == "none"}
    cells = {_place(record): record for record in own}
    for record in reversed(records.read_records(folder).values()):  # the latest first
        n = counts.get(_subject(record), 0)
        # CW-L2 may have been given fewer images; they are the first ones all the same.
        fits = record["n"] == n or (record["attack"] == "cw" and record["n"] < n)
        fits &= record["eps"] is None or record["norm"] == norm
        if fits and record["threat"] != WORST:
            cells.setdefault(_place(record), record)
    kept = [(record, records.read_outcomes(folder, record)) for record in cells.values()]
    return [(record, outcomes) for record, outcomes in kept if outcomes is not None]


def _subject(record: Record) -> tuple[str, ...]:
    """Which defense was measured on which data."""
    return tuple(record[name] for name in ("dataset", "fingerprint", "defense", "selector"))


def _place(record: Record) -> tuple[object, ...]:
    """Where a cell stands in a table: all that it is but its attack's settings."""
    return tuple(record[name] for name in records.IDENTITY if name != "settings")


def _with_worst(measured: Sequence[Found], folder: pathlib.Path) -> list[Record]:
    """The records and, stored in the folder too, those of their worst cases."""
    worst = worst_cases(measured)

    def store() -> None:
        known = records.read_records(folder)
        for record in worst:
            if known.get(records.cell_id(record)) != record:
                records.append_record(folder, record)

    processes.by_one(store)
    return [record for record, _ in measured] + worst


def _check_offered(lab: Laboratory, threats: Sequence[Threat]) -> None:
    for selector in lab.defenses:
        for threat in threats:
            if not lab.surfaces(selector, threat):
                raise InputError(
                    f"the {selector} defense offers no surface of threat model {threat.name!r} "
                    f"({', '.join(threat.surfaces)}); leave it out or use threats 'all'."
                )
