"""Attack the latent space of a defense with a decoder: Table 3 of the MAD-VAE paper.

    python -m eval.overpowered --run DIR

The published settings are meant for an accelerator; on a CPU use fewer draws and steps, such as
--draws 10 --steps 100. Each finished search is kept in DIR/overpowered.json; the same command again
goes on where it was stopped. The table is in DIR/overpowered.md, pictures are in DIR/pictures. With
--target classifier the files are named overpowered-classifier.
"""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.evaluation.beyond import latent_attack, latent_report
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.evaluation.reports.layout import as_text


def main(
    run: pathlib.Path,
    variants: tuple[str, ...] = (),
    count: int = 50,
    rhos: tuple[float, ...] = (1.0, 2.5, 3.0, 3.5),
    draws: int = 100,
    steps: int = 1000,
    target: latent_attack.Target = "deployed",
    group: int | None = None,
    batch_size: int = 50,
    seed: int = 0,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 - frozen
) -> None:
    """Search the latent space of a run's variants for images that they get wrong.

    Args:
      run: folder that train.mad_vae, train.defense_vae, train.memory_defense or
        train.feature_denoiser filled.
      variants: some of its defenses, all by default.
      count: test images; 0 for all.
      rhos: L2 lengths of the noise that a success must survive.
      draws: of noise, for each iteration and image.
      steps: iterations of each search.
      target: search on the deployed pipeline, or on its classifier alone as in the published code.
      group: draws evaluated together, a divisor of them, where memory is short.
      batch_size: images attacked at once.
      seed: of the noise.
      where: where its data are.
    """
    config = latent_attack.LatentAttackConfig(
        rhos=rhos,
        count=count or None,
        draws=draws,
        group=group,
        steps=steps,
        target=target,
        batch_size=batch_size,
        seed=seed,
    )
    defenses = latent_attack.choose(load_run(run), variants)
    loaded = load_dataset(run, defenses, where)
    reporter = console.ConsoleReporter()
    found, path = latent_attack.evaluate(run, defenses, loaded, config, reporter)
    header, lines = latent_report.as_table(found)
    print(as_text(f"Overpowered attack on {found['kind']}", header, lines))
    print(f"{latent_report.explain(found)}\nnumbers: {path}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
