"""Where clean and attacked images lie in a defense's latent space, by t-SNE or UMAP.

    python -m eval.latent --run DIR
    python -m eval.latent --run DIR --selector combined --attack fgsm --eps 0.3 --method umap
    python -m eval.latent --run DIR --selector proximity_distance --attack overpowered

Of a Memory Defense Figure 3 of its paper, the bottleneck with and without the memory; of a MAD-VAE
or Defense-VAE Figures 1 to 4 of MAD-VAE: images, latent vectors and purified images; and, with the
search in latent space of eval.overpowered, Figures 5 and 6.

About a minute on two CPU cores, where that search needs --draws 10 --steps 100 and a few minutes.
The figure is DIR/latent.png, its points are in DIR/latent.json.
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
from memdef_jax.evaluation.beyond.latent_attack import LatentAttackConfig, choose
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
    rho: float = 1.0,
    draws: int = 100,
    steps: int = 1000,
    seed: int = 0,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 - frozen
) -> None:
    """Show where clean and attacked images lie in the latent space.

    Args:
      run: folder that a training program filled.
      selector: which of its defenses; by default the last.
      attack: crafted on the undefended classifier, with the paper's settings; or overpowered, a
        search in the latent space of the deployed pipeline.
      eps: its Linf budget in units of [0, 1] pixels; the search has none.
      count: test images; 0 for all.
      method: tsne as in Memory Defense's paper, or umap as in MAD-VAE's.
      rho: L2 length of the noise that a success of the search must survive.
      draws: of that noise, for each iteration and image.
      steps: iterations of the search.
      seed: of the attack and the method.
      where: where its data are.
    """
    project = latent.projection(method, seed)
    budget, searched = single(console.budgets(eps)), attack == "overpowered"
    search = LatentAttackConfig(rhos=(rho,), draws=draws, steps=steps, seed=seed)
    if not searched:
        presets.named(attack, budget)  # before any work: the name may be unknown
    defenses = load_run(run)
    name = selector or list(defenses)[-1]
    if name not in defenses:
        raise InputError(f"{run} has no defense {name!r}; use one of {', '.join(defenses)}.")
    (defense,) = (choose(defenses, (name,)) if searched else {name: defenses[name]}).values()
    loaded = load_dataset(run, defenses, where)
    crafted = search.attack(rho) if searched else presets.named(attack, budget, defense.kind)
    latents = latent.collect(defense, subset(loaded.test, count or None), crafted, seed)
    embedded = latent.embed(latents, project)
    names = list(loaded.info.class_names)
    settings = {"selector": name, "attack": attack, "method": method, "seed": seed}
    settings |= {"rho": rho, **search.settings()} if searched else {"eps": eps}
    content = {**embedded, "class_names": names, **settings}
    write_atomic(run / "latent.json", json.dumps(content))
    spaces = {latent.SPACES[space]: points for space, points in embedded.items()}
    write_atomic(run / "latent.png", figures.scatter(spaces, names))
    print(f"figure: {run / 'latent.png'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
