"""Where clean and attacked images lie in a defense's latent space, by t-SNE or UMAP.

    python -m eval.latent --run DIR
    python -m eval.latent --run DIR --selector combined --attack fgsm --eps 0.3 --method umap

Of a Memory Defense Figure 3 of its paper, the bottleneck with and without the memory; of a MAD-VAE
or Defense-VAE Figures 1 to 4 of MAD-VAE: images, latent vectors and purified images.

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
from memdef_jax.evaluation.papers import latent
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.evaluation.reports import figures
from memdef_jax.evaluation.sweeps.crafting import single
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path,
    selector: str | None = None,
    attack: str = "pgd",
    eps: str = "25/255",
    count: int = 500,
    method: Literal["tsne", "umap"] = "tsne",
    seed: int = 0,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 - frozen
) -> None:
    """Show where clean and attacked images lie in the latent space.

    Args:
      run: folder that train.memory_defense filled.
      selector: which of its defenses; by default the last.
      attack: crafted on the undefended classifier, with the paper's settings.
      eps: its Linf budget in units of [0, 1] pixels.
      count: test images; 0 for all.
      method: tsne as in the paper, or umap.
      seed: of the attack and the method.
      where: where its data are.
    """
    project = latent.projection(method, seed)
    budget = single(console.budgets(eps))
    presets.named(attack, budget)  # before any work: the name may be unknown
    defenses = load_run(run)
    name = selector or list(defenses)[-1]
    if name not in defenses:
        raise InputError(f"{run} has no defense {name!r}; use one of {', '.join(defenses)}.")
    loaded = load_dataset(run, defenses, where)
    crafted = presets.named(attack, budget, defenses[name].kind)
    latents = latent.collect(defenses[name], subset(loaded.test, count or None), crafted, seed)
    embedded = latent.embed(latents, project)
    names = list(loaded.info.class_names)
    settings = {"selector": name, "attack": attack, "eps": eps, "method": method, "seed": seed}
    content = {**embedded, "class_names": names, **settings}
    write_atomic(run / "latent.json", json.dumps(content))
    spaces = {latent.SPACES[space]: points for space, points in embedded.items()}
    write_atomic(run / "latent.png", figures.scatter(spaces, names))
    print(f"figure: {run / 'latent.png'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
