"""What each setting that Memory Defense's paper leaves open does, one at a time."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import MemoryDefenseConfig, StackConfig
from memdef_jax.evaluation.papers.stacks import fit_target, fit_variants
from memdef_jax.evaluation.papers.tables import TARGET
from memdef_jax.evaluation.reports.report import eps_name, percent
from memdef_jax.evaluation.scrutiny.diagnostics import template_diagnostics
from memdef_jax.evaluation.sweeps.config import SweepConfig
from memdef_jax.evaluation.sweeps.records import Record, select
from memdef_jax.evaluation.sweeps.robustness import sweep
from memdef_jax.training import Reporter, Silent

BASE = "base"
# What the paper leaves open, with values worth comparing. Thresholds are in units of 1/rows, and
# zero stands for the published code's, which shrinks nothing.
FACTORS: dict[str, tuple[Any, ...]] = {
    "shrink_order": ("shrink_mask", "mask_shrink"),
    "shrink_threshold": (0, 1, 2, 3),
    "softmax_scale": (1.0, 5.0, 20.0),
    "mse_reduction": ("mean", "sum"),
    "alpha": (0.0, 2e-4, 2e-2),
    "entropy_reduction": ("sum", "mean"),
    "beta": (0.0, 1e-4, 1e-2, 1.0),
    "cross_entropy_weight": (0.0, 0.1, 1.0),
    "noise_is_variance": (False, True),
    "random_mask_share": (0.0, 0.5),
    "memory_rows": (0, 10, 100, 500),
}


def variants(base: StackConfig, factors: Sequence[str]) -> dict[str, StackConfig]:
    """The base, and for each value of each factor a copy of it that differs in that alone.

    Args:
      base: what is varied.
      factors: of `FACTORS`; values that the base has already are left out.

    Returns:
      By name, `BASE` first, then such as "beta=0".

    Raises:
      InputError: for an unknown factor.
    """
    found = {BASE: base}
    for factor in factors:
        if factor not in FACTORS:
            raise InputError(f"factor {factor!r} is unknown; use some of {', '.join(FACTORS)}.")
        for value in _values(base, factor):
            if value != getattr(base, factor):
                shown = f"{value:g}" if isinstance(value, float) else str(value)
                found[f"{factor}={shown}"] = dataclasses.replace(base, **{factor: value})
    return found


def _values(base: StackConfig, factor: str) -> tuple[Any, ...]:
    if factor != "shrink_threshold":
        return FACTORS[factor]
    rows = max(base.memory_rows, 1)
    return tuple(
        n / rows if n else StackConfig.shrink_threshold for n in FACTORS[factor] if n < rows
    )


def ablate(
    config: MemoryDefenseConfig,
    factors: Sequence[str],
    dataset: Dataset,
    folder: pathlib.Path,
    measured: SweepConfig,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Train and measure the base and all its variants, and the target classifier alone.

    Args:
      config: the base.
      factors: what to vary, one at a time, see `variants`.
      dataset: trained and measured on.
      folder: of the variants' folders; what is there already is not made again.
      measured: attacks, budgets and number of images; the threat models are chosen here.
      reporter: told of progress.

    Returns:
      One dictionary each: "variant", "clean" (accuracy), "robust" (accuracy by "attack eps", under
      frozen_mask; the target classifier, which has no mask, under grey_box), "n",
      "diagnostics" (see `template_diagnostics`; empty for the target classifier) and "stopped",
      a sentence where the training could not go on.

    Raises:
      InputError: as `fit_variants` and `sweep`.
    """
    reporter = reporter or Silent()
    test = data.subset(dataset.test, measured.count)
    frozen = dataclasses.replace(measured, threats=("frozen_mask",))
    rows = []
    for variant in fit_variants(config, variants(config.stack, factors), dataset, folder, reporter):
        if variant.stopped is not None:
            rows.append(_row(variant.name, [], {}, variant.stopped))
            continue
        found = sweep(
            {config.selector.recipe: variant.deployed}, dataset, frozen, variant.folder, reporter
        )
        rows.append(
            _row(variant.name, found, template_diagnostics(variant.deployed, dataset.train, test))
        )
    target = fit_target(config, dataset, folder / TARGET, reporter)
    grey = dataclasses.replace(measured, threats=("grey_box",))
    rows.append(_row(TARGET, sweep({TARGET: target}, dataset, grey, folder / TARGET, reporter), {}))
    return rows


def _row(
    name: str,
    found: Sequence[Record],
    diagnostics: Mapping[str, float],
    stopped: str | None = None,
) -> dict[str, Any]:
    clean = select(found, threat="none")
    attacked = [r for r in found if r["threat"] in ("frozen_mask", "grey_box")]
    return {
        "variant": name,
        "clean": clean[0]["robust_accuracy"] if clean else None,
        "robust": {f"{r['attack']} {eps_name(r['eps'])}": r["robust_accuracy"] for r in attacked},
        "n": clean[0]["n"] if clean else None,
        "diagnostics": dict(diagnostics),
        "stopped": stopped,
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text of what `ablate` returns, accuracies and shares in percent."""
    attacks = list(dict.fromkeys(name for row in rows for name in row["robust"]))
    shares = {"agreement": "same answer %", "follows_wrong_slot": "follows wrong slot %"}
    plain = {"mse": "MSE", "class_mean_mse": "MSE of class mean"}
    header = ["variant", "clean %", *(f"{name} %" for name in attacks), *shares.values()]
    header += ["spread kept %", *plain.values()]
    lines = []
    for row in rows:
        found = row["diagnostics"]
        spread = found["reconstruction_spread"] / found["image_spread"] if found else None
        line = [row["variant"], percent(row["clean"])]
        line += [percent(row["robust"].get(name)) for name in attacks]
        line += [percent(found.get(name)) for name in shares] + [percent(spread)]
        line += [f"{found[name]:.4f}" if found else "-" for name in plain]
        lines.append(line)
    return header, lines
