"""Evaluating a run's folder from end to end: sweep, diagnostics, report."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import report
from memdef_jax.evaluation.diagnostics import template_diagnostics
from memdef_jax.evaluation.records import Record
from memdef_jax.evaluation.robustness import SweepConfig, sweep
from memdef_jax.files import write_atomic
from memdef_jax.training import Reporter
from memdef_jax.training.run import read_run


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      heading: names defense and data.
      records: of the sweep.
      words: one paragraph on what they show.
      path: of the report.
    """

    heading: str
    records: Sequence[Record]
    words: str
    path: pathlib.Path


def load_dataset(
    folder: pathlib.Path,
    defenses: Mapping[str, MemoryDefense],
    name: str | None = None,
    data_dir: str | None = None,
    raw_dir: str | None = None,
) -> Dataset:
    """The dataset a run was trained on.

    Args:
      folder: the run's.
      defenses: the run's; images are resized to what they take.
      name: where it is, for a folder of images whose path the run does not keep.
      data_dir, raw_dir: as for `data.load`.

    Raises:
      InputError: when it cannot be had or is not the one.
    """
    run = read_run(folder)
    height, width, _ = next(iter(defenses.values())).spec.image_shape
    dataset = data.load(
        name or run["dataset"], data_dir=data_dir, raw_dir=raw_dir, image_size=(height, width)
    )
    if dataset.info.fingerprint != run["fingerprint"]:
        raise InputError(
            f"{folder} was trained on {run['dataset']} with fingerprint {run['fingerprint'][:12]} "
            f"and this {dataset.info.name} has {dataset.info.fingerprint[:12]}; "
            "give the data it was trained on with --dataset."
        )
    return dataset


def evaluate_run(
    folder: pathlib.Path,
    defenses: Mapping[str, MemoryDefense],
    dataset: Dataset,
    config: SweepConfig,
    reporter: Reporter,
    instead_of: str | None = None,
) -> Evaluation:
    """Sweep a run's defenses, or go on, and write `report.md`, pictures and `diagnostics.json`.

    Args:
      folder: the run's.
      defenses: the run's, by selector.
      dataset: that they were trained on.
      config: what to cross.
      reporter: told of progress.
      instead_of: the dataset that could not be had, for the title.

    Raises:
      InputError: as `sweep`.
    """
    found = sweep(defenses, dataset, config, folder, reporter)
    test = data.subset(dataset.test, config.count)
    diagnostics = {
        name: template_diagnostics(defense, dataset.train, test)
        for name, defense in defenses.items()
    }
    write_atomic(folder / "diagnostics.json", json.dumps(diagnostics, indent=2))
    heading = report.title(dataset, instead_of)
    path = report.write_report(folder, dataset, defenses, config, found, diagnostics, heading)
    return Evaluation(heading, found, report.in_words(found, diagnostics), path)
