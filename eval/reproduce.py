"""Train and measure every row of a paper's tables that is blank, one after the other.

    python -m eval.reproduce --paper defense_vae --run runs/vae --datasets mnist fashion_mnist
    python -m eval.reproduce --paper feature_denoiser --run runs/fmd --preset paper --count 0

Runs the commands that eval.paper_tables prints, each in a process of its own whose output goes to
DIR/reproduce/<row>.log. Rows that differ in their training attacks alone share one classifier. The
same command again goes on where it was stopped; a row that fails is said, and the others go on. The
tables are printed by eval.paper_tables.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers import reproduction


def main(
    run: pathlib.Path,
    paper: Literal["defense_vae", "mad_vae", "feature_denoiser"],
    table: tuple[int, ...] | None = None,
    datasets: tuple[str, ...] = (),
    preset: str = "quick",
    count: int = 500,
    cw_count: int = 100,
    dry_run: bool = False,
) -> None:
    """Fill a paper's tables.

    Args:
      run: folder of the runs, one a row.
      paper: whose tables.
      table: which of them; all by default.
      datasets: only rows on these, for example mnist fashion_mnist; all by default.
      preset: of the training; quick takes minutes a row on a CPU, paper is for a GPU.
      count: test images of each measurement; 0 for all.
      cw_count: test images for CW-L2.
      dry_run: print the commands and run none.
    """
    options = reproduction.Options(preset=preset, count=count, cw_count=cw_count)
    jobs = reproduction.plan(run, paper, table, datasets, options)
    if dry_run:
        print("\n".join(str(job) for job in jobs))
        return
    failed = reproduction.work_off(jobs, run / "reproduce", lambda line: print(line, flush=True))
    print(f"tables: python -m eval.paper_tables --paper {paper} --run {run}")
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} rows failed: {', '.join(failed)}.")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
