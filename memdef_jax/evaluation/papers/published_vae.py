"""What the papers of the VAE defenses and of the feature-map denoiser print.

Defense-VAE: arXiv 1812.06570; MAD-VAE: arXiv 2011.01755; the feature-map denoising autoencoder.

Of Defense-VAE: Tables 1, 2, 3, 7 and 8, and the run times of Table 4. Its Table 2 does not say
which variant it is about; where it repeats a number of Table 1, that is Defense-VAE-REC's. Of
MAD-VAE: Tables 1, 2 and 3, in percent here. In its Table 2 the accuracy without attack depends on
the substitute, though the classifier under attack is the same one. Its published code counts how
often the pipeline answers as the classifier does without attack, not how often it is right. Of the
feature-map denoiser: Tables 1 and 2, the latter on gray CIFAR-10 at 28 pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

from memdef_jax.evaluation.papers.printed_text import (
    DEFENSE_VAE,
    FEATURE_DENOISER,
    MAD_VAE,
    Table,
)
from memdef_jax.evaluation.papers.published import Printed

TABLES = {
    "defense_vae": (1, 2, 3, 4, 7, 8),
    "mad_vae": (1, 2, 3),
    "feature_denoiser": (1, 2),
}

# Table 4 of Defense-VAE: seconds for 1000 images of Fashion-MNIST on an NVIDIA Titan Xp.
SECONDS = {
    "Defense-VAE": 9.03,
    "Defense-GAN, L = 200, R = 10 (recommended)": 441.81,
    "Defense-GAN, L = 400, R = 10": 875.48,
    "Defense-GAN, L = 200, R = 20": 876.10,
    "Defense-GAN, L = 400, R = 20": 1720.13,
}

WITHOUT_EPS = ("clean", "cw", "single_pixel", "overpowered")
CLEAN, UNDEFENDED = "clean", "undefended"

# What of ours a column is to be compared with; columns that are not here are other authors'.
_SYSTEMS = {
    "No Attack": CLEAN,
    "No Defense": UNDEFENDED,
    "Defense-VAE": "vae",
    "Defense-VAE-REC": "rec",
    "Defense-VAE-E2E": "e2e",
    "Trained on other 2": "rec",
    "Trained on other 2 and DeepFool": "rec",
    "Trained on 3": "rec",
    "Identity": "identity",
    "Vanilla": "vanilla",
    "Classification": "classification",
    "Proximity and Distance": "proximity_distance",
    "Combined": "combined",
    "Unsecured": UNDEFENDED,
    "Madry": "linear",
    "HGD": "logits",
    "Ours": "perceptual",
    "Ours on pixels alone": "pixel",
}
USUAL = ("cw", "fgsm", "rfgsm")  # what purifiers are trained on but in Table 2 of Defense-VAE
# What a run of these kinds was trained on; runs of all others are of the paper's own kind.
_DENOISED = ("fgsm", "pgd")
_KINDS = {"Madry": ("classifier", ("pgd 0.2",)), "HGD": ("hgd", _DENOISED)}
# Datasets that a run may have in place of a paper's, under a heading of their own.
STAND_INS = {"cifar10-jpeg": ("cifar10", "CIFAR-10 (JPEG)")}


class Row(NamedTuple):
    """Which run a number is about: its kind, data, classifier, and what it learned from."""

    kind: str
    dataset: str
    classifier: str
    trained: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrintedVAE(Printed):
    """One number of these papers.

    `row` is the classifier, or classifier/substitute, or what is counted; `system` is "clean" (the
    undefended classifier on clean images), "undefended" (the same under attack), a variant of the
    defense, or None for systems of other authors. `percent` is None where only ours exists.

    Attributes:
      column: as printed.
      kind: of the run that ours comes from.
      classifier: that is defended, as in `nn.CLASSIFIERS`.
      substitute: on which the attack was crafted, None where it was the classifier itself.
      trained: attacks that the purifier was trained on, in the order of the alphabet; of a
        classifier the one, and its eps.
    """

    column: str
    kind: str
    classifier: str
    substitute: str | None = None
    trained: tuple[str, ...] = USUAL

    @property
    def row_key(self) -> Row:
        """The run that ours comes from."""
        return Row(self.kind, self.dataset, self.classifier, self.trained)


@dataclasses.dataclass(frozen=True)
class Average:
    """The last row of a table: the average of a column, in percent."""

    table: int
    dataset: str
    column: str
    percent: float


_PAPERS = {"defense_vae": DEFENSE_VAE, "mad_vae": MAD_VAE, "feature_denoiser": FEATURE_DENOISER}


@functools.cache
def printed(paper: str) -> tuple[PrintedVAE, ...]:
    """Every accuracy in a paper's tables, in their order, those of a row one after the other.

    Accuracy without attack, which the papers repeat for every attack, is there once a row.

    Args:
      paper: one of `TABLES`.
    """
    found = []
    for table in _PAPERS[paper]:
        columns = table.columns.split(", ")
        for attack, row, *numbers in _lines(table):
            if attack == "Average":
                continue
            classifier, _, substitute = (table.classifier or row).lower().partition("/")
            for column, number in zip(columns, numbers, strict=True):
                if number == "-":
                    continue
                system = _SYSTEMS.get(column)
                name = CLEAN if system == CLEAN else attack
                kind, trained = _KINDS.get(column, (paper, _trained(paper, column, attack)))
                found.append(
                    PrintedVAE(
                        table=table.number,
                        dataset=table.dataset,
                        row=row,
                        system=system,
                        attack=name,
                        eps=None if name in WITHOUT_EPS else table.eps,
                        percent=_percent(number, table),
                        column=column,
                        kind=kind,
                        classifier=classifier,
                        substitute=substitute or None,
                        trained=trained,
                    )
                )
    return tuple(dict.fromkeys(found))


@functools.cache
def averages(paper: str) -> tuple[Average, ...]:
    """Every printed average, in the order of the tables and their columns; most have none."""
    return tuple(
        Average(table.number, table.dataset, column, float(number))
        for table in _PAPERS[paper]
        for attack, *numbers in _lines(table)
        if attack == "Average"
        for column, number in zip(table.columns.split(", "), numbers, strict=True)
    )


def _lines(table: Table) -> list[list[str]]:
    return [line.split() for line in table.rows.strip().splitlines()]


def _percent(number: str, table: Table) -> float | None:
    if number == "NA":
        return None
    return float(number) if table.percent else round(100 * float(number), 2)


def _trained(paper: str, column: str, attack: str) -> tuple[str, ...]:
    """The attacks of a purifier's training; Table 2 leaves out the one it is tested with."""
    if paper == "feature_denoiser":
        return _DENOISED
    if "other 2" not in column:
        return USUAL
    more = ("deepfool",) if "DeepFool" in column else ()
    return tuple(sorted({*USUAL, *more} - {attack}))
