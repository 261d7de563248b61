"""From a folder of runs to the board: measure what is missing, collect, rank, write."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from memdef_jax.checks import InputError
from memdef_jax.defenses import load_run
from memdef_jax.evaluation.leaderboard.board import Board, board, write
from memdef_jax.evaluation.leaderboard.entries import Entry, collect, measure, runs_on
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.leaderboard.ranking import rank
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.files import check_writable
from memdef_jax.training import Reporter


def leaderboard(
    folder: pathlib.Path,
    dataset: str,
    protocol: Protocol,
    reporter: Reporter,
    *,
    only: Sequence[str] = (),
    measured: bool = True,
    examined: bool = True,
    seeds_together: bool = False,
    where: Where = Where(),  # noqa: B008 - frozen
    command: str = "",
) -> tuple[Board, pathlib.Path]:
    """Rank the defenses of every finished run on a dataset, and write the board.

    A run that cannot be measured or read is left out, and the board says why.

    Args:
      folder: of the runs; the board is written there.
      dataset: as in `data.load`.
      protocol: what every defense is attacked with.
      reporter: told of progress.
      only: names of runs; all if empty.
      measured: measure what is missing first; else only what is there is shown.
      examined: also doubt each evaluation while measuring, see `examine`.
      seeds_together: one row for defenses that differ in nothing but the seed of their training.
      where: the data are; its `dataset` is not looked at.
      command: what the user typed, for the record.

    Returns:
      The board and the path of its page.

    Raises:
      InputError: when there is no run on the dataset, or nothing of any can be shown.
    """
    runs = runs_on(folder, dataset, only)
    check_writable(folder)
    # A run remembers which dataset it was trained on, but not where a folder of images is.
    where = dataclasses.replace(where, dataset=dataset if ":" in dataset else None)
    entries: list[Entry] = []
    remarks: list[str] = []
    for number, run in enumerate(runs, 1):
        try:
            if measured:
                reporter.note(f"run {number} of {len(runs)}: {run.name}")
                defenses = load_run(run.folder)
                loaded = load_dataset(run.folder, defenses, where)
                examination = protocol.examination() if examined else None
                measure(run, defenses, loaded, protocol, reporter, examination)
            entries += collect(run, protocol)
        except InputError as error:
            remarks.append(f"{run.name}: {error}")
    if not entries:
        raise InputError(f"no run can be shown; {remarks[0]}")
    ranked = rank(entries, protocol, seeds_together)
    if len({row.data for row in ranked}) > 1:  # of another size, or turned gray
        remarks.append(
            f"Not all rows are on the same images of {dataset}; those on others than the first "
            "row's are not compared with it, and their places mean little."
        )
    shown = board(ranked, protocol, dataset, remarks, command)
    return shown, write(shown, folder)
