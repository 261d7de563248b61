"""The tables of the Defense-VAE and MAD-VAE papers beside what runs measured.

A row of these papers is a run: a dataset, a classifier and the attacks its purifier was trained on.
The papers attack the undefended classifier, or a substitute of it, and never the purifier; that is
the first reading of each number. Further ones are those of attackers who know the whole pipeline.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers.published import same_eps
from memdef_jax.evaluation.papers.published_vae import (
    CLEAN,
    EPS,
    TABLES,
    UNDEFENDED,
    Average,
    PrintedVAE,
    averages,
    printed,
)
from memdef_jax.evaluation.papers.tables import Compared, Reading, find_cell
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps.records import Record, read_records, select
from memdef_jax.evaluation.sweeps.threats import WORST
from memdef_jax.training.run import read_run

NAMES = {"defense_vae": "Defense-VAE", "mad_vae": "MAD-VAE"}
# Readings of an attack on the classifier itself, on a substitute and in latent space, the papers'
# own first. A substitute learns from the answers of an oracle: the classifier or the pipeline.
WHITE_BOX = ("grey_box", "adaptive", WORST)
BLACK_BOX = ("oracle undefended", "oracle deployed")
LATENT = ("overpowered",)
RHOS = [1.0, 2.5, 3.0, 3.5]  # noise of the Overpowered attack, over which MAD-VAE pools


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, and what was measured on it.

    Attributes:
      folder: the run's.
      dataset: it was trained on; a folder of images by the folder's name.
      classifier: that it defends, as in `nn.CLASSIFIERS`.
      trained: attacks that its purifiers learned from, in the order of the alphabet.
      variants: that it has.
      records: of its sweeps.
      substitutes: readings of attacks on substitutes, by substitute and system.
      overpowered: readings of the Overpowered attack, by what is counted and variant.
      remarks: sentences on what that attack found.
    """

    folder: pathlib.Path
    dataset: str
    classifier: str
    trained: tuple[str, ...]
    variants: tuple[str, ...]
    records: Sequence[Record] = ()
    substitutes: Mapping[tuple[str, str], Mapping[str, Reading]] = dataclasses.field(
        default_factory=dict
    )
    overpowered: Mapping[tuple[str, str], Reading] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes it a row of a paper, see `row_of`."""
        return self.dataset, self.classifier, self.trained


@dataclasses.dataclass(frozen=True)
class VAECompared(Compared):
    """One number of these papers and ours; readings by the names in `columns`."""

    printed: PrintedVAE

    @property
    def columns(self) -> tuple[str, ...]:
        """The readings that its table has, the paper's own first."""
        p = self.printed
        every = LATENT if p.attack == "overpowered" else BLACK_BOX if p.substitute else WHITE_BOX
        return (CLEAN, *every[1:]) if p.system == CLEAN else every

    @property
    def expected(self) -> tuple[str, ...]:
        """The readings that can be measured; the worst case is derived from others."""
        if self.printed.system is None:
            return ()
        if self.printed.system in (CLEAN, UNDEFENDED):
            return self.columns[:1]
        return tuple(name for name in self.columns if name != WORST)


@dataclasses.dataclass(frozen=True)
class Averaged:
    """A printed average and ours over those of its cells that were measured.

    Attributes:
      printed: the paper's.
      cells: numbers it is the average of.
      columns: readings, as in `VAECompared`.
      means: by reading ours in percent, by how many points it exceeds the average of the paper's
        numbers in the same cells, and how many these are.
    """

    printed: Average
    cells: int
    columns: tuple[str, ...]
    means: Mapping[str, tuple[float, float, int]]


def row_of(number: PrintedVAE) -> tuple[str, str, tuple[str, ...]]:
    """The dataset, classifier and training attacks of the run that a number is about."""
    return number.dataset, number.classifier, number.trained


def read_sources(folder: pathlib.Path, paper: str) -> list[Source]:
    """The runs of a paper's defense in a folder: itself, those in it, and those one deeper.

    Raises:
      InputError: when there is none, two are the same row, or a file of theirs is damaged.
    """
    patterns = ("run.json", "*/run.json", "*/*/run.json")
    places = sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})
    runs = [(place, read_run(place)) for place in places]
    found = [_read_source(place, run) for place, run in runs if run.get("kind") == paper]
    if not found:
        raise InputError(
            f"{folder} holds no run of {NAMES[paper]}, nor do the folders in it; train one first "
            f"with `python -m train.{paper}`, or give the folder that it is in."
        )
    rows: dict[Any, Source] = {}
    for source in found:
        other = rows.setdefault(source.row, source)
        if other is not source:
            raise InputError(
                f"{other.folder} and {source.folder} are runs on the same dataset, classifier and "
                "training attacks, and a row of the paper is one run; leave one in the folder."
            )
    return found


def _read_source(folder: pathlib.Path, run: Mapping[str, Any]) -> Source:
    try:
        dataset, fingerprint, config = run["dataset"], run["fingerprint"], run["config"]
        classifier = config["classifier"]["architecture"]
        trained, variants = tuple(sorted(config["mixture"]["attacks"])), tuple(run["defenses"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'run.json'} is damaged; choose a new folder or delete this one."
        ) from error
    records = read_records(folder).values()
    substitutes = _read(folder, "black_box", fingerprint, _substitutes, {})
    overpowered, remarks = _read(folder, "overpowered", fingerprint, _overpowered, ({}, ()))
    return Source(
        folder=folder,
        dataset=dataset.removeprefix("folder:"),
        classifier=classifier,
        trained=trained,
        variants=variants,
        records=select(records, dataset=dataset, fingerprint=fingerprint),
        substitutes=substitutes,
        overpowered=overpowered,
        remarks=remarks,
    )


def _read(folder: pathlib.Path, name: str, fingerprint: str, parse: Any, absent: Any) -> Any:
    path = folder / f"{name}.json"
    if not path.is_file():
        return absent
    again = f"delete it and measure again with `python -m eval.{name} --run {folder}`."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same, found = content["fingerprint"] == fingerprint, parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{path} is damaged; {again}") from error
    if not same:
        raise InputError(f"{path} was measured on other data than its run has; {again}")
    return found


def _substitutes(content: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Reading]]:
    found: dict[tuple[str, str], dict[str, Reading]] = {}
    own, deployed = BLACK_BOX
    # Of several the last counts: the one with most images, and then with the first seed.
    for row in sorted(content["rows"], key=lambda row: (row["n"], -row["seed"])):
        if not same_eps(row["eps"], EPS):
            continue
        name, n = row["substitute"], row["n"]
        reading = deployed
        if row["oracle"] == UNDEFENDED:
            reading = own
            found[name, CLEAN] = {CLEAN: _counted(row["clean_undefended"], n)}
            found[name, UNDEFENDED] = {own: _counted(row["undefended"], n)}
        for variant, judged in row["variants"].items():
            here = found.setdefault((name, variant), {})
            here[reading] = _counted(judged["robust"], n, judged["interval"])
    return found


def _overpowered(
    content: Mapping[str, Any],
) -> tuple[dict[tuple[str, str], Reading], tuple[str, ...]]:
    if sorted(content["rhos"]) != RHOS:
        return {}, ()
    n, remarks = content["n"], []
    found: dict[tuple[str, str], Reading] = {}
    for variant, counted in content["variants"].items():
        if counted["accuracy"] is None or counted["original_accuracy"] is None:
            continue
        pooled = _counted(counted["accuracy"], n, counted["interval"])
        found["accuracy", variant] = pooled
        found["original_accuracy", variant] = _counted(counted["original_accuracy"], n)
        if counted["found"] and counted["changed"] is not None:
            remarks.append(
                f"The Overpowered attack on {variant} found an image in "
                f"{100 * counted['found']:.1f}% of its searches; {100 * counted['changed']:.1f}% "
                "of these show another class to the proxy, a classifier that no variant has."
            )
    return found, tuple(remarks)


def _counted(share: float, n: int, interval: Sequence[float] | None = None) -> Reading:
    low, high = interval or wilson_interval(round(share * n), n)
    return Reading(100 * share, n, (100 * low, 100 * high))


def compare(paper: str, sources: Sequence[Source], tables: Sequence[int]) -> list[VAECompared]:
    """Every accuracy of the given tables, with ours under each reading that was measured.

    A cell measured more than once counts with the most images, and then with the last settings.

    Raises:
      InputError: for a table that is not here.
    """
    unknown = sorted(set(tables) - set(TABLES[paper]))
    if unknown:
        known = ", ".join(map(str, TABLES[paper]))
        raise InputError(f"table {unknown[0]} is not one of those compared here; use {known}.")
    by_row = {source.row: source for source in sources}
    return [
        VAECompared(p, _readings(by_row.get(row_of(p)), p))
        for p in printed(paper)
        if p.table in tables
    ]


def _readings(source: Source | None, number: PrintedVAE) -> Mapping[str, Reading]:
    system = number.system
    if source is None or system is None:
        return {}
    if number.substitute is not None:
        return source.substitutes.get((number.substitute, system), {})
    if number.attack == "overpowered":
        reading = source.overpowered.get((number.row, system))
        return {} if reading is None else {number.attack: reading}
    # All variants have the same undefended classifier, so any of them tells of it.
    alone = system in (CLEAN, UNDEFENDED)
    found = source.records if alone else select(source.records, selector=system)
    names = (CLEAN,) if system == CLEAN else WHITE_BOX[:1] if alone else WHITE_BOX
    readings = {}
    for name in names:
        threat = "none" if name == CLEAN else name
        record = find_cell(found, threat, number.attack, number.eps)
        if record is not None:
            share = record["selector_accuracy" if alone else "robust_accuracy"]
            readings[name] = _counted(share, record["n"])
    return readings


def average(paper: str, compared: Sequence[VAECompared]) -> list[Averaged]:
    """The printed averages over what is compared, with ours."""
    found = []
    for printed_average in averages(paper):
        place = printed_average.table, printed_average.dataset, printed_average.column
        cells = [
            c for c in compared if (c.printed.table, c.printed.dataset, c.printed.column) == place
        ]
        if not cells:
            continue
        means = {}
        for name in cells[0].columns:
            ours = [c.readings[name].percent for c in cells if name in c.readings]
            points = [c.differences[name] for c in cells if name in c.readings]
            if ours:
                count = len(ours)
                means[name] = sum(ours) / count, sum(points) / count, count
        found.append(Averaged(printed_average, len(cells), cells[0].columns, means))
    return found
