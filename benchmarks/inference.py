"""Memory Defense at work, beside torch, beside itself without memory, and the machine's limits.

    python -m benchmarks.inference [--out results/inference_cpu.md] [--device cuda]

The memory's price is the time of autoencoder and classifier-B with it over that without it; the
Memory Defense paper has 3.6 for 10 images. All calls take turns, and what counts is the least of
the repeats. The networks are untrained: time does not depend on the weights. Needs the `peers`
extra.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import torch
import tyro

from benchmarks import floor, ledger
from benchmarks.torch_memory import Pipeline
from benchmarks.torch_models import TOLERANCE, to_torch
from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec
from memdef_jax.evaluation.papers import latency
from memdef_jax.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      out: Markdown file.
      images: in a call, one line each.
      repeats: turns of each side for the first count, and for the others.
      threads: CPU threads of both.
      device: torch's.
    """

    out: pathlib.Path = pathlib.Path("results/inference_cpu.md")
    images: tuple[int, ...] = (10, 10_000)
    repeats: tuple[int, ...] = (500, 10)
    threads: int = 2
    device: str = "cpu"


def measure(options: Options) -> tuple[list[list[str]], str]:
    """Lines of the table, and a sentence on the machine.

    Raises:
      InputError: when the two libraries disagree.
    """
    spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10)
    defense = MemoryDefense(spec, spec.init(jax.random.key(0)))
    module = Pipeline(defense, jax.device_get(defense.variables)).to(options.device).eval()
    machine, rows = floor.rates(), []
    for count, repeats in zip(options.images, options.repeats, strict=True):
        x = latency.images_of(defense, count)
        same = to_torch(np.asarray(x), options.device)

        def theirs(same: Any = same) -> Any:
            with torch.inference_mode():
                return module(same).cpu().numpy()

        gap = np.abs(np.asarray(defense(x[:10])) - theirs()[:10]).max()
        if gap > TOLERANCE:
            raise InputError(f"the logits differ by {gap:g}; at most {TOLERANCE:g} is rounding.")
        best = floor.least(latency.routes(defense, x) | {"torch": theirs}, repeats)
        compiled = jax.jit(lambda d, x: d(x)).lower(defense, x).compile()
        whole = best[latency.PIPELINE]
        rows.append(
            [
                str(count),
                f"{1e3 * whole:.2f}",
                f"{1e3 * best['torch']:.2f}",
                f"{whole / best['torch']:.2f}",
                f"{whole / machine.floor(compiled):.1f}",
                f"{best[latency.WITH] / best[latency.WITHOUT]:.2f}",
            ]
        )
    return rows, machine.words()


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    header = (
        "images",
        "memdef_jax, ms",
        "torch, ms",
        "ratio to torch",
        "ratio to the floor",
        "with memory / without",
    )
    rows, machine = measure(options)
    words = "The whole pipeline; a ratio to torch below 1 is in our favour."
    table = ledger.markdown_table(header, rows)
    about = ledger.environment(options.threads)
    text = ledger.page("Inference", about, f"{words}\n{machine}", table)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    console.run(lambda: main(chosen))
