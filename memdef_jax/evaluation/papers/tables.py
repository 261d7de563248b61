"""Tables 1, 2, 3 and 5 of the Memory Defense paper beside what a run measured.

The paper does not say on what its attacks were crafted, and its published test script counts clean
and attacked images together. So each of its numbers is compared with ours under every threat model,
counted both ways, and those readings are named that reproduce it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers.published import TABLES, Printed, printed, same_eps
from memdef_jax.evaluation.reports.report import eps_name
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps.records import Record, read_outcomes, read_records, select
from memdef_jax.evaluation.sweeps.threats import THREATS, WORST
from memdef_jax.training.run import read_run

TOLERANCE = 2.0  # points within which a reading reproduces a number
THREAT_NAMES = (*THREATS, WORST)
POOLED = " pooled"
NO_MEMORY, TARGET = "memory_rows=0", "target_classifier"  # folders of `ablation.ablate`


@dataclasses.dataclass(frozen=True)
class Reading:
    """Our number for one of the paper's, under one reading of it.

    Attributes:
      percent: accuracy; for a pooled reading (clean right + attacked right) / 2n.
      n: images attacked.
      interval: 95% Wilson interval in percent; None for pooled readings, whose two halves are the
        same images.
    """

    percent: float
    n: int
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Compared:
    """One number of the paper and ours.

    Attributes:
      printed: the paper's.
      readings: ours by name: "clean", or a threat model, or that with `POOLED` behind it.
    """

    printed: Printed
    readings: Mapping[str, Reading]

    @property
    def differences(self) -> dict[str, float]:
        """Points by which ours exceeds the paper's, by reading; empty where it prints none."""
        paper = self.printed.percent
        if paper is None:
            return {}
        return {name: reading.percent - paper for name, reading in self.readings.items()}

    @property
    def reproduced_by(self) -> tuple[str, ...]:
        """The readings that come within `TOLERANCE` points."""
        close = {k: v for k, v in self.differences.items() if abs(v) <= TOLERANCE + 1e-9}
        return tuple(close)

    @property
    def verdict(self) -> str:
        """Which reading reproduces the number, in words; empty where nothing was measured."""
        if not self.differences:
            return ""
        names = self.reproduced_by
        joined = ", ".join(names) or "none"
        return f"several: {joined}" if len(names) > 1 else joined


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where our numbers are.

    Attributes:
      folder: the run's.
      dataset: it was trained on.
      run: its records.
      adversarial: its adversarially trained classifier-A, None if it has none.
      selector_correct: which clean images each classifier-A has right, bool [n].
      autoencoder: records of a stack without memory.
      classifier_b: records of classifier-B trained on plain images.
    """

    folder: pathlib.Path
    dataset: str
    run: Sequence[Record]
    adversarial: str | None
    selector_correct: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    autoencoder: Sequence[Record] = ()
    classifier_b: Sequence[Record] = ()

    def of(self, system: str) -> tuple[Sequence[Record], bool]:
        """Records of a system of the paper, and whether it is classifier-A alone."""
        if system in ("benign", "adversarial"):
            name = "benign" if system == "benign" else self.adversarial
            return select(self.run, selector=name), True
        if system == "pipeline":
            return select(self.run, selector=self.adversarial), False
        return (self.autoencoder if system == "autoencoder" else self.classifier_b), False


def read_sources(folder: pathlib.Path, ablation: pathlib.Path | None = None) -> Sources:
    """What a run has measured, and an ablation for the rows of Table 5 that no run has.

    Raises:
      InputError: when there is no run of a Memory Defense, or its records are damaged.
    """
    run = read_run(folder)
    if run.get("kind") != "memory_defense":
        raise InputError(f"{folder} holds no Memory Defense; give the folder of one.")
    recipe = run.get("config", {}).get("selector", {}).get("recipe")
    if recipe is None:
        raise InputError(
            f"{folder} does not say how its selectors were trained, as runs of imported weights do "
            "not; give a run of train.memory_defense."
        )
    found = list(read_records(folder).values())
    correct: dict[str, np.ndarray] = {}
    for record in select(found, threat="none"):
        outcomes = read_outcomes(folder, record)
        if outcomes is not None and len(correct.get(record["selector"], ())) < record["n"]:
            correct[record["selector"]] = outcomes["selector_correct"]
    extra = {
        name: [] if ablation is None else list(read_records(ablation / name).values())
        for name in (NO_MEMORY, TARGET)
    }
    return Sources(
        folder=folder,
        dataset=run["dataset"],
        run=found,
        adversarial=None if recipe == "benign" else recipe,
        selector_correct=correct,
        autoencoder=extra[NO_MEMORY],
        classifier_b=extra[TARGET],
    )


def compare(sources: Sources, tables: Sequence[int] = TABLES) -> list[Compared]:
    """Every number of the given tables, with ours under each reading that was measured.

    A cell measured more than once counts as `find_cells` says.

    Raises:
      InputError: for a table that is not here.
    """
    unknown = sorted(set(tables) - set(TABLES))
    if unknown:
        known = ", ".join(map(str, TABLES))
        raise InputError(f"table {unknown[0]} is not one of those compared here; use {known}.")
    return [Compared(p, _readings(sources, p)) for p in printed() if p.table in tables]


def _readings(sources: Sources, number: Printed) -> dict[str, Reading]:
    if number.system is None:
        return {}
    found, alone = sources.of(number.system)
    found = select(found, dataset=number.dataset)
    clean = number.attack == "clean"
    readings: dict[str, Reading] = {}
    pooled: dict[str, Reading] = {}
    threats = ("none",) if clean else THREAT_NAMES
    for threat, record in find_cells(found, threats, number.attack, number.eps).items():
        n, share = record["n"], record["selector_accuracy" if alone else "robust_accuracy"]
        low, high = wilson_interval(round(share * n), n)
        name = "clean" if clean else threat
        readings[name] = Reading(100 * share, n, (100 * low, 100 * high))
        before = _clean_share(sources, record) if alone else record["clean_accuracy"]
        if before is not None and not clean:
            pooled[name + POOLED] = Reading(100 * (before + share) / 2, n)
    return readings | pooled


def find_cells(
    found: Sequence[Record], threats: Sequence[str], attack: str, eps: float | None
) -> dict[str, Record]:
    """The cells that count, by threat, all of one number of images.

    It is the one that most of the threats were measured on, of several the largest: a worst case is
    of the cells beside it. Of the same images the widest worst case counts, then the last measured.
    """
    cells = [
        r
        for r in select(found, attack=attack)
        if r["threat"] in threats
        and (attack in ("clean", "cw") or (same_eps(r["eps"], eps) and r["norm"] != "l2"))
    ]

    def coverage(n: int) -> tuple[int, int]:
        return len({r["threat"] for r in cells if r["n"] == n}), n

    def weight(record: Record) -> tuple[int, int]:  # a worst case of more cells comes first
        return len(record["settings"].get("cells", ())), -record["seed"]

    n = max({r["n"] for r in cells}, key=coverage, default=0)
    chosen = {
        threat: max(reversed(select(cells, threat=threat, n=n)), key=weight, default=None)
        for threat in threats
    }
    return {threat: record for threat, record in chosen.items() if record is not None}


def _clean_share(sources: Sources, record: Record) -> float | None:
    """Classifier-A's share right of the clean images that a cell attacks; None if unknown."""
    correct = sources.selector_correct.get(record["selector"], np.zeros(0, bool))
    return float(correct[: record["n"]].mean()) if len(correct) >= record["n"] else None


def notes(sources: Sources, compared: Sequence[Compared]) -> list[str]:
    """Sentences on what is blank, each with the command that measures it."""
    ours = [c for c in compared if c.printed.system is not None]
    said = [
        f"This run is on {sources.dataset}; for the rows on {dataset}: "
        f"`python -m train.memory_defense --run NEW --dataset {dataset}`, and this program with "
        "that run."
        for dataset in dict.fromkeys(c.printed.dataset for c in ours)
        if dataset != sources.dataset
    ]
    here = [c for c in ours if c.printed.dataset == sources.dataset]
    systems = {c.printed.system for c in here}
    if sources.adversarial is None and systems & {"adversarial", "pipeline"}:
        said.append(
            "This run has no adversarially trained classifier-A; for its rows and the pipeline's: "
            "`python -m train.memory_defense --run NEW --config.selector.recipe offline`."
        )
    if any(c.printed.system in ("autoencoder", "classifier_b") and not c.readings for c in here):
        said.append(
            "No run has the target classifier alone, nor the autoencoder without memory; for "
            "their rows of Table 5: `python -m eval.ablation --run runs/ablation --dataset "
            f"{sources.dataset} --factors memory_rows`, and this program with "
            "`--ablation runs/ablation`."
        )
    missing = _missing(sources, here)
    if missing:
        count = max((r["n"] for r in select(sources.run, threat="none")), default=None)
        said.append("Blank cells of this run are measured by:")
        said += [f"`{command}`" for command in _commands(sources.folder, missing, count)]
    return said


def _missing(sources: Sources, here: Sequence[Compared]) -> list[tuple[str, float | None]]:
    """(attack, eps) of the run's own rows where some threat model has no cell."""
    owned = {"benign", "adversarial", "pipeline"} - (
        {"adversarial", "pipeline"} if sources.adversarial is None else set()
    )
    cells = [
        (c.printed.attack, None if c.printed.attack == "cw" else c.printed.eps)
        for c in here
        if c.printed.system in owned
        and c.printed.attack != "clean"
        and not set(THREATS) <= set(c.readings)
    ]
    return list(dict.fromkeys(cells))


def _commands(
    folder: pathlib.Path, missing: Sequence[tuple[str, float | None]], count: int | None
) -> list[str]:
    attacks: dict[float | None, list[str]] = {}
    for attack, eps in missing:
        attacks.setdefault(eps, []).append(attack)
    budgets: dict[tuple[str, ...], list[float | None]] = {}
    for eps, names in attacks.items():
        budgets.setdefault(tuple(names), []).append(eps)
    size = "" if count is None else f" --count {count}"
    return [
        f"python -m eval.robustness --run {folder} --attacks {','.join(names)}"
        + ("" if None in levels else f" --eps {','.join(map(eps_name, levels))}")
        + size
        for names, levels in budgets.items()
    ]
