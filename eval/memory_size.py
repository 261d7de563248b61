"""Figure 4 of the Memory Defense paper: reconstruction error against the size of the memory.

    python -m eval.memory_size --dataset fashion_mnist --rows 10 50 100 500 1000

Trains one classifier-A a dataset and a stack a size with the quick preset, about two minutes each
on two CPU cores; the same command again goes on where it was stopped. The figure is
--run/memory_size.png, all errors are in --run/memory_size.json.
"""

from __future__ import annotations

import json
import pathlib

import tyro

from memdef_jax import console, data
from memdef_jax.defenses.selector import Recipe
from memdef_jax.evaluation.papers import memory_size
from memdef_jax.evaluation.papers.stacks import study_config
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.evaluation.sweeps.crafting import single
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path = pathlib.Path("runs/memory_size"),
    dataset: tuple[str, ...] = ("fashion_mnist",),
    rows: tuple[int, ...] = (10, 50, 100, 500, 1000),
    train_size: int | None = None,
    epochs: int | None = None,
    recipe: Recipe = "benign",
    attacks: str = "fgsm,pgd",
    eps: str = "25/255",
    count: int = 500,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> None:
    """Train stacks with memories of several sizes over one classifier-A.

    Args:
      run: folder for all of them.
      dataset: one or more, each a column of the figure.
      rows: memory sizes N.
      train_size: first training images, all by default.
      epochs: of every training, by default the preset's, more for few images.
      recipe: how the shared classifier-A is trained.
      attacks: comma-separated, crafted on classifier-A.
      eps: their Linf budget in units of [0, 1] pixels.
      count: test images; 0 for all.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """
    budget = single(console.budgets(eps))
    found = {}
    for name in dataset:
        loaded = data.load(name, data_dir=data_dir, raw_dir=raw_dir)
        found[loaded.info.name] = memory_size.memory_sizes(
            study_config(loaded, recipe, train_size, epochs), rows, loaded, run / loaded.info.name,
            attacks=console.names(attacks), eps=budget, count=count or None,
            reporter=console.ConsoleReporter(),
        )  # fmt: skip
    write_atomic(run / "memory_size.png", memory_size.draw(found))
    numbers = {name: memory_size.as_json(sizes) for name, sizes in found.items()}
    write_atomic(run / "memory_size.json", json.dumps(numbers, indent=1))
    for name, sizes in found.items():
        header, lines = memory_size.as_table(sizes)
        print(as_text(f"Squared reconstruction error on {name}, in 1e-3", header, lines))
    print(f"figure: {run / 'memory_size.png'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
