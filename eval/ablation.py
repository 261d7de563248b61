"""Vary what the Memory Defense paper leaves open, one setting at a time, from the quick preset.

    python -m eval.ablation --dataset fashion_mnist --factors beta memory_rows

All factors take about half an hour on two CPU cores. Each variant has a folder below --run, which
every other program takes as a run; the same command again goes on where it was stopped. The table
stands in --run/ablation.md and --run/ablation.json.
"""

from __future__ import annotations

import json
import pathlib

import tyro

from memdef_jax import console, data
from memdef_jax.defenses.selector import Recipe
from memdef_jax.evaluation import SweepConfig
from memdef_jax.evaluation.papers.ablation import FACTORS, ablate, as_table
from memdef_jax.evaluation.papers.stacks import study_config
from memdef_jax.evaluation.reports.layout import as_markdown, as_text
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path = pathlib.Path("runs/ablation"),
    dataset: str = "fashion_mnist",
    factors: tuple[str, ...] = tuple(FACTORS),
    train_size: int | None = None,
    epochs: int | None = None,
    recipe: Recipe = "benign",
    attacks: str = "fgsm",
    eps: str = "25/255",
    count: int = 500,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> None:
    """Train and measure variants of the stack over one classifier-A.

    Args:
      run: folder for all of them.
      dataset: as for train.memory_defense.
      factors: settings of the stack to vary.
      train_size: first training images, all by default.
      epochs: of every training, by default the preset's, more for few images.
      recipe: how the shared classifier-A is trained.
      attacks: comma-separated, on autoencoder and classifier-B with the mask frozen.
      eps: comma-separated Linf budgets in units of [0, 1] pixels.
      count: test images; 0 for all.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """
    measured = SweepConfig(
        attacks=console.names(attacks), eps=console.budgets(eps), count=count or None
    )
    loaded = data.load(dataset, data_dir=data_dir, raw_dir=raw_dir)
    config = study_config(loaded, recipe, train_size, epochs)
    rows = ablate(config, factors, loaded, run, measured, console.ConsoleReporter())
    header, lines = as_table(rows)
    stopped = [f"{row['variant']}: {row['stopped']}" for row in rows if row["stopped"]]
    text = "\n".join(["# Ablation of the stack", "", as_markdown(header, lines), "", *stopped, ""])
    write_atomic(run / "ablation.md", text)
    write_atomic(run / "ablation.json", json.dumps(rows, indent=1))
    print(as_text(f"Ablation on {loaded.info.name}, {recipe} classifier-A", header, lines))
    print("\n".join([*stopped, f"ablation: {run / 'ablation.md'}"]))


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
