"""Attack every defense of a run under every threat model, and print what holds.

    python -m eval.robustness --run DIR --attacks fgsm,bim,pgd,cw --eps 9/255,25/255 --threats all

Each finished cell is appended to DIR/robustness.jsonl; the same command again measures only what
is missing. DIR/report.md has the table and the pictures.
"""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.evaluation import SweepConfig
from memdef_jax.evaluation.program import evaluate_run, load_dataset


def main(
    run: pathlib.Path,
    attacks: str = "fgsm,bim,pgd,cw",
    eps: str = "9/255,25/255",
    threats: str = "all",
    count: int = 500,
    cw_count: int = 100,
    cw_search_steps: int = 5,
    cw_steps: int = 1000,
    cw_learning_rate: float = 5e-3,
    batch_size: int = 250,
    seed: int = 0,
    dataset: str | None = None,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> None:
    """Measure the robustness of a run's defenses.

    Args:
      run: folder that train.memory_defense filled.
      attacks: comma-separated, of fgsm, bim, pgd, cw; with the paper's settings.
      eps: comma-separated Linf budgets in units of [0, 1] pixels.
      threats: all, or some of transfer, grey_box, frozen_mask, frozen_mask_true, adaptive.
      count: test images; 0 for all.
      cw_count: test images for CW-L2.
      cw_search_steps: steps of CW's binary search.
      cw_steps: iterations in each.
      cw_learning_rate: of CW's Adam.
      batch_size: images attacked at once.
      seed: of the attacks' random starts.
      dataset: where the data are, for a run on a folder of images.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """
    config = SweepConfig(
        attacks=console.names(attacks),
        eps=console.budgets(eps),
        threats=console.names(threats),
        count=count or None,
        cw_count=cw_count,
        cw_search_steps=cw_search_steps,
        cw_steps=cw_steps,
        cw_learning_rate=cw_learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    defenses = load_run(run)
    loaded = load_dataset(run, defenses, dataset, data_dir, raw_dir)
    console.show(evaluate_run(run, defenses, loaded, config, console.ConsoleReporter()))


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
