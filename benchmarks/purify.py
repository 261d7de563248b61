"""Time to purify 1,000 images by Defense-VAE's network, beside the same network in torch.

    python -m benchmarks.purify [--out results/purify_cpu.md]

Table 4 of Defense-VAE (arXiv 1812.06570) prints 9.03 s for 1,000 images, and 441.81 s for
Defense-GAN, on a Titan Xp. Needs the `peers` extra. Both sides have the same weights and take turns
in one process; what counts is the least of the repeats, and the ratio of these.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import tyro
from torch import nn

from benchmarks import ledger
from benchmarks.torch_models import TOLERANCE, conv, linear, norm, transposed
from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.files import write_atomic
from memdef_jax.nn.vae import VAE, architecture


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      out: Markdown file.
      images: to purify.
      batches: images at once.
      repeats: turns of each side.
      threads: CPU threads of both.
    """

    out: pathlib.Path = pathlib.Path("results/purify_cpu.md")
    images: int = 1000
    batches: tuple[int, ...] = (1, 10, 100, 1000)
    repeats: int = 5
    threads: int = 2


class TorchVAE(nn.Module):
    """As `memdef_jax.nn.VAE.reconstruct`."""

    def __init__(self, variables: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        params, stats = variables["params"], variables["batch_stats"]
        arch = architecture(image_shape)
        height, width, channels = self.features = arch.features
        own, stat = params["encoder"], stats["encoder"]
        layers: list[Any] = []
        for i, (_, _, stride, padding) in enumerate(arch.encoder):
            name = f"BatchNorm_{i}"
            layers += [conv(own[f"Conv_{i}"], stride, padding), norm(own[name], stat[name])]
            layers.append(nn.ReLU())
        self.encoder = nn.Sequential(*layers)
        # The library flattens rows, columns, channels, torch channels, rows, columns.
        size = height * width * channels
        maps = np.asarray(own["mean"]["kernel"]).reshape(height, width, channels, -1)
        flat = maps.transpose(2, 0, 1, 3).reshape(size, -1)
        self.mean = linear({**own["mean"], "kernel": flat})
        own, stat = params["decoder"], stats["decoder"]
        maps = np.asarray(own["Dense_0"]["kernel"]).reshape(-1, height, width, channels)
        bias = np.asarray(own["Dense_0"]["bias"]).reshape(height, width, channels)
        self.widen = linear(
            {
                "kernel": maps.transpose(0, 3, 1, 2).reshape(-1, size),
                "bias": bias.transpose(2, 0, 1).ravel(),
            }
        )
        layers = []
        for i, (_, _, stride, padding) in enumerate(arch.decoder):
            name = f"BatchNorm_{i}"
            layers += [transposed(own[f"ConvTranspose_{i}"], stride, padding)]
            layers += [norm(own[name], stat[name]), nn.ReLU()]
        last = own[f"ConvTranspose_{len(arch.decoder)}"]
        self.decoder = nn.Sequential(*layers, transposed(last, *arch.last[1:]), nn.Sigmoid())

    def forward(self, x: Any) -> Any:
        z = torch.relu(self.widen(self.mean(self.encoder(x).flatten(1))))
        height, width, channels = self.features
        return self.decoder(z.view(-1, channels, height, width))


def measure(options: Options) -> list[list[str]]:
    """Lines of the table: images at once, seconds of both sides, their ratio.

    Raises:
      InputError: when the two networks disagree.
    """
    shape = (28, 28, 1)
    vae = VAE(shape)
    x = np.asarray(jax.random.uniform(jax.random.key(0), (options.images, *shape)))
    variables = jax.jit(vae.init)(jax.random.key(1), x[:1])
    module = TorchVAE(jax.device_get(variables), shape).eval()
    purify = jax.jit(lambda v, x: vae.apply(v, x, method="reconstruct"))
    channels_first = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def ours(size: int) -> Any:
        return [np.asarray(purify(variables, x[i : i + size])) for i in range(0, len(x), size)]

    def theirs(size: int) -> Any:
        with torch.inference_mode():
            parts = (channels_first[i : i + size] for i in range(0, len(x), size))
            return [module(part).numpy() for part in parts]

    gap = np.abs(ours(len(x))[0] - theirs(len(x))[0].transpose(0, 2, 3, 1)).max()
    if gap > TOLERANCE:
        raise InputError(f"the two networks differ by {gap:g}; at most {TOLERANCE:g} is rounding.")
    rows = []
    for size in options.batches:
        best = [min(times) for times in _in_turn((ours, theirs), size, options.repeats)]
        rows.append(
            [str(size), *(f"{seconds:.3f}" for seconds in best), f"{best[0] / best[1]:.2f}"]
        )
    return rows


def _in_turn(sides: tuple[Callable[[int], Any], ...], size: int, repeats: int) -> list[list[float]]:
    for side in sides:
        side(size)  # compiled, and caches filled
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, times in zip(sides, found):
            begin = time.perf_counter()
            side(size)
            times.append(time.perf_counter() - begin)
    return found


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    header = ("images at once", "memdef_jax, s", "torch, s", "ratio")
    table = ledger.markdown_table(header, measure(options))
    words = (
        f"Seconds to purify {options.images} images of 28x28; a ratio below 1 is in our favour. "
        "The paper prints 9.03 s on a Titan Xp and does not say how many images at once."
    )
    about = ledger.environment(options.threads)
    text = ledger.page("Purification by Defense-VAE", about, words, table)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    console.run(lambda: main(chosen))
