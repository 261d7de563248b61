"""Working off what is blank in a paper's tables, each command in a process of its own.

A process of its own, because each row is another model: what one compiled is of no use to the next,
and a failure is that row's alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from memdef_jax import preemption
from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers.published_vae import TABLES, printed
from memdef_jax.evaluation.papers.vae_blanks import Blank, blanks
from memdef_jax.evaluation.papers.vae_sources import read_sources
from memdef_jax.evaluation.papers.vae_tables import compare
from memdef_jax.evaluation.runs import find_runs
from memdef_jax.files import check_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is added to the commands.

    Attributes:
      preset: of the training.
      count: test images of every measurement, 0 for all.
      cw_count: test images for CW-L2.
    """

    preset: str = "quick"
    count: int = 500
    cw_count: int = 100

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"count {self.count} is negative; use 1 or more, or 0 for all.")
        if self.cw_count < 1:
            raise InputError(f"cw_count {self.cw_count} is below 1; use 1 or more.")

    def complete(self, command: Sequence[str]) -> tuple[str, ...]:
        """A command of `vae_blanks` with these options."""
        program = command[1]
        if program.startswith("train."):
            return (*command, "--preset", self.preset)
        own = {
            "eval.robustness": ("--cw-count", str(self.cw_count), "--no-examine"),
        }.get(program, ())
        return (*command, "--count", str(self.count), *own)


def plan(
    folder: pathlib.Path,
    paper: str,
    tables: Sequence[int] | None,
    datasets: Sequence[str],
    options: Options,
) -> list[Blank]:
    """The rows to be worked off, with their whole commands.

    Args:
      folder: of the runs; it need not be there.
      paper: one of `published_vae.TABLES`.
      tables: of it; None for all.
      datasets: rows on others are left out; all if empty.
      options: added to the commands.

    Raises:
      InputError: for a table or dataset that the paper does not have, or as `read_sources`.
    """
    known = list(dict.fromkeys(number.dataset for number in printed(paper)))
    if unknown := set(datasets) - set(known):
        raise InputError(
            f"{paper} has no table on {', '.join(sorted(unknown))}; use some of {', '.join(known)}."
        )
    there = folder.is_dir() and any(run.get("kind") == paper for _, run in find_runs(folder))
    sources = read_sources(folder, paper) if there else []
    compared = compare(paper, sources, TABLES[paper] if tables is None else tables)
    found = blanks(folder, paper, sources, compared)
    found = [blank for blank in found if not datasets or blank.row.dataset in datasets]
    return [
        dataclasses.replace(blank, commands=tuple(map(options.complete, blank.commands)))
        for blank in sorted(found, key=lambda blank: blank.like is not None)  # what others share
    ]


def work_off(rows: Sequence[Blank], logs: pathlib.Path, say: Callable[[str], None]) -> list[str]:
    """Run the commands of all rows, and return the names of those that failed.

    A row ends with its first command that fails. Interrupted, it ends the command that is running
    as it was ended itself, so that a training saves first.

    Args:
      rows: from `plan`.
      logs: folder that gets a file a row, to which the commands write.
      say: told in a line of what begins and how it ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    check_writable(logs)
    failed = []
    began = time.perf_counter()
    for place, row in enumerate(rows):
        name = row.folder.name
        log = logs / f"{name}.log"
        for command in row.commands:
            started = time.perf_counter()
            say(f"row {place + 1} of {len(rows)}, {name}: {command[1]} ...")
            status = _run((*command, *_taken_over(row, command)), log)
            if status:
                failed.append(name)
                say(f"  failed with status {status}: {_last_line(log)} (all of it: {log})")
                break
            say(f"  done in {time.perf_counter() - started:.0f} s")
        left = (time.perf_counter() - began) / (place + 1) * (len(rows) - place - 1)
        say(f"  about {left / 60:.0f} minutes left")
    return failed


def _taken_over(row: Blank, command: Sequence[str]) -> tuple[str, ...]:
    """How a training is told of another row's run, if that is there by now."""
    there = row.like and (row.like / "run.json").is_file()
    return ("--like", str(row.like)) if there and command[1].startswith("train.") else ()


def _run(command: Sequence[str], log: pathlib.Path) -> int:
    with log.open("ab") as file:
        process = subprocess.Popen((sys.executable, *command), stdout=file, stderr=file)
        try:
            return process.wait()
        except (KeyboardInterrupt, preemption.Preempted):
            process.terminate()
            process.wait()
            raise


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
