"""Speed beside torchattacks, Foolbox (on torch and on JAX) and ART: same model, work and run.

    python -m benchmarks.peers [--out results/attack_peers_cpu.md]

Hours on two CPU cores, most of it the peers' CW-L2 and DeepFool; `--attacks fgsm pgd` is quick.
Needs the `peers` extra. Every library attacks the same trained model with the same settings, in
batches of 128, in turn, in one process. Stopped, the same command continues behind the last
finished row.

  images/s    warm: without compilation, the best of the passes over all images
  seconds     to the robust accuracy of all images, without compilation: a warm pass and, for the
              peers, a forward pass that judges; ours has judged already (it is checked)
  compile     what the first pass took more than a warm one, with an empty cache
  ratio       ours by the best peer's; images/s above 1 and seconds below 1 are in our favour
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import tyro

from benchmarks import ledger, torch_models
from benchmarks import models as zoo
from benchmarks.ledger import Record
from benchmarks.peer_attacks import half_precision, peer_contenders, torch
from benchmarks.peer_tables import LIBRARIES, said, tables
from benchmarks.timing import Measurement, Target, own_share
from benchmarks.work import HalfPrecision, Work, our_attack, our_contender
from memdef_jax import console
from memdef_jax.checks import InputError

ATTACKS = ("fgsm", "pgd", "mifgsm", "cw", "deepfool", "apgd", "square")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      out: Markdown file for the tables; JSON is written beside it.
      models: of `benchmarks.models`.
      attacks: of fgsm, pgd, mifgsm, cw, deepfool, apgd and square.
      libraries: peers.
      images: test images; by default 1000, for a ResNet on a CPU one batch.
      steps_scale: multiply the attacks' steps, of every library, down to at least 10; by default 1,
        for a ResNet on a CPU 0.1.
      batch: images a batch.
      repeats: warm passes, of which the best counts.
      dtype: of the model's weights and activations.
      threads: CPU threads of every library.
      seed: of everything random.
    """

    out: pathlib.Path = pathlib.Path("results/attack_peers_cpu.md")
    models: tuple[str, ...] = ("small_cnn_pgd", "resnet18")
    attacks: tuple[str, ...] = ATTACKS
    libraries: tuple[str, ...] = LIBRARIES
    images: int | None = None
    steps_scale: float | None = None
    batch: int = 128
    repeats: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for given, known in (
            (self.models, tuple(zoo.RECIPES)),
            (self.attacks, ATTACKS),
            (self.libraries, LIBRARIES),
        ):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise InputError(f"{unknown[0]!r} is unknown; choose from {', '.join(known)}.")


def work_for(attack: str, eps: float, scale: float) -> Work:
    """The settings of an attack, its steps scaled."""

    def scaled(steps: int) -> int:
        return steps if scale == 1 else max(10, round(steps * scale))

    loop: dict[str, Any] = {"steps": scaled(40), "step_size": eps / 10}
    works = {
        "fgsm": Work(attack="fgsm", eps=eps),
        "pgd": Work(attack="pgd", eps=eps, random_start=True, **loop),
        "mifgsm": Work(attack="mifgsm", eps=eps, **loop),
        "cw": Work(attack="cw", norm="l2", steps=scaled(200)),
        "deepfool": Work(attack="deepfool", norm="l2", steps=50),
        "apgd": Work(attack="apgd", eps=eps, steps=scaled(100)),
        "square": Work(attack="square", eps=eps, steps=scaled(1000)),
    }
    return works[attack]


def load(name: str, options: Options) -> Target:
    """The model in both frameworks, checked to give the same logits."""
    on_cpu = jax.default_backend() == "cpu"
    reduced = on_cpu and not name.startswith("small")
    count = options.images or (options.batch if reduced else 1000)
    scale = options.steps_scale or (0.1 if reduced else 1.0)
    device = "cpu" if on_cpu else "cuda"
    bound = zoo.load(name, console.ConsoleReporter())
    module = torch_models.port(name, bound).to(device)
    x, y = zoo.test_images(name, count)
    model: Any = bound
    # Accelerators round convolutions; there a wrong port still differs by more than this.
    tolerance = torch_models.TOLERANCE if on_cpu else 0.1
    torch_models.check(bound, module, x[: options.batch], tolerance, device)
    if options.dtype == "bfloat16":
        model, module = HalfPrecision.of(bound), half_precision(module)
    return Target(name, model, module, x, y, zoo.recipe(name).eps, scale, device)


def compare(target: Target, work: Work, options: Options) -> dict[str, Record] | None:
    """Records by library, ours first; None where ours has no such attack."""
    attack = our_attack(work)
    if attack is None:
        return None
    jax.clear_caches()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - ART draws from it
    ours = our_contender(attack, target.model, pad_to=options.batch, seed=options.seed)
    peers = peer_contenders(work, target.module, target.model, options.libraries, target.device)
    runs = [Measurement(one, work, target, options.batch) for one in (ours, *peers)]
    for run in runs:
        run.first()
    for _ in range(options.repeats):
        for run in runs:
            run.warm()
    return {run.contender.library: run.record() for run in runs}


def main(options: Options) -> None:
    """Measure what is not measured yet, and print it."""
    jax.config.update("jax_compilation_cache_dir", None)  # compilation is part of the result
    torch.set_num_threads(options.threads)
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    environment = ledger.environment(
        options.threads, dtype=options.dtype, batch=options.batch, seed=options.seed
    )
    book = ledger.Ledger(options.out, environment, lambda rows: tables(environment, rows))
    base = {"code": ledger.code_digest(), "device": environment["device"]}
    base |= {k: getattr(options, k) for k in ("batch", "repeats", "dtype", "threads", "seed")}
    for name in options.models:
        target = load(name, options)
        settings = {**base, "images": len(target.x), "scale": target.scale}
        print(f"\n{name}: {len(target.x)} images, eps {target.eps:g}", flush=True)
        if book.find((name, "share"), settings) is None:
            book.add(
                (name, "share"),
                settings,
                own_share(
                    target,
                    work_for("pgd", target.eps, target.scale),
                    options.repeats,
                    options.batch,
                    options.seed,
                ),
            )
        for attack in options.attacks:
            work = work_for(attack, target.eps, target.scale)
            wanted = {**settings, "libraries": list(options.libraries)}
            row = book.find((name, attack), wanted)
            if row is None:
                records = compare(target, work, options)
                if records is None:
                    print(f"{work.title}: not available yet", flush=True)
                    continue
                row = book.add((name, attack), wanted, {"title": work.title, "records": records})
            print(f"{row['title']}: {said(row['records'])}", flush=True)
    print("\n" + tables(environment, book.rows))


def _prepare_process(threads: int) -> None:
    """Before JAX starts: as many CPU threads as torch gets, and GPU memory left for torch."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    _prepare_process(chosen.threads)
    console.run(lambda: main(chosen))
