"""Figure 3 of the Memory Defense paper: t-SNE of the bottleneck with and without the memory.

    python -m eval.latent --run DIR

About a minute on two CPU cores. The figure is DIR/latent.png, its points are in DIR/latent.json.
"""

from __future__ import annotations

import json
import pathlib
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.attacks import presets
from memdef_jax.checks import InputError
from memdef_jax.data import subset
from memdef_jax.defenses import load_run
from memdef_jax.evaluation import figures, latent
from memdef_jax.evaluation.crafting import single
from memdef_jax.evaluation.program import load_dataset
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path,
    selector: str | None = None,
    attack: str = "pgd",
    eps: str = "25/255",
    count: int = 500,
    method: Literal["tsne", "umap"] = "tsne",
    seed: int = 0,
    dataset: str | None = None,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> None:
    """Show where clean and attacked images lie in the latent space.

    Args:
      run: folder that train.memory_defense filled.
      selector: which of its defenses; by default the adversarially trained one if there is one.
      attack: crafted on classifier-A, with the paper's settings.
      eps: its Linf budget in units of [0, 1] pixels.
      count: test images; 0 for all.
      method: tsne as in the paper, or umap.
      seed: of the attack and the method.
      dataset: where the data are, for a run on a folder of images.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """
    project = latent.projection(method, seed)
    crafted = presets.named(attack, single(console.budgets(eps)))
    defenses = load_run(run)
    name = selector or list(defenses)[-1]
    if name not in defenses:
        raise InputError(f"{run} has no defense {name!r}; use one of {', '.join(defenses)}.")
    loaded = load_dataset(run, defenses, dataset, data_dir, raw_dir)
    latents = latent.collect(defenses[name], subset(loaded.test, count or None), crafted, seed)
    embedded = latent.embed(latents, project)
    names = list(loaded.info.class_names)
    settings = {"selector": name, "attack": attack, "eps": eps, "method": method, "seed": seed}
    content = {**embedded, "class_names": names, **settings}
    write_atomic(run / "latent.json", json.dumps(content))
    spaces = {title: embedded[space] for space, title in latent.SPACES.items()}
    write_atomic(run / "latent.png", figures.scatter(spaces, names))
    print(f"figure: {run / 'latent.png'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
