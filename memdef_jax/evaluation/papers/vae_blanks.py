"""What is blank in the comparison of `vae_tables`, and the commands that measure it."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence

from memdef_jax.evaluation.papers.published_vae import (
    CLEAN,
    STAND_INS,
    UNDEFENDED,
    USUAL,
    Row,
)
from memdef_jax.evaluation.papers.vae_sources import LATENT, Source
from memdef_jax.evaluation.papers.vae_tables import VAECompared

Command = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Blank:
    """A row of a paper of which numbers are missing.

    Attributes:
      row: the run that they come from.
      folder: of that run, which may not be there yet.
      commands: arguments for Python that train and measure it, in their order: "-m", the program,
        and what it takes.
      like: folder of a run that has its classifier, if it is there when this one is trained.
    """

    row: Row
    folder: pathlib.Path
    commands: tuple[Command, ...]
    like: pathlib.Path | None = None

    def __str__(self) -> str:
        """One line for a shell."""
        return ", then ".join(f"`python {shlex.join(command)}`" for command in self.commands)


def blanks(
    folder: pathlib.Path, paper: str, sources: Sequence[Source], compared: Sequence[VAECompared]
) -> list[Blank]:
    """The rows that lack numbers of ours, in the order of the paper.

    What a run cannot give, since it lacks the variant, is left out; see `untrained`.

    Args:
      folder: where runs are, and new ones shall be.
      paper: one of `published_vae.TABLES`.
      sources: the runs that are there.
      compared: the numbers in question.
    """
    measured = {source.row: source for source in sources}
    ours = [c for c in compared if c.printed.system is not None]
    found = []
    for row in dict.fromkeys(c.printed.row_key for c in ours):
        source = measured.get(row)
        absent = () if source is None else untrained(source, compared)
        blank = [
            c
            for c in ours
            if c.printed.row_key == row
            and c.printed.system not in absent
            and not set(c.expected) <= set(c.readings)
        ]
        if blank:
            found.append(_blank(folder, paper, row, source, blank))
    folders = {blank.row: blank.folder for blank in found}
    folders |= {row: source.folder for row, source in measured.items()}
    usual = [(blank, blank.row._replace(trained=USUAL)) for blank in found]
    return [
        blank if blank.row == row else dataclasses.replace(blank, like=folders.get(row))
        for blank, row in usual
    ]


def untrained(source: Source, compared: Sequence[VAECompared]) -> list[str]:
    """Variants that the paper has and a run does not, of which numbers are missing."""
    systems = dict.fromkeys(
        c.printed.system
        for c in compared
        if c.printed.row_key == source.row and not set(c.expected) <= set(c.readings)
    )
    have = (CLEAN, UNDEFENDED, *source.variants)
    return [name for name in systems if name is not None and name not in have]


def _blank(
    folder: pathlib.Path,
    paper: str,
    row: Row,
    source: Source | None,
    cells: Sequence[VAECompared],
) -> Blank:
    usual = row.trained == USUAL or paper not in ("defense_vae", "mad_vae")
    kind = () if row.kind == paper else (row.kind,)
    name = "-".join((*kind, row.dataset, row.classifier, *(() if usual else row.trained)))
    run = _free(folder / name) if source is None else source.folder
    systems = {c.printed.system for c in cells}
    found = [] if source and source.finished else [_training(paper, row, run, systems)]
    substitutes = dict.fromkeys(c.printed.substitute for c in cells if c.printed.substitute)
    if any(c.printed.substitute is None and c.printed.attack not in LATENT for c in cells):
        found.append(f"-m eval.robustness --run {shlex.quote(str(run))} --suite {paper}")
    if substitutes:
        names = " ".join(substitutes)
        found.append(f"-m eval.black_box --run {shlex.quote(str(run))} --substitutes {names}")
    for reading, target in zip(LATENT, ("", " --target classifier")):
        if any(reading in c.expected and reading not in c.readings for c in cells):
            found.append(f"-m eval.overpowered --run {shlex.quote(str(run))}{target}")
    return Blank(row, run, tuple(tuple(shlex.split(command)) for command in found))


def _free(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or one with a number where another run has its name."""
    found, number = folder, 2
    while (found / "run.json").exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def _training(paper: str, row: Row, run: pathlib.Path, systems: set[str | None]) -> str:
    """The command that trains a row's run."""
    data = f"folder:{row.dataset}" if row.dataset in STAND_INS else row.dataset
    if row.dataset == "celeba":  # none of the datasets by name; the purifier takes 32 pixels
        data = "folder:celeba --image-size 32"
    elif paper == "feature_denoiser" and "cifar10" in row.dataset:
        data += " --gray --image-size 28"
    command = f"-m train.{row.kind} --run {shlex.quote(str(run))} --dataset {data}"
    if row.kind == "classifier":
        eps = row.trained[0].split()[1]
        return (
            f"{command} --config.architecture {row.classifier} --config.variants linear "
            f"--config.training.eps {eps} --config.training.clean-share 0"
        )
    if paper == "feature_denoiser":  # whose settings have its classifier
        return command
    command += f" --config.classifier.architecture {row.classifier}"
    if row.trained != USUAL:
        command += f" --config.mixture.attacks {' '.join(row.trained)}"
        if row.kind == "defense_vae" and "e2e" not in systems:
            command += " --config.variants vae rec"
    return command
