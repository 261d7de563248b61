"""Training of Memory Defense's stack and of classifier-A, beside torch and the machine's limits.

    python -m benchmarks.train [--out results/train_cpu.md] [--device cuda]

Both libraries train the same networks from the same weights on the same images; before the clock
starts their first losses are compared. A turn is `steps` updates, from the gathering of a batch to
the updated weights; both take turns, and what counts is the least of the repeats. The floor of an
update is its arithmetic at the rate of a matrix product, or what it must read and write at that of
a copy. Needs the `peers` extra.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import tyro
from torch.nn import functional

from benchmarks import floor, ledger, torch_models
from benchmarks.torch_memory import Stack
from memdef_jax import console, data
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefenseSpec, SelectorConfig, StackConfig
from memdef_jax.defenses.memory.stack import stack_loss
from memdef_jax.defenses.selector import adam, selector_loss
from memdef_jax.files import write_atomic
from memdef_jax.nn import classifier
from memdef_jax.training import AXIS, TrainState, make_mesh, make_step, replicate, shard, step_batch

RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      out: Markdown file.
      dataset: 28x28 grey images.
      batch_size: images an update.
      steps: updates a turn.
      repeats: turns of each side.
      threads: CPU threads of both.
      device: torch's.
    """

    out: pathlib.Path = pathlib.Path("results/train_cpu.md")
    dataset: str = "fashion_mnist"
    batch_size: int = 128
    steps: int = 30
    repeats: int = 7
    threads: int = 2
    device: str = "cpu"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
      name: in the table.
      loss: ours, for `training.make_step`.
      variables: initial.
      module: the same in torch.
      torch_loss: from a batch in torch to the loss.
    """

    name: str
    loss: Any
    variables: Mapping[str, Any]
    module: Any
    torch_loss: Callable[[Any, Any], Any]


def jobs(dropout: float, noise: float) -> list[Job]:
    """What is trained; without dropout and noise both sides have the same loss."""
    spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10)
    config = StackConfig(dropout_rate=dropout, noise=noise)
    variables = jax.device_get(spec.init_stack(jax.random.key(0)))
    stack = Stack(spec, variables, dropout)
    first = jax.device_get(spec.init_selector(jax.random.key(1)))
    small = torch_models.SmallCNN(first["params"], spec.image_shape)
    plain = selector_loss(classifier("small_cnn", 10, AXIS), SelectorConfig(), in_loop=False)
    return [
        Job(
            "encoder, memory, decoder, classifier-B (Equation 13)",
            stack_loss(spec, config),
            variables,
            stack,
            lambda x, y: stack.loss(x, y, config),
        ),
        Job(
            "small classifier-A, benign",
            plain,
            first,
            small,
            lambda x, y: functional.cross_entropy(small(x), y),
        ),
    ]


class Sides:
    """Both libraries' turns of one job."""

    def __init__(self, job: Job, split: data.Split, options: Options) -> None:
        self._split, self._options, self._job = split, options, job
        self._mesh, self._key = make_mesh(1), jax.random.key(2)
        optimizer = adam(RATE, 1, cosine=False)
        self._step = shard(make_step(job.loss, optimizer), self._mesh)
        self._taken = jax.jit(lambda batch: batch["label"][0], keep_unused=True)
        self._state = replicate(TrainState.create(job.variables, optimizer), self._mesh)
        self._module = job.module.to(options.device).train()
        self._adam = torch.optim.Adam(self._module.parameters(), RATE)
        self._at = 0
        # Once, as with a TensorDataset; a batch is gathered from it.
        self._images = torch.from_numpy(np.asarray(split.images).transpose(0, 3, 1, 2).copy())
        self._labels = torch.from_numpy(split.labels.astype(np.int64))

    def host_batch(self) -> Any:
        """The next batch, as a step takes it."""
        self._at += 1
        image, label = data.train_batch(self._split, self._at, self._options.batch_size, 0)
        return step_batch({"image": image, "label": label}, self._mesh)

    def batches(self) -> Any:
        """A turn's batches, gathered and given to a program that leaves them: the input's cost."""
        return [self._taken(self.host_batch()) for _ in range(self._options.steps)]

    def ours(self) -> Any:
        """A turn."""
        for _ in range(self._options.steps):
            self._state, metrics = self._step(self._state, self.host_batch(), self._key)
        return metrics

    def theirs(self) -> Any:
        """A turn."""
        for _ in range(self._options.steps):
            x, y = self._torch_batch()
            loss = self._job.torch_loss(x, y)
            self._adam.zero_grad(set_to_none=True)
            loss.backward()
            self._adam.step()
        return float(loss.detach())

    def _torch_batch(self) -> tuple[Any, Any]:
        self._at += 1
        size = self._options.batch_size
        index = data.batch_indices(len(self._split), self._at, size, 0)
        place = torch.from_numpy(np.array(index))  # a copy: the cached order is read-only
        x = self._images[place].to(self._options.device).float().div_(255)
        return x, self._labels[place].to(self._options.device)

    def compiled(self) -> Any:
        """One update, for its cost."""
        return self._step.lower(self._state, self.host_batch(), self._key).compile()  # type: ignore[attr-defined]

    def first_losses(self) -> tuple[float, float]:
        """Of both on the same batch; ours is updated by it."""
        at = self._at
        self._state, metrics = self._step(self._state, self.host_batch(), self._key)
        self._at = at
        found = self._job.torch_loss(*self._torch_batch())
        return float(metrics.get("loss", metrics["cross_entropy"])), float(found.detach())


def measure(options: Options) -> tuple[list[list[str]], str]:
    """Lines of the table, and a sentence on the machine.

    Raises:
      InputError: when the losses of both sides differ before any update.
    """
    split = data.load(options.dataset).train
    for job in jobs(0.0, 0.0):
        ours, theirs = Sides(job, split, options).first_losses()
        if abs(ours - theirs) > 1e-4 * abs(ours):
            raise InputError(f"{job.name}: losses {ours:g} and {theirs:g} differ; the port is off.")
    machine, rows = floor.rates(), []
    for job in jobs(0.5, 1e-4):
        sides = Sides(job, split, options)
        best = floor.least(
            {"ours": sides.ours, "theirs": sides.theirs, "batches": sides.batches},
            options.repeats,
        )
        least = machine.floor(sides.compiled())
        epoch = len(split) // options.batch_size / options.steps
        rows.append(
            [
                job.name,
                f"{best['ours'] * epoch:.1f}",
                f"{best['theirs'] * epoch:.1f}",
                f"{best['ours'] / best['theirs']:.2f}",
                f"{best['ours'] / options.steps / least:.1f}",
                f"{100 * best['batches'] / best['ours']:.1f}%",
            ]
        )
    return rows, machine.words()


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    header = (
        "an epoch of",
        "memdef_jax, s",
        "torch, s",
        "ratio to torch",
        "ratio to the floor",
        "input's share",
    )
    rows, machine = measure(options)
    table = ledger.markdown_table(header, rows)
    words = "A ratio to torch below 1 is in our favour; the input is gathering and moving batches."
    about = ledger.environment(options.threads)
    text = ledger.page("Training", about, f"{words}\n{machine}", table)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    console.run(lambda: main(chosen))
