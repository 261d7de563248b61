"""Forward convolutions on a CPU: XLA's own choice beside the one `console.prepare_cpu` makes.

    python -m benchmarks.convolutions [--out results/convolutions_cpu.md]

Half a minute. Each choice needs a process of its own, because XLA reads its flags once; the ratio
is that of the minima over the repeats. Above 1, the choice of the programs is faster.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import tyro

from benchmarks import ledger
from memdef_jax import console
from memdef_jax.files import write_atomic
from memdef_jax.nn.layers import convolve

# Map size, channels in and out, kernel, stride: of the small CNN, the autoencoder and the ResNets.
SHAPES = (
    (14, 16, 32, 5, 2),
    (28, 32, 32, 3, 1),
    (28, 64, 64, 3, 1),
    (14, 64, 64, 3, 1),
    (14, 64, 128, 3, 2),
    (7, 128, 128, 3, 1),
    (4, 256, 256, 3, 1),
)
BATCH, REPEATS = 128, 20


def measure() -> list[float]:
    """Milliseconds of each shape's convolution, the least of the repeats."""
    found = []
    for size, c_in, c_out, kernel, stride in SHAPES:
        x = jax.random.uniform(jax.random.key(0), (BATCH, size, size, c_in))
        k = jax.random.normal(jax.random.key(1), (kernel, kernel, c_in, c_out))
        f = jax.jit(lambda x, k, s=stride, p=kernel // 2: convolve(x, k, s, p))
        jax.block_until_ready(f(x, k))
        best = float("inf")
        for _ in range(REPEATS):
            begin = time.perf_counter()
            jax.block_until_ready(f(x, k))
            best = min(best, time.perf_counter() - begin)
        found.append(1e3 * best)
    return found


def _elsewhere(prepared: bool) -> list[float]:
    """`measure` in a fresh process."""
    code = "import json; from benchmarks import convolutions as c; print(json.dumps(c.measure()))"
    if prepared:
        code = f"from memdef_jax import console; console.prepare_cpu(); {code}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(out: pathlib.Path | None = None) -> None:
    """Measure both and print the table; with `out`, write it there too."""
    rows = []
    sides = zip(SHAPES, _elsewhere(False), _elsewhere(True), strict=True)
    for (size, c_in, c_out, kernel, stride), plain, prepared in sides:
        shape = f"{size}x{size}x{c_in} to {c_out}, {kernel}x{kernel} by {stride}"
        rows.append((shape, f"{plain:.2f}", f"{prepared:.2f}", f"{plain / prepared:.2f}"))
    header = ("convolution", "XLA's default, ms", "as the programs, ms", "ratio")
    about = ledger.environment(batch=BATCH)
    text = ledger.page("Convolutions on a CPU", about, ledger.markdown_table(header, rows))
    print(text)
    if out is not None:
        write_atomic(out, text)


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
