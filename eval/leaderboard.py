"""Rank every defense of every run on a dataset by what holds against one set of attacks.

    python -m eval.leaderboard --dataset fashion_mnist --runs runs --count 200
    python -m eval.leaderboard --runs runs --only demo vae/fashion-a --no-measure

What is missing is measured cell by cell, each run's in its own folder, and the same command goes
on where it was stopped. The board is in leaderboard.html, leaderboard.md and leaderboard.json.
"""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.evaluation.leaderboard.program import leaderboard
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.program import Where
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.evaluation.sweeps.crafting import single

_WORDS = ("run", "variant", "defense", "checks", "beside the best")


def main(
    runs: pathlib.Path = pathlib.Path("runs"),
    dataset: str = "fashion_mnist",
    count: int = 200,
    only: tuple[str, ...] = (),
    measure: bool = True,
    examine: bool = True,
    seeds_together: bool = False,
    eps: str = "25/255",
    l2_eps: float = 1.0,
    batch_size: int = 250,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> None:
    """Measure what is missing and print the board.

    Args:
      runs: folder of runs, at most two folders below it.
      dataset: that the runs were trained on; for images of your own folder:PATH.
      count: test images.
      only: names of runs, as the board prints them.
      measure: without it, only what the runs' folders have already is shown.
      examine: also look for reasons to doubt the numbers; takes minutes a run.
      seeds_together: show defenses that differ in nothing but the seed as one.
      eps: Linf budget, such as 25/255;
      l2_eps: L2 budget.
      batch_size: images attacked at once.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """
    budget = single(console.budgets(eps))
    shown, path = leaderboard(
        runs,
        dataset,
        Protocol(count=count, linf=budget, l2=l2_eps, batch_size=batch_size),
        console.ConsoleReporter(),
        only=only,
        measured=measure,
        examined=examine,
        seeds_together=seeds_together,
        where=Where(data_dir=data_dir, raw_dir=raw_dir),
        command=console.command(),
    )
    print(as_text(shown.heading, shown.header, shown.lines, words=_WORDS))
    print("\n".join([*shown.content["headline"], *shown.content["remarks"]]))
    print(f"leaderboard: {path}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), together=True)
