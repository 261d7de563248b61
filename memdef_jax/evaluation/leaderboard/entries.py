"""From a run's folder to what is known of each of its defenses under the protocol."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import Defense
from memdef_jax.evaluation.leaderboard.protocol import THREAT, Protocol
from memdef_jax.evaluation.runs import find_runs
from memdef_jax.evaluation.scrutiny import examination
from memdef_jax.evaluation.scrutiny.examination import Examination
from memdef_jax.evaluation.sweeps.counting import Found, counting_at
from memdef_jax.evaluation.sweeps.records import read_records, select
from memdef_jax.evaluation.sweeps.robustness import stored, sweep
from memdef_jax.training import Reporter


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on the board's dataset.

    Attributes:
      name: its folder, as seen from the folder of all runs.
      folder: its folder.
      description: what it was started with.
    """

    name: str
    folder: pathlib.Path
    description: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is known of a defense at the budget of one norm.

    Attributes:
      survived: bool [n], which images are right under every attack; None without any attack.
      attacks: by name, the share of images right under that attack alone.
      cells: how many cells these are.
      missing: attacks of the protocol that were not measured.
    """

    survived: np.ndarray | None
    attacks: Mapping[str, float]
    cells: int
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One defense of one run.

    Attributes:
      run: that it is of.
      selector: its name there.
      clean: bool [n], which clean images are right.
      budgets: by norm.
      checks: verdicts on its evaluation, as `examine` keeps them; empty where it was not examined.
      failed: what cells say of adaptive attacks that did worse than attackers who know less.
    """

    run: Run
    selector: str
    clean: np.ndarray
    budgets: Mapping[str, Budget]
    checks: Sequence[Mapping[str, Any]] = ()
    failed: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Attacks of the protocol that were not measured, with their norms."""
        return tuple(
            f"{name} ({norm})" for norm, found in self.budgets.items() for name in found.missing
        )


def runs_on(folder: pathlib.Path, dataset: str, only: Sequence[str] = ()) -> list[Run]:
    """The runs below a folder that defend a dataset.

    Args:
      folder: of all runs, see `find_runs`.
      dataset: as in `data.load`; a folder's path has no part in it.
      only: names of runs; all if empty.

    Raises:
      InputError: when there is none, or none of one of these names.
    """
    kind, _, path = dataset.partition(":")
    wanted = f"folder:{pathlib.Path(path).name}" if kind == "folder" else dataset
    found = [
        Run(_name(folder, place), place, description)
        for place, description in find_runs(folder)
        if description.get("dataset") == wanted and description.get("defenses")
    ]
    if not found:
        raise InputError(f"{folder} holds no run of a defense on {wanted}; train one there first.")
    names = [run.name for run in found]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InputError(
            f"run {unknown[0]!r} is not one of those on {wanted}; use some of {', '.join(names)}."
        )
    return [run for run in found if not only or run.name in only]


def _name(folder: pathlib.Path, place: pathlib.Path) -> str:
    return place.resolve().name if place == folder else place.relative_to(folder).as_posix()


def measure(
    run: Run,
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    protocol: Protocol,
    reporter: Reporter,
    examined: Examination | None,
) -> None:
    """Measure what the run's folder does not have yet of the protocol, and doubt it.

    Raises:
      InputError: as `sweep`.
    """
    found = [
        record
        for norm in protocol.budgets
        for record in sweep(defenses, dataset, protocol.sweep(norm), run.folder, reporter)
    ]
    if examined is not None:
        examination.examine(run.folder, defenses, dataset, found, examined, reporter)


def collect(run: Run, protocol: Protocol) -> list[Entry]:
    """What the run's folder has of the protocol, for each of its defenses; nothing is measured.

    Raises:
      InputError: when it has nothing on as many images, or its records are damaged.
    """
    mine = {name: run.description[name] for name in ("dataset", "fingerprint")}
    found = select(read_records(run.folder).values(), threat="none", **mine)
    clean = [r for r in found if r["n"] == protocol.count]
    clean = [r for r in clean if r["selector"] in run.description["defenses"]]
    if not clean:
        counts = ", ".join(str(n) for n in sorted({r["n"] for r in found})) or "none"
        raise InputError(
            f"{run.folder} has no accuracy on {protocol.count} images (on others: {counts}); "
            "measure it, or give one of these as --count."
        )
    cells = {norm: stored(run.folder, clean, norm) for norm in protocol.budgets}
    verdicts = _verdicts(run.folder)
    return [
        entry
        for name in run.description["defenses"]
        if (entry := _entry(run, name, cells, protocol, verdicts.get(name, ()))) is not None
    ]


def _entry(
    run: Run,
    selector: str,
    cells: Mapping[str, Sequence[Found]],
    protocol: Protocol,
    checks: Sequence[Mapping[str, Any]],
) -> Entry | None:
    """One defense; None where its clean images' outcomes are lost."""
    own = {
        norm: [
            (record, outcomes)
            for record, outcomes in found
            if (record["selector"], record["n"]) == (selector, protocol.count)
        ]
        for norm, found in cells.items()
    }
    clean = [o["correct"] for found in own.values() for r, o in found if r["threat"] == "none"]
    if not clean:
        return None
    failed = dict.fromkeys(
        f"{r['attack']} in {norm}: {r['failed']}"
        for norm, found in own.items()
        for r, _ in counting_at(found, norm, protocol.budgets[norm])
        if r.get("failed")
    )
    budgets = {norm: _budget(found, norm, protocol) for norm, found in own.items()}
    return Entry(run, selector, clean[0], budgets, checks, tuple(failed))


def _budget(found: Sequence[Found], norm: str, protocol: Protocol) -> Budget:
    counted = counting_at(found, norm, protocol.budgets[norm])
    alone: dict[str, Any] = dict.fromkeys(protocol.names(norm), True)  # in the protocol's order
    for record, outcomes in counted:
        name = record["attack"]
        alone[name] = outcomes["correct"] & alone.get(name, True)
    alone = {name: correct for name, correct in alone.items() if correct is not True}
    have = {record["attack"] for record, _ in counted if record["threat"] == THREAT}
    return Budget(
        survived=np.all(list(alone.values()), axis=0) if alone else None,
        attacks={name: float(correct.mean()) for name, correct in alone.items()},
        cells=len(counted),
        missing=tuple(name for name in protocol.names(norm) if name not in have),
    )


def _verdicts(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The last examination's verdicts by defense; none where there is no whole one."""
    try:
        content = json.loads((folder / examination.FILE).read_text(encoding="utf-8"))
        parts = content["parts"].items()
        kept = [(name.partition(" "), found) for name, found in parts]
        return {name: list(found) for (kind, _, name), found in kept if kind == "checks"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
