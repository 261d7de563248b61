"""Evaluating a run's folder from end to end: sweep, diagnostics, report."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from memdef_jax import data, processes
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses import Defense, MemoryDefense
from memdef_jax.evaluation.reports import illustrate, page, report
from memdef_jax.evaluation.reports.summary import summarise
from memdef_jax.evaluation.scrutiny.diagnostics import template_diagnostics
from memdef_jax.evaluation.scrutiny.examination import Examination, examine
from memdef_jax.evaluation.sweeps.config import SweepConfig
from memdef_jax.evaluation.sweeps.records import Record
from memdef_jax.evaluation.sweeps.robustness import joined, sweep
from memdef_jax.files import write_atomic
from memdef_jax.locks import locked
from memdef_jax.training import Reporter
from memdef_jax.training.run import read_run


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      heading: names defense and data.
      records: of all that the folder holds on the same images, see `joined`.
      words: one paragraph on what they show.
      path: of the report.
    """

    heading: str
    records: Sequence[Record]
    words: str
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a run's data are, as users say it.

    Attributes:
      dataset: for a run on a folder of images, folder:PATH; the run does not keep the path.
      data_dir: where prepared datasets live.
      raw_dir: a folder with the dataset's raw files.
    """

    dataset: str | None = None
    data_dir: str | None = None
    raw_dir: str | None = None


def load_dataset(folder: pathlib.Path, defenses: Mapping[str, Defense], where: Where) -> Dataset:
    """The dataset a run was trained on.

    Args:
      folder: the run's.
      defenses: the run's; images are resized to what they take, and gray where they take gray.
      where: its data are.

    Raises:
      InputError: when it cannot be had or is not the one.
    """
    run = read_run(folder)
    if not all(isinstance(run.get(name), str) for name in ("dataset", "fingerprint")):
        raise InputError(f"{folder} does not say what it was trained on; train anew.")
    height, width, channels = next(iter(defenses.values())).spec.image_shape
    load = partial(
        data.load,
        where.dataset or run["dataset"],
        data_dir=where.data_dir,
        raw_dir=where.raw_dir,
        image_size=(height, width),
        gray=channels == 1,
    )
    dataset = data.shared(load, folder)
    if dataset.info.fingerprint != run["fingerprint"]:
        raise InputError(
            f"{folder} was trained on {run['dataset']} with fingerprint {run['fingerprint'][:12]} "
            f"and this {dataset.info.name} has {dataset.info.fingerprint[:12]}; "
            "give the data it was trained on with --dataset."
        )
    return dataset


def evaluate_run(
    folder: pathlib.Path,
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    config: SweepConfig,
    reporter: Reporter,
    *,
    examination: Examination | None = None,
    instead_of: str | None = None,
    command: str = "",
) -> Evaluation:
    """Sweep defenses, or go on, examine them, and write what was found, by earlier sweeps too.

    Files: `report.html`, one page without need of a network; `report.json`, all its numbers;
    `report.md` and `pictures/`; and what they are made of, see `sweep` and `examine`.

    Args:
      folder: the run's.
      defenses: by name.
      dataset: that they were trained on.
      config: what to cross.
      reporter: told of progress.
      examination: how much of it; None leaves doubts and detection out.
      instead_of: the dataset that could not be had, for the title.
      command: what the user typed, for the record.

    Raises:
      InputError: as `sweep`.
    """
    with locked(folder, reporter.note):
        found = joined(folder, sweep(defenses, dataset, config, folder, reporter))
        test = data.subset(dataset.test, config.count)
        diagnostics = processes.by_one(
            lambda: {
                name: template_diagnostics(defense, dataset.train, test)
                for name, defense in defenses.items()
                if isinstance(defense, MemoryDefense)
            }
        )
        write_atomic(folder / "diagnostics.json", json.dumps(diagnostics, indent=2))
        examined: dict[str, Any] = {}
        if examination is not None:
            examined = examine(folder, defenses, dataset, found, examination, reporter)
        heading = report.title(found[0]["defense"], dataset, instead_of)
        words = report.in_words(found, diagnostics)
        pictured = illustrate.draw(folder, dataset, defenses, config, found)
        report.write_report(folder, dataset, found, diagnostics, pictured, heading)
        info = dataset.info
        summary = summarise(
            folder,
            found,
            info.class_names,
            heading=heading,
            words=words,
            data={"name": info.name, "source": info.source, "fingerprint": info.fingerprint},
            diagnostics=diagnostics,
            provenance={
                "command": command,
                "sweep": dataclasses.asdict(config),
                "examination": dataclasses.asdict(examination) if examination else None,
                "device": found[0]["device"],
                "versions": found[0]["versions"],
                "training": _training(folder),
            },
            **examined,
        )
        write_atomic(folder / "report.json", json.dumps(summary, indent=1))
        path = folder / "report.html"
        write_atomic(path, page.render(summary, pictured))
        return Evaluation(heading, found, words, path)


def examination_for(config: SweepConfig) -> Examination:
    """As much of an examination as suits a sweep: at its largest budget, on no more images."""
    usual = Examination()
    most = config.count or usual.detected
    return Examination(
        eps=max(config.eps, default=usual.eps),
        images=min(usual.images, most),
        detected=min(usual.detected, most),
        embedded=min(usual.embedded, most),
        seed=config.seeds[0],
    )


def _training(folder: pathlib.Path) -> dict[str, Any] | None:
    """The configuration a run was trained with; None where it was not trained here."""
    return read_run(folder) if (folder / "run.json").is_file() else None
