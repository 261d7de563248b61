"""Do the attacks find what other libraries find, and more? Every check with its numbers.

    python -m benchmarks.agreement [--out results/attack_agreement_cpu.md]

About half an hour on two CPU cores once the models are trained. Needs the `peers` extra. Compared
are two CNNs trained on Fashion-MNIST, one clean at eps 0.03 and one trained with PGD at eps 0.1, on
the first 500 test images. Stopped, the same command continues; a check is made anew when the
attacks' code has changed.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np
import torch
import tyro

from benchmarks import ledger, torch_models
from benchmarks import models as zoo
from benchmarks.agreement_checks import Subject, all_checks
from benchmarks.ledger import Record
from memdef_jax import console

_VERDICTS = {True: "PASS", False: "FAIL", None: "-"}


def main(
    out: pathlib.Path = pathlib.Path("results/attack_agreement_cpu.md"),
    models: tuple[str, ...] = ("small_cnn_clean", "small_cnn_pgd"),
    images: int = 500,
    steps_scale: float = 1.0,
    libraries: tuple[str, ...] = ("torchattacks", "foolbox", "art"),
    only: str = "",
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Run all checks and print them.

    Args:
      out: Markdown file for the table; JSON is written beside it.
      models: of `benchmarks.models`.
      images: first test images.
      steps_scale: multiply the attacks' steps, for a quick look.
      libraries: peers to compare with.
      only: run only checks whose name contains this.
      threads: of torch.
      seed: of everything random.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - ART draws from it
    settings = {
        "images": images,
        "steps_scale": steps_scale,
        "libraries": list(libraries),
        "seed": seed,
        "code": ledger.code_digest(),
    }
    environment = ledger.environment(threads, seed=seed, images=images, steps_scale=steps_scale)
    book = ledger.Ledger(out, environment, lambda rows: _markdown(environment, rows))
    for name in models:
        bound = zoo.load(name, console.ConsoleReporter())
        module = torch_models.port(name, bound)
        x, y = zoo.test_images(name, images)
        eps = zoo.recipe(name).eps
        subject = Subject(bound, module, x, y, eps, seed)
        difference = torch_models.check(bound, module, x)
        print(
            f"\n{name}: eps {eps:g}, clean accuracy {100 * subject.clean.mean():.1f}%, "
            f"logits in JAX and torch differ by at most {difference:.2g}\n",
            flush=True,
        )
        for check, run in all_checks(eps, libraries, steps_scale):
            if only not in check:
                continue
            row = book.find((name, check), settings)
            if row is None or row["verdict"] == "-":
                begin = time.perf_counter()
                found = run(subject)
                row = {
                    "verdict": _VERDICTS[found.passed],
                    "numbers": found.numbers,
                    "needs": found.needs,
                    "values": dict(found.values),
                    "seconds": round(time.perf_counter() - begin, 1),
                }
                row = book.add((name, check), settings, row)
            print(f"{row['verdict']:<5}{check}: {row['numbers']}", flush=True)
    verdicts = [row["verdict"] for row in book.rows]
    print(
        f"\n{verdicts.count('PASS')} PASS, {verdicts.count('FAIL')} FAIL, "
        f"{verdicts.count('-')} not available yet; {out}"
    )


def _markdown(environment: Record, rows: Sequence[Record]) -> str:
    header = ("model", "check", "measured", "needs", "verdict")
    lines = [(*row["key"], row["numbers"], row["needs"], row["verdict"]) for row in rows]
    title = "Attacks beside other libraries, and beside each other"
    words = (
        "Medians are over images that the model classifies correctly; a failed attack counts as "
        "an infinite norm in every library. Each library is judged on its own copy of the model."
    )
    return ledger.page(title, environment, words, ledger.markdown_table(header, lines))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    console.run(lambda: tyro.cli(main))
