"""Reconstruction error against the size of the memory: Figure 4 of the Memory Defense paper."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from memdef_jax.attacks import presets
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Dataset, eval_batches, subset, to_float
from memdef_jax.defenses import MemoryDefense, MemoryDefenseConfig
from memdef_jax.evaluation.papers.stacks import fit_variants
from memdef_jax.evaluation.reports.figures import MARKERS, PALETTE, png
from memdef_jax.evaluation.sweeps.crafting import BATCH, always, craft
from memdef_jax.training import Reporter

PERCENTILE = 99.0  # the paper's
CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class SizeErrors:
    """What a stack with a memory of one size makes of test images.

    Attributes:
      rows: memory rows N.
      errors: mean squared reconstruction error of each image [n], the slot being classifier-A's
        choice; under `CLEAN` and the name of each attack.
    """

    rows: int
    errors: Mapping[str, np.ndarray]

    def percentiles(self, q: float = PERCENTILE) -> dict[str, float]:
        """A percentile of the errors, linearly interpolated, by kind of image."""
        return {name: float(np.percentile(values, q)) for name, values in self.errors.items()}


@jax.jit
def _score(defense: MemoryDefense, x: jax.Array) -> jax.Array:
    return defense.score(x)


def reconstruction_errors(defense: MemoryDefense, images: np.ndarray) -> np.ndarray:
    """`defense.score` of float32 images [n, H, W, C], batch by batch, [n]."""
    size = min(BATCH, len(images))
    parts = [
        np.asarray(_score(defense, jnp.asarray(batch.images)), np.float64)[batch.valid]
        for batch in eval_batches((images, np.zeros(len(images), np.int32)), size)
    ]
    return np.concatenate(parts)


def memory_sizes(
    config: MemoryDefenseConfig,
    rows: Sequence[int],
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    eps: float = 25 / 255,
    count: int | None = 500,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[SizeErrors]:
    """Train a stack for each memory size over one classifier-A, or go on, and measure errors.

    Args:
      config: of all but the number of rows.
      rows: sizes N, each divisible by the number of classes.
      dataset: trained and measured on.
      folder: each size has a run's folder of its own in it.
      attacks: of `attacks.presets.NAMES`, crafted on classifier-A; the same images for all sizes.
      eps: their Linf budget in [0, 1].
      count: test images, see `data.subset`; None for all.
      seed: of the attacks.
      reporter: told of progress.

    Raises:
      InputError: before any work, when something does not fit.
    """
    if not rows or min(rows) < 1:
        raise InputError(
            f"memory sizes {tuple(rows)} cannot be compared; give one or more above 0."
        )
    check_eps(eps)
    split = subset(dataset.test, count)
    crafted = {name: presets.named(name, eps) for name in attacks}
    stacks = {
        f"memory_rows={n}": dataclasses.replace(config.stack, memory_rows=n)
        for n in sorted(set(rows))
    }
    images: dict[str, np.ndarray] = {}
    found = []
    for variant in fit_variants(config, stacks, dataset, folder, reporter):
        if variant.stopped is not None:
            raise InputError(f"{variant.name}: {variant.stopped}")
        defense = variant.deployed
        if not images:
            images[CLEAN] = to_float(split.images)
            for name, attack in crafted.items():
                images[name] = craft(attack, always(defense.selector), split, seed)
        errors = {name: reconstruction_errors(defense, x) for name, x in images.items()}
        found.append(SizeErrors(variant.config.stack.memory_rows, errors))
    return found


def draw(found: Mapping[str, Sequence[SizeErrors]]) -> bytes:
    """Figure 4 as a PNG, a column for each dataset.

    From top to bottom: the 99th percentile of clean test images against memory size; the same of
    clean and adversarial images; the distributions at the size where the two are furthest apart.

    Args:
      found: by dataset, what `memory_sizes` returns.
    """
    figure = Figure(figsize=(5.2 * len(found), 9.6), dpi=100, layout="constrained")
    axes = figure.subplots(3, len(found), squeeze=False)
    for column, (dataset, sizes) in enumerate(found.items()):
        for row, names in enumerate(((CLEAN,), tuple(sizes[0].errors))):
            axis = axes[row][column]
            for (name, values), color, marker in _series(sizes, names):
                axis.plot(range(len(sizes)), values, color=color, marker=marker, label=name)
            axis.set_xticks(range(len(sizes)), [str(size.rows) for size in sizes])
            axis.set(xlabel="memory rows N", ylabel="99th percentile of the squared error")
            axis.set_title(dataset, fontsize=11, parse_math=False)
            axis.legend()
        _distributions(axes[2][column], max(sizes, key=_gap))
    return png(figure)


def _series(sizes: Sequence[SizeErrors], names: Sequence[str]) -> Iterator[Any]:
    tables = [size.percentiles() for size in sizes]
    series = {name: [table[name] for table in tables] for name in names}
    return zip(series.items(), itertools.cycle(PALETTE), itertools.cycle(MARKERS))


def _gap(size: SizeErrors) -> float:
    """The ratio of the largest percentile of attacked images to that of clean ones."""
    values = size.percentiles()
    attacked = [value for name, value in values.items() if name != CLEAN]
    return max(attacked, default=0.0) / max(values[CLEAN], 1e-12)


def _distributions(axis: Any, size: SizeErrors) -> None:
    everything = np.concatenate(list(size.errors.values()))
    bins = np.linspace(0.0, float(np.percentile(everything, 99.5)) + 1e-9, 40)
    for (name, values), color in zip(size.errors.items(), itertools.cycle(PALETTE)):
        axis.hist(values, bins=bins, density=True, histtype="step", color=color, label=name)
        axis.axvline(size.percentiles()[name], color=color, linestyle=":")
    axis.set(xlabel="squared error of an image", ylabel="density")
    axis.set_title(f"N = {size.rows}; dotted: 99th percentiles", fontsize=10)
    axis.legend()


def as_table(sizes: Sequence[SizeErrors]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text: 99th percentile and median by kind of image, in 1e-3."""
    names = list(sizes[0].errors)
    header = ["rows", *(f"{name} p99" for name in names), *(f"{name} median" for name in names)]
    lines = [
        [str(size.rows)]
        + [f"{1e3 * size.percentiles(q)[name]:.2f}" for q in (PERCENTILE, 50.0) for name in names]
        for size in sizes
    ]
    return header, lines


def as_json(sizes: Sequence[SizeErrors]) -> list[dict[str, Any]]:
    """Percentiles and every image's error, by size."""
    return [
        {
            "rows": size.rows,
            "percentile_99": size.percentiles(),
            "median": size.percentiles(50.0),
            "errors": {name: values.tolist() for name, values in size.errors.items()},
        }
        for size in sizes
    ]
