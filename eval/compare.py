"""Several runs side by side on one page: `python -m eval.compare RUN RUN... [--out FILE.html]`."""

from __future__ import annotations

import pathlib

import tyro

from memdef_jax import console
from memdef_jax.evaluation.reports import compare
from memdef_jax.files import write_atomic


def main(
    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    out: pathlib.Path = pathlib.Path("runs/comparison.html"),
) -> None:
    """Compare what evaluations found.

    Args:
      runs: two or more folders that eval.robustness or eval.demo filled.
      out: the page to write.
    """
    found = compare.read_runs(runs)
    write_atomic(out, compare.render(found))
    for sentence in compare.differences(found):
        print(f"note: {sentence}")
    print(f"comparison: {out}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
