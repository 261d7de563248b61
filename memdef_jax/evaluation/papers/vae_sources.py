"""The runs that the tables of the VAE defenses and denoisers are put beside."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.defenses import is_finished
from memdef_jax.evaluation.papers.printed_text import EPS
from memdef_jax.evaluation.papers.published import same_eps
from memdef_jax.evaluation.papers.published_vae import (
    CLEAN,
    STAND_INS,
    UNDEFENDED,
    Row,
    printed,
)
from memdef_jax.evaluation.papers.tables import Reading
from memdef_jax.evaluation.runs import find_runs
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps.records import Record, read_records, select
from memdef_jax.evaluation.sweeps.threats import WORST
from memdef_jax.files import read_json

NAMES = {
    "defense_vae": "Defense-VAE",
    "mad_vae": "MAD-VAE",
    "feature_denoiser": "Feature Map Denoising",
}
# Readings of an attack on the classifier itself, on a substitute and in latent space, the papers'
# own first. A substitute learns from the answers of an oracle: the classifier or the pipeline. The
# search in latent space asks the pipeline, or as MAD-VAE's published code its classifier alone.
WHITE_BOX = ("grey_box", "adaptive", WORST)
BLACK_BOX = ("oracle undefended", "oracle deployed")
LATENT = ("overpowered", "overpowered, classifier alone")
RHOS = [1.0, 2.5, 3.0, 3.5]  # noise of the Overpowered attack, over which MAD-VAE pools
_SEARCHED = dict(zip(LATENT, ("overpowered", "overpowered-classifier")))  # the files' names


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, and what was measured on it.

    Attributes:
      folder: the run's.
      kind: of its defenses.
      dataset: it was trained on; a folder of images by the folder's name.
      classifier: that it defends, as in `nn.CLASSIFIERS`.
      trained: attacks that its purifiers learned from, in the order of the alphabet; of a
        classifier the recipe that it was trained by, and its eps.
      variants: that it has.
      finished: whether its training has come to its end.
      records: of its sweeps.
      substitutes: readings of attacks on substitutes, by substitute and system.
      overpowered: the same of the Overpowered attack, by what is counted and variant.
      remarks: sentences on what that attack found.
    """

    folder: pathlib.Path
    kind: str
    dataset: str
    classifier: str
    trained: tuple[str, ...]
    variants: tuple[str, ...]
    finished: bool = True
    records: Sequence[Record] = ()
    substitutes: Mapping[tuple[str, str], Mapping[str, Reading]] = dataclasses.field(
        default_factory=dict
    )
    overpowered: Mapping[tuple[str, str], Mapping[str, Reading]] = dataclasses.field(
        default_factory=dict
    )
    remarks: tuple[str, ...] = ()

    @property
    def row(self) -> Row:
        """What makes it a row of a paper."""
        return Row(self.kind, self.dataset, self.classifier, self.trained)


def read_sources(folder: pathlib.Path, paper: str) -> list[Source]:
    """The runs in a folder, see `find_runs`, that a paper's tables are about.

    Those are the runs of its own defense, and of other kinds such as have a column in its tables;
    not those of imported weights, since what they were trained on is unknown.

    Raises:
      InputError: when there is none of its own, two are the same row, or a file of theirs is
        damaged.
    """
    kinds = {number.row_key.kind for number in printed(paper)}
    runs = [
        (place, run)
        for place, run in find_runs(folder)
        if run.get("kind") in kinds and "imported" not in (run.get("config") or ())
    ]
    if not any(run["kind"] == paper for _, run in runs):
        raise InputError(
            f"{folder} holds no run of {NAMES[paper]}, nor do the folders in it; train one first "
            f"with `python -m train.{paper}`, or give the folder that it is in."
        )
    shown = {number.row_key for number in printed(paper)}
    found = [_read_source(place, run) for place, run in runs]
    found = [source for source in found if source.kind == paper or _original(source.row) in shown]
    rows: dict[Any, Source] = {}
    for source in found:
        other = rows.setdefault(source.row, source)
        if other is not source:
            raise InputError(
                f"{other.folder} and {source.folder} are runs on the same dataset, classifier and "
                "training attacks, and a row of the paper is one run; leave one in the folder."
            )
    return found


def _original(row: Row) -> Row:
    """The row with a paper's own dataset where it has another one in its place."""
    dataset, _ = STAND_INS.get(row.dataset, (row.dataset, ""))
    return row._replace(dataset=dataset)


def _trained(kind: str, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The classifier of a run, and what it or its purifiers learned from."""
    if kind == "classifier":
        recipe, eps = config["training"]["recipe"], config["training"]["eps"]
        return config["architecture"], (f"{recipe} {eps:g}",)
    attacks = config["mixture" if "mixture" in config else "examples"]["attacks"]
    return config["classifier"]["architecture"], tuple(sorted(attacks))


def _read_source(folder: pathlib.Path, run: Mapping[str, Any]) -> Source:
    try:
        kind, dataset, fingerprint = run["kind"], run["dataset"], run["fingerprint"]
        classifier, trained = _trained(kind, run["config"])
        variants = tuple(run["defenses"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'run.json'} is damaged; choose a new folder or delete this one."
        ) from error
    records = read_records(folder).values()
    substitutes = _read(folder, "black_box", fingerprint, _substitutes, {})
    overpowered: dict[tuple[str, str], dict[str, Reading]] = {}
    remarks: tuple[str, ...] = ()
    for reading, name in _SEARCHED.items():
        found, said = _read(folder, name, fingerprint, _overpowered, ({}, ()))
        for place, measured in found.items():
            overpowered.setdefault(place, {})[reading] = measured
        remarks += said
    return Source(
        folder=folder,
        kind=kind,
        dataset=dataset.removeprefix("folder:"),
        classifier=classifier,
        trained=trained,
        variants=variants,
        finished=is_finished(folder),
        records=select(records, dataset=dataset, fingerprint=fingerprint),
        substitutes=substitutes,
        overpowered=overpowered,
        remarks=remarks,
    )


def _read(folder: pathlib.Path, name: str, fingerprint: str, parse: Any, absent: Any) -> Any:
    path = folder / f"{name}.json"
    if not path.is_file():
        return absent
    program, _, target = name.partition("-")
    command = f"python -m eval.{program} --run {folder}" + (f" --target {target}" if target else "")
    again = f"delete it and measure again with `{command}`."
    content = read_json(path, again)
    try:
        same, found = content["fingerprint"] == fingerprint, parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{path} is damaged; {again}") from error
    if not same:
        raise InputError(f"{path} was measured on other data than its run has; {again}")
    return found


def _substitutes(content: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Reading]]:
    found: dict[tuple[str, str], dict[str, Reading]] = {}
    own, deployed = BLACK_BOX
    # Of several the last counts: the one with most images, and then with the first seed.
    for row in sorted(content["rows"], key=lambda row: (row["n"], -row["seed"])):
        if not same_eps(row["eps"], EPS):
            continue
        name, n = row["substitute"], row["n"]
        reading = deployed
        if row["oracle"] == UNDEFENDED:
            reading = own
            found[name, CLEAN] = {CLEAN: counted(row["clean_undefended"], n)}
            found[name, UNDEFENDED] = {own: counted(row["undefended"], n)}
        for variant, judged in row["variants"].items():
            here = found.setdefault((name, variant), {})
            here[reading] = counted(judged["robust"], n, judged["interval"])
    return found


def _overpowered(
    content: Mapping[str, Any],
) -> tuple[dict[tuple[str, str], Reading], tuple[str, ...]]:
    if sorted(content["rhos"]) != RHOS:
        return {}, ()
    n, remarks = content["n"], []
    where = "'s classifier alone" if content["target"] == "classifier" else ""
    found: dict[tuple[str, str], Reading] = {}
    for variant, told in content["variants"].items():
        if told["accuracy"] is None or told["original_accuracy"] is None:
            continue
        pooled = counted(told["accuracy"], n, told["interval"])
        found["accuracy", variant] = pooled
        found["original_accuracy", variant] = counted(told["original_accuracy"], n)
        if told["found"] and told["changed"] is not None:
            remarks.append(
                f"The Overpowered attack on {variant}{where} found an image in "
                f"{100 * told['found']:.1f}% of its searches; {100 * told['changed']:.1f}% "
                "of these show another class to the proxy, a classifier that no variant has."
            )
    return found, tuple(remarks)


def counted(share: float, n: int, interval: Sequence[float] | None = None) -> Reading:
    """A reading in percent of a share of n images; Wilson's interval if none is given."""
    low, high = interval or wilson_interval(round(share * n), n)
    return Reading(100 * share, n, (100 * low, 100 * high))
