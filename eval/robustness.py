"""Attack every defense of a run under every threat model, and print what holds.

    python -m eval.robustness --run DIR --suite adaptive --eps 9/255,25/255
    python -m eval.robustness --run DIR --attacks fgsm,bim,pgd,cw --threats all

Each finished cell is appended to DIR/robustness.jsonl; the same command again measures only what
is missing, and what other suites measured on as many images stays in the report. Tables and
pictures are in DIR/report.html and DIR/report.md.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.defenses.vae.vae_defense import with_batch_statistics
from memdef_jax.evaluation import SUITES, SweepConfig
from memdef_jax.evaluation.program import Where, evaluate_run, examination_for, load_dataset


def main(
    run: pathlib.Path,
    suite: Literal[
        "paper", "defense_vae", "mad_vae", "feature_denoiser", "standard", "adaptive", "quick"
    ] = "paper",
    attacks: str | None = None,
    eps: str | None = None,
    threats: str | None = None,
    count: int = 500,
    cw_count: int = 100,
    cw_search_steps: int | None = None,
    cw_steps: int | None = None,
    cw_learning_rate: float | None = None,
    batch_size: int = 250,
    examine: bool = True,
    seeds: tuple[int, ...] = (0,),
    batch_statistics: bool = False,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 - frozen
) -> None:
    """Measure the robustness of a run's defenses.

    Args:
      run: folder that a training filled.
      suite: paper (Memory Defense's attacks and settings, every threat model), defense_vae,
        mad_vae or feature_denoiser (their attacks and settings), standard (AutoAttack), adaptive
        (what fits the defense best, and curves over eps) or quick.
      attacks: comma-separated, in place of the suite's: fgsm, rfgsm, bim, pgd, mifgsm, cw, apgd,
        apgd_margin, autoattack, square, single_pixel, noise, fmn.
      eps: comma-separated Linf budgets in units of [0, 1] pixels, in place of the suite's.
      threats: in place of the suite's: all, or some of transfer, grey_box, frozen_mask,
        frozen_mask_true, adaptive.
      count: test images; 0 for all.
      cw_count: test images for CW-L2.
      cw_search_steps: steps of CW's binary search, in place of the suite's;
      cw_steps: iterations in each, likewise;
      cw_learning_rate: of CW's Adam, likewise.
      batch_size: images attacked at once.
      examine: also look for reasons to doubt the numbers, and at detection; takes minutes.
      seeds: one or more, of the attacks' random draws.
      batch_statistics: of VAE defenses, measure also the published mode, in which the images that
        are judged together give BatchNorm its statistics.
      where: where its data are.
    """
    chosen = SUITES[suite]
    config = SweepConfig(
        attacks=chosen.attacks if attacks is None else console.names(attacks),
        eps=chosen.eps if eps is None else console.budgets(eps),
        threats=chosen.threats if threats is None else console.names(threats),
        where_offered=threats is None,
        paper=chosen.paper,
        count=count or None,
        cw_count=cw_count,
        cw_search_steps=cw_search_steps,
        cw_steps=cw_steps,
        cw_learning_rate=cw_learning_rate,
        batch_size=batch_size,
        seeds=seeds,
    )
    defenses = load_run(run)
    if batch_statistics:
        defenses = with_batch_statistics(defenses)
    loaded = load_dataset(run, defenses, where)
    console.show(
        evaluate_run(
            run,
            defenses,
            loaded,
            config,
            console.ConsoleReporter(),
            examination=examination_for(config) if examine else None,
            command=console.command(),
        )
    )


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), together=True)
