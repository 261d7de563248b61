"""Attack a run's defenses knowing only answers: Tables 3 and 8 of Defense-VAE, 2 of MAD-VAE.

    python -m eval.black_box --run DIR --substitutes b e

Each substitute of each oracle is a row of DIR/black_box.json, written as it finishes (on two CPU
cores after about two minutes with b, after seconds with e); the same command again goes on where it
was stopped. The table is in DIR/black_box.md too.
"""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.evaluation.beyond import black_box
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.evaluation.sweeps.crafting import single
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path,
    substitutes: tuple[str, ...] = ("b", "e"),
    oracle: black_box.Oracle = "both",
    count: int = 500,
    eps: str = "0.3",
    seed: int = 0,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 - frozen
) -> None:
    """Train substitutes on answers, and show what fools them to every defense of a run.

    Args:
      run: folder that train.defense_vae or train.mad_vae filled.
      substitutes: architectures, such as a, b, c, d, e (Defense-GAN's), magnet, small_cnn.
      oracle: who answers the attacker: the undefended classifier, as in the papers; each deployed
        pipeline; or both, one after the other.
      count: test images, after the 150 that the attacker begins with; 0 for all that are left.
      eps: FGSM's Linf budget in units of [0, 1] pixels.
      seed: of the substitutes.
      where: where its data are.
    """
    config = black_box.BlackBoxConfig(
        substitutes=substitutes,
        oracle=oracle,
        count=count or None,
        eps=single(console.budgets(eps)),
        seed=seed,
    )
    defenses = load_run(run)
    loaded = load_dataset(run, defenses, where)
    found = black_box.measure(defenses, loaded, config, run, console.ConsoleReporter())
    write_atomic(run / "black_box.md", black_box.as_document(found))
    header, lines = black_box.as_table(found)
    title = f"{found['kind']} on {found['dataset']}, FGSM from a substitute"
    print(as_text(title, header, lines, words=("oracle",)))
    print(f"table: {run / 'black_box.md'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
