"""The tables of the VAE defenses' and the denoiser's papers beside what runs measured.

A row of these papers is a run: a dataset, a classifier and the attacks its purifier was trained on.
The papers attack the undefended classifier, or a substitute of it, and never the purifier; that is
the first reading of each number. Further ones are those of attackers who know the whole pipeline.
A run on other images that go by the name of a paper's dataset, see `STAND_INS`, has numbers of its
own, which reproduce nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers.published_vae import (
    CLEAN,
    STAND_INS,
    TABLES,
    UNDEFENDED,
    Average,
    PrintedVAE,
    averages,
    printed,
)
from memdef_jax.evaluation.papers.tables import Compared, Reading, find_cells
from memdef_jax.evaluation.papers.vae_sources import (
    BLACK_BOX,
    LATENT,
    WHITE_BOX,
    Source,
    counted,
)
from memdef_jax.evaluation.sweeps.records import select
from memdef_jax.evaluation.sweeps.threats import WORST


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

    @property
    def reproduced_by(self) -> tuple[str, ...]:
        """The readings that come close, see `Compared`; none on other data than the paper's."""
        return () if self.printed.dataset in STAND_INS else super().reproduced_by

    @property
    def verdict(self) -> str:
        """As `Compared`, and on other data that."""
        other = self.printed.dataset in STAND_INS and self.readings
        return "other data" if other else super().verdict


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
    numbers = [p for p in printed(paper) if p.table in tables]
    for dataset in _stand_ins([source.dataset for source in sources]):
        original, _ = STAND_INS[dataset]
        numbers += [
            dataclasses.replace(p, dataset=dataset)
            for p in numbers
            if p.dataset == original and p.system is not None
        ]
    return [VAECompared(p, _readings(by_row.get(p.row_key), p)) for p in numbers]


def _stand_ins(datasets: Sequence[str]) -> list[str]:
    """Those that stand in for a paper's dataset, once each."""
    return [dataset for dataset in dict.fromkeys(datasets) if dataset in STAND_INS]


def _readings(source: Source | None, number: PrintedVAE) -> Mapping[str, Reading]:
    system = number.system
    if source is None or system is None:
        return {}
    if number.substitute is not None:
        return source.substitutes.get((number.substitute, system), {})
    if number.attack == "overpowered":
        return source.overpowered.get((number.row, system), {})
    # All variants have the same undefended classifier, so any of them tells of it.
    alone = system in (CLEAN, UNDEFENDED)
    found = source.records if alone else select(source.records, selector=system)
    threats = ("none",) if system == CLEAN else WHITE_BOX[:1] if alone else WHITE_BOX
    readings = {}
    for threat, record in find_cells(found, threats, number.attack, number.eps).items():
        share = record["selector_accuracy" if alone else "robust_accuracy"]
        readings[CLEAN if threat == "none" else threat] = counted(share, record["n"])
    return readings


def average(paper: str, compared: Sequence[VAECompared]) -> list[Averaged]:
    """The printed averages over what is compared, with ours."""
    found = []
    expected = list(averages(paper))
    for dataset in _stand_ins([c.printed.dataset for c in compared]):
        original, _ = STAND_INS[dataset]
        expected += [
            dataclasses.replace(a, dataset=dataset) for a in expected if a.dataset == original
        ]
    for printed_average in expected:
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
