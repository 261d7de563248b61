"""Write a trained defense as one StableHLO program, or its weights as one file for torch.

    python -m eval.export --run DIR --defense in_loop
    python -m eval.export --run DIR --defense in_loop --format safetensors

The first writes DIR/exports/NAME.stablehlo, which runs without this package, and NAME.json that
says what goes in and comes out. Anywhere with JAX,
`jax.export.deserialize(bytearray(open(path, "rb").read())).call(x)` gives the logits of the
deployed pipeline for any number of images, and can be differentiated once. The second writes
DIR/exports/NAME.safetensors, see docs/weights.md; train.import_weights reads it back.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.defenses import load_run
from memdef_jax.defenses.artifact import describe, to_artifact
from memdef_jax.defenses.weights import write_weights
from memdef_jax.files import write_atomic
from memdef_jax.training.run import read_run


def main(
    run: pathlib.Path,
    defense: str | None = None,
    format: Literal["stablehlo", "safetensors"] = "stablehlo",
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Export a defense of a run.

    Args:
      run: folder that a training program filled.
      defense: its name in the run; the last one by default.
      format: stablehlo, a program; or safetensors, weights in torch's layout.
      platforms: that the program shall run on: cpu, cuda, rocm, tpu.
    """
    defenses, described = load_run(run), read_run(run)
    name = list(defenses)[-1] if defense is None else defense
    if name not in defenses:
        raise InputError(f"{run} has no defense {name!r}; export one of {', '.join(defenses)}.")
    path = run / "exports" / f"{name}.{format}"
    if format == "safetensors":
        write_weights(path, defenses[name], name, described)
    else:
        program = to_artifact(defenses[name], platforms)
        said = describe(defenses[name], name, described, platforms)
        write_atomic(path, program)
        write_atomic(path.with_suffix(".json"), said)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
