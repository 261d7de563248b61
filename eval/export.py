"""Write a trained defense as one StableHLO program, which runs without this package.

    python -m eval.export --run DIR --defense in_loop

Files: DIR/exports/NAME.stablehlo, and NAME.json that says what goes in and comes out. Anywhere with
JAX, `jax.export.deserialize(bytearray(open(path, "rb").read())).call(x)` gives the logits of the
deployed pipeline for any number of images, and can be differentiated once.
"""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.defenses import load_run
from memdef_jax.defenses.artifact import describe, to_artifact
from memdef_jax.files import write_atomic
from memdef_jax.training.run import read_run


def main(
    run: pathlib.Path,
    defense: str | None = None,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Export a defense of a run.

    Args:
      run: folder that a training program filled.
      defense: its name in the run; the last one by default.
      platforms: that the program shall run on: cpu, cuda, rocm, tpu.
    """
    defenses = load_run(run)
    name = list(defenses)[-1] if defense is None else defense
    if name not in defenses:
        raise InputError(f"{run} has no defense {name!r}; export one of {', '.join(defenses)}.")
    program = to_artifact(defenses[name], platforms)
    said = describe(defenses[name], name, read_run(run), platforms)
    path = run / "exports" / f"{name}.stablehlo"
    write_atomic(path, program)
    write_atomic(path.with_suffix(".json"), said)
    print(f"{path}: {len(program) / 1e6:.1f} MB, for {', '.join(platforms)}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
