"""Seconds from the start of the demo to its first training step, once compiled programs are kept.

    python -m benchmarks.startup [--out results/startup_cpu.md]

Each repeat is a process of its own, which ends with its first step. The one before the first fills
the cache of compiled programs and is not counted.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time

import tyro

from benchmarks import ledger
from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.files import write_atomic

FIRST_STEP = 17  # the child's status when it got there
_CHILD = f"""
import os, runpy, sys
from memdef_jax import console
console.ConsoleReporter.update = lambda *_: os._exit({FIRST_STEP})
sys.argv = ["eval.demo", "--run", sys.argv[1]]
runpy.run_module("eval.demo", run_name="__main__")
"""


def first_step() -> float:
    """Seconds until a new demo has done a step.

    Raises:
      InputError: when it ends in another way.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _CHILD, f"{folder}/demo"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode != FIRST_STEP:
        raise InputError(f"the demo ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def main(out: pathlib.Path = pathlib.Path("results/startup_cpu.md"), repeats: int = 5) -> None:
    """Measure, print and write.

    Args:
      out: Markdown file.
      repeats: processes that count.
    """
    first_step()
    seconds = sorted(first_step() for _ in range(repeats))
    words = "`make demo` on Fashion-MNIST, already prepared, until its first training step, warm:"
    found = f"{seconds[0]:.1f} to {seconds[-1]:.1f} s in {repeats} runs."
    text = ledger.page("Start", ledger.environment(), f"{words} {found}")
    write_atomic(out, text)
    print(text)


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
