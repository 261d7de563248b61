"""Make a run of weights that were trained elsewhere, in torch for example, to attack them here.

    python -m train.import_weights --run runs/theirs --weights theirs.safetensors \\
        --dataset cifar10 --kind classifier --spec architecture=resnet18

A file that eval.export wrote needs no --kind and --spec. docs/weights.md says how arrays are named.
Then `python -m eval.robustness --run runs/theirs` evaluates them as any other run. Of several files
one called benign.safetensors is what transfer attacks are crafted on.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tyro

from memdef_jax import console, data
from memdef_jax.checks import InputError
from memdef_jax.defenses.weights import import_run


def main(
    run: pathlib.Path,
    weights: tuple[pathlib.Path, ...],
    dataset: str,
    kind: str | None = None,
    spec: tuple[str, ...] = (),
    data_dir: str | None = None,
    raw_dir: str | None = None,
    image_size: int | None = None,
    gray: bool = False,
) -> None:
    """Make a run of weights.

    Args:
      run: folder of the run.
      weights: .safetensors or .npz files, one a defense, which is called as the file.
      dataset: that they were trained on: digits, mnist, fashion_mnist, cifar10 or folder:PATH.
      kind: of the defenses: classifier, memory_defense, defense_vae, mad_vae, feature_denoiser or
        hgd; by default what the files say.
      spec: with a kind, NAME=VALUE for what is not by default: of a classifier architecture and
        head, of a memory_defense selector, memory_rows, softmax_scale and so on.
      data_dir: where prepared datasets live (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
      raw_dir: a folder with the dataset's raw files.
      image_size: resize the images to this many pixels.
      gray: turn colours into one channel.
    """
    if spec and kind is None:
        raise InputError("spec was given without kind; give both, or neither.")
    fields = dict(_field(text) for text in spec)
    loaded = data.load(
        dataset, data_dir=data_dir, raw_dir=raw_dir, image_size=image_size, gray=gray
    )
    found = import_run(run, weights, loaded, kind, fields)
    print(f"imported {', '.join(found)}; now: python -m eval.robustness --run {run}")


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"spec {text!r} has no value; write it as NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:  # a word
        return name, value


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
