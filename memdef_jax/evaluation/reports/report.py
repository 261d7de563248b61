"""The result of a sweep as a table, as Markdown with pictures, and in words."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memdef_jax.data import Dataset
from memdef_jax.evaluation.reports import layout
from memdef_jax.evaluation.scrutiny.diagnostics import DIAGNOSTICS
from memdef_jax.evaluation.sweeps.records import Record, select
from memdef_jax.evaluation.sweeps.threats import THREATS, WORST
from memdef_jax.files import write_atomic

if TYPE_CHECKING:
    from memdef_jax.evaluation.reports.page import (
        Picture,  # which shows numbers as this module does
    )

HEADER = (
    "defense",
    "threat",
    "attack",
    "eps",
    "n",
    "pipeline %",
    "95% interval",
    "undefended %",
    "same answer %",
    "paper %",
    "median L2",
    "success %",
    "s",
)
_NAMES = {
    "memory_defense": "Memory Defense",
    "defense_vae": "Defense-VAE",
    "mad_vae": "MAD-VAE",
    "feature_denoiser": "Feature-map denoising autoencoder",
    "hgd": "HGD",
    "classifier": "Robust classifiers",
    "plain": "A defense",
}
_ORDER = {name: index for index, name in enumerate(("none", *THREATS, WORST))}
_ATTACKS = {name: index for index, name in enumerate(("clean", "fgsm", "bim", "pgd", "all", "cw"))}


def percent(share: float | None) -> str:
    """A fraction as percent with one decimal, a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def eps_name(eps: float | None) -> str:
    """A budget as k/255 where it is one."""
    if eps is None:
        return "-"
    level = eps * 255
    return f"{level:.0f}/255" if abs(level - round(level)) < 1e-6 else f"{eps:g}"


def sort_records(found: Sequence[Record]) -> list[Record]:
    """By defense, budget, attack and threat model, so that readings stand under each other.

    Defenses stay in the order in which they come.
    """
    order = {name: i for i, name in enumerate(dict.fromkeys(r["selector"] for r in found))}
    return sorted(
        found,
        key=lambda r: (
            order[r["selector"]],
            r["threat"] != "none",
            r["eps"] is None,
            r["eps"] or 0.0,
            _ATTACKS.get(r["attack"], 99),
            _ORDER.get(r["threat"], 99),
        ),
    )


def table_rows(found: Sequence[Record]) -> list[list[str]]:
    """One row a record, as text, under `HEADER`."""
    rows = []
    for r in sort_records(found):
        low, high = r["interval"]
        variant = f" ({r['variant']})" if len(r["variants"]) > 1 else ""
        cw = r["attack"] == "cw" and r["threat"] != WORST
        rows.append(
            [
                r["selector"],
                r["threat"] + variant,
                r["attack"],
                eps_name(r["eps"]),
                str(r["n"]),
                percent(r["robust_accuracy"]),
                f"{100 * low:.1f}-{100 * high:.1f}",
                percent(r["selector_accuracy"]),
                percent(r["agreement"]),
                percent(r["paper"]),
                "-" if not cw or r["median_norm"] is None else f"{r['median_norm']:.2f}",
                percent(r["success_rate"]) if cw else "-",
                f"{r['seconds']:.0f}" if r["seconds"] else "-",
            ]
        )
    return rows


def in_words(found: Sequence[Record], diagnostics: Mapping[str, Mapping[str, float]]) -> str:
    """One paragraph that says what the table shows."""
    sentences = []
    budgets = sorted({r["eps"] for r in found if r["eps"] is not None})
    for selector in dict.fromkeys(r["selector"] for r in sort_records(found)):
        own = select(found, selector=selector)
        clean = select(own, attack="clean")
        if not clean:
            continue
        text = (
            f"Defense {selector} is right on {percent(clean[0]['robust_accuracy'])}% of clean "
            "images"
        )
        worst = [(e, w) for e in budgets for w in select(own, threat=WORST, attack="all", eps=e)]
        if worst:
            text += " and, each image under whatever hurts it most, on " + " and ".join(
                f"{percent(w['robust_accuracy'])}% at {eps_name(e)}" for e, w in worst
            )
        sentences.append(text + ".")
        frozen = [
            (e, f, g)
            for e in budgets[-1:]
            for f in select(own, threat="frozen_mask", attack="pgd", eps=e)
            for g in select(own, threat="grey_box", attack="pgd", eps=e)
        ]
        for eps, f, g in frozen:
            text = (
                f"PGD at {eps_name(eps)} with the mask frozen, which is what the paper's published "
                f"code attacks, leaves {percent(f['robust_accuracy'])}%"
            )
            if f["paper"] is not None:
                text += f" (the paper prints {percent(f['paper'])}%)"
            text += (
                f"; the same budget spent on classifier-A leaves {percent(g['robust_accuracy'])}%"
            )
            adaptive = select(own, threat="adaptive", attack="pgd", eps=eps)
            if adaptive:
                text += f", and on the whole pipeline {percent(adaptive[0]['robust_accuracy'])}%"
            sentences.append(text + ".")
        if not frozen:
            sentences += _unknown_or_known(own, budgets)
    attacked = [r["agreement"] for r in found if r["agreement"] is not None]
    if attacked and diagnostics:
        d = next(iter(diagnostics.values()))
        share = d["reconstruction_spread"] / max(d["image_spread"], 1e-9)
        sentences.append(
            f"Over all cells the pipeline gives classifier-A's answer on "
            f"{'all' if min(attacked) == 1.0 else f'at least {percent(min(attacked))}% of'} "
            f"images: shown the slot of a deliberately wrong class, "
            f"classifier-B names that class on {percent(d['follows_wrong_slot'])}%, and "
            f"reconstructions of one class vary {percent(share)}% as much as its images do. "
            + (
                "The memory acts as a class template, so the defense is as robust as its selector "
                "and no more."
                if d["follows_wrong_slot"] > 0.9 and min(attacked) > 0.9
                else "Classifier-B does not simply repeat the slot, so the two can differ."
            )
        )
    return " ".join(sentences)


def _unknown_or_known(own: Sequence[Record], budgets: Sequence[float]) -> list[str]:
    """What not knowing the defense is worth, by the attack that gains most from knowing it."""
    pairs = [
        (grey, adaptive)
        for grey in select(own, threat="grey_box")
        for adaptive in select(own, threat="adaptive", attack=grey["attack"], eps=grey["eps"])
        if grey["eps"] in budgets[-1:]
    ]
    if not pairs:
        return []
    grey, adaptive = max(pairs, key=lambda p: p[0]["robust_accuracy"] - p[1]["robust_accuracy"])
    return [
        f"{grey['attack'].upper()} at {eps_name(grey['eps'])} against the undefended classifier "
        f"leaves {percent(grey['robust_accuracy'])}% of the defended answers (and "
        f"{percent(grey['selector_accuracy'])}% of the undefended ones); against the whole "
        f"pipeline it leaves {percent(adaptive['robust_accuracy'])}%."
    ]


def failures(found: Sequence[Record]) -> list[str]:
    """A line for each cell whose attack did worse than attackers who know less."""
    return [
        f"- {r['selector']}, {r['threat']}, {r['attack']} {eps_name(r['eps'])}: {r['failed']}\n"
        for r in sort_records(found)
        if r.get("failed")
    ]


def title(kind: str, dataset: Dataset, instead_of: str | None = None) -> str:
    """The report's heading; says so when the data are only the bundled digits, and why."""
    heading = f"{_NAMES.get(kind, kind)} on {dataset.info.name}"
    if dataset.info.name == "digits":
        heading += ", the small data set bundled with scikit-learn"
    return f"{heading}, because {instead_of} could not be had" if instead_of else heading


def write_report(
    folder: pathlib.Path,
    dataset: Dataset,
    found: Sequence[Record],
    diagnostics: Mapping[str, Mapping[str, float]],
    pictured: Sequence[Picture],
    heading: str,
) -> pathlib.Path:
    """Write `report.md` with its pictures into the run's folder.

    Returns:
      The report's path.
    """
    paragraph = in_words(found, diagnostics)
    rows = table_rows(found)
    lines = [
        f"# {_plain(heading)}",
        "",
        paragraph,
        "",
        f"Data: {_plain(dataset.info.name)}, {_plain(dataset.info.source)}; "
        f"SHA-256 {dataset.info.fingerprint}.",
        "Accuracies in percent on the deployed pipeline with 95% Wilson intervals; beside them "
        "the undefended classifier's own on the same images and the share of images on which both "
        "answer alike. "
        "CW has no budget: its accuracy is that on the images it returns, a failed search "
        "returning the clean one; its median is over the images that had to be changed. "
        + (
            "The paper's numbers come from another classifier-A, trained on adversarial examples."
            if any(r["paper"] is not None for r in found)
            else ""
        ),
        "",
        layout.as_markdown(HEADER, rows),
        "",
        *failures(found),
        *_diagnostics_section(diagnostics),
        "## Pictures",
        "",
    ]
    for picture in pictured:
        write_atomic(folder / "pictures" / f"{picture.name}.png", picture.png)
        lines += [f"![{picture.alt}](pictures/{picture.name}.png)", ""]
    lines += ["## Provenance", "", "```json", json.dumps(_provenance(found), indent=2), "```", ""]
    path = folder / "report.md"
    write_atomic(path, "\n".join(lines))
    return path


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names come from folders and may hold anything."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def _diagnostics_section(diagnostics: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not diagnostics:
        return []
    rows = [
        [text, *(f"{measured[key]:.4g}" for measured in diagnostics.values())]
        for key, text in DIAGNOSTICS.items()
    ]
    return [
        "## Is the memory a class template?",
        "",
        layout.as_markdown(["", *diagnostics], rows),
        "",
    ]


def _provenance(found: Sequence[Record]) -> dict[str, Any]:
    first = found[0]
    return {
        "device": first["device"],
        "versions": first["versions"],
        "seed": first["seed"],
        "attacks": {r["attack"]: r["settings"] for r in found if r["threat"] in THREATS},
    }
