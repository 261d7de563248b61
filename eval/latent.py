"""Where clean and attacked images lie in a defense's latent space, by t-SNE or UMAP.

    python -m eval.latent --run DIR
    python -m eval.latent --run DIR --selector combined --attack fgsm --eps 0.3 --method umap
    python -m eval.latent --run DIR --selector proximity_distance --attack overpowered

Of a Memory Defense Figure 3 of its paper, the bottleneck with and without the memory; of a MAD-VAE
or Defense-VAE Figures 1 to 4 of MAD-VAE: images, latent vectors and purified images; and, with the
search in latent space of eval.overpowered, Figures 5 and 6.

About a minute on two CPU cores, where that search needs --draws 10 --steps 100 and a few minutes.
The figure is DIR/latent-SELECTOR-ATTACK.png, its points are in the JSON file beside it.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.evaluation.papers import latent_figure
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.evaluation.sweeps.crafting import single


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
    config = latent_figure.LatentFigureConfig(
        attack=attack,
        eps=single(console.budgets(eps)),
        count=count or None,
        method=method,
        rho=rho,
        draws=draws,
        steps=steps,
        seed=seed,
    )
    defenses = load_run(run)
    name = latent_figure.chosen(defenses, selector, config)
    loaded = load_dataset(run, defenses, where)
    header, lines, path = latent_figure.draw(run, name, defenses[name], loaded, config)
    title = f"{name}, {attack}: nearest neighbours that have an image's label, %"
    print(f"{as_text(title, header, lines)}\nfigure: {path}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
