"""Do exported weights compute the same in torch, and torch's weights the same here?

    python -m benchmarks.weights [--out results/weights_cpu.md]

Every kind of defense and classifier, untrained but with statistics that are not 0 and 1: the
largest difference of the logits of eight random images in units of their largest value, of weights
exported from here, and of weights that torch drew and saved. Ends with 2 if one is above 1e-4.
Needs the `peers` extra.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file

from benchmarks import ledger, torch_defenses
from benchmarks.torch_models import TOLERANCE, to_torch
from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.data.dataset import DatasetInfo
from memdef_jax.defenses import store
from memdef_jax.defenses.weights import read_weights, write_weights
from memdef_jax.files import write_atomic
from memdef_jax.nn import CLASSIFIERS
from memdef_jax.nn.heads import HEADS

GRAY, COLOUR = (28, 28, 1), (32, 32, 3)
_LONG = {"wide_resnet28_10", "wide_resnet34_10"}  # only longer and wider than wide_resnet16_4


def specifications() -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, what differs from the default) of everything that is compared."""
    for shape in (GRAY, COLOUR):
        size = {"image_shape": list(shape), "classes": 10}
        yield "memory_defense", {**size, "softmax_scale": 20.0, "shrink_threshold": 0.001}
        for kind in ("defense_vae", "mad_vae"):
            yield kind, {**size, "classifier": "b", "kind": kind}
        yield "hgd", {**size, "classifier": "resnet18", "kind": "hgd"}
        for name in sorted(set(CLASSIFIERS) - _LONG):
            for head in HEADS:
                yield "classifier", {**size, "architecture": name, "head": head}
    gray = {"image_shape": list(GRAY), "classes": 10}
    yield "memory_defense", {**gray, "memory_rows": 0}
    yield "feature_denoiser", {**gray, "kind": "feature_denoiser"}


def compare(folder: pathlib.Path, kind: str, fields: dict[str, Any]) -> tuple[float, float]:
    """Relative differences of the logits: of our weights in torch, and of torch's here."""
    content = {"version": store.VERSION, "kind": kind, "spec": fields}
    described = store.described(content, folder, "mend the benchmark.")
    variables = jax.tree.map(np.asarray, described.spec.init(jax.random.key(0)))
    ours = described.make(jax.tree.map_with_path(_moved, variables))
    info = DatasetInfo("random", ("",) * 10, fields["image_shape"], "0", "drawn")
    x = np.random.default_rng(0).random((8, *fields["image_shape"]), np.float32)
    path = folder / "ours.safetensors"
    write_weights(path, ours, "ours", {"dataset": "random", "fingerprint": "0"})
    module = torch_defenses.defense(described.spec)
    module.load_state_dict(load_file(path))
    there = _difference(ours, module, x)

    module = torch_defenses.defense(described.spec)
    with torch.no_grad():
        module(to_torch(x))  # draws the weights
        for name, array in module.state_dict().items():
            if "running_var" in name:
                array.uniform_(0.5, 1.5)
    path = folder / "theirs.safetensors"
    save_file(module.state_dict(), path)
    fields = {name: value for name, value in fields.items() if name != "kind"}
    here = _difference(read_weights(path, info, kind, fields), module, x)
    return there, here


def _moved(path: Any, leaf: np.ndarray) -> np.ndarray:
    """Biases, scales and statistics that are not what they begin as."""
    return leaf if path[-1].key in ("kernel", "memory") else leaf + 0.1


def _difference(defense: Any, module: Any, x: np.ndarray) -> float:
    ours = np.asarray(jax.jit(lambda d, x: d(x))(defense, x))
    with torch.inference_mode():
        theirs = module(to_torch(x)).numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main(only: str = "", out: pathlib.Path = pathlib.Path("results/weights_cpu.md")) -> None:
    """Compare, print, and write a table of all.

    Args:
      only: those whose line contains this; no table then.
      out: Markdown file.
    """
    worst, rows = 0.0, []
    for kind, fields in specifications():
        shown = [f"{value}" for name, value in fields.items() if name not in ("classes", "kind")]
        line = " ".join([kind, *shown])
        if only in line:
            with tempfile.TemporaryDirectory() as folder:
                there, here = compare(pathlib.Path(folder), kind, fields)
            worst = max(worst, there, here)
            rows.append([line, f"{there:.1e}", f"{here:.1e}"])
            print(f"{line}: ours in torch {there:.1e}, torch's here {here:.1e}", flush=True)
    if worst > TOLERANCE:
        raise InputError(f"logits differ by up to {worst:.1e}; at most {TOLERANCE:g} is rounding.")
    print(f"the largest is {worst:.1e}")
    if not only:
        header = ("specification", "ours in torch", "torch's here")
        table = ledger.markdown_table(header, rows)
        words = "Largest difference of a logit, as a share of the largest, on random images."
        about = ledger.environment()
        write_atomic(out, ledger.page("Weights to torch and back", about, words, table))


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
