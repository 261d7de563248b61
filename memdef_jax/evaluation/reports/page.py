"""One run as one HTML page that needs nothing else: no network, no other file, no server.

Every number on it is looked up in the summary by `number`, which shows it rounded and keeps it
exactly in `data-value`, beside its address in the embedded JSON in `data-from` (a JSON pointer,
RFC 6901). So page and summary cannot differ.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers.latent import SPACES
from memdef_jax.evaluation.reports import figures
from memdef_jax.evaluation.reports.report import eps_name, percent, sort_records
from memdef_jax.evaluation.scrutiny.detection import roc
from memdef_jax.evaluation.scrutiny.diagnostics import DIAGNOSTICS
from memdef_jax.evaluation.sweeps.threats import WORST

PAGE_LIMIT = 5_000_000  # bytes, so that a page opens at once and can be sent
_JSON_LIMIT = 1_000_000
_LONG = frozenset(
    {"clean_scores", "attacked_scores", "evading_scores", "points", "labels", "adversarial"}
)
_PNG = b"\x89PNG\r\n\x1a\n"

KINDS: dict[str, Callable[[float], str]] = {
    "percent": percent,
    "eps": eps_name,
    "count": lambda value: f"{value:.0f}",
    "plain": lambda value: f"{value:.4g}",
    "seconds": lambda value: f"{value:.1f}",
    "exact": json.dumps,
}
SIGNS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with the words that stand for it.

    Attributes:
      name: its caption, one line.
      png: the bytes of a PNG file.
      alt: what it shows, for those who do not see it.
      section: "memory" or "latent"; any other stands among the attacked images.
    """

    name: str
    png: bytes
    alt: str
    section: str


def render(summary: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """A run's page.

    Args:
      summary: the content of `report.json`. Sections that are absent or empty are left out.
      pictures: those that are not drawn from the summary. The last ones are left out, and named,
        where the page would exceed `PAGE_LIMIT`.

    Returns:
      The text of an HTML file.

    Raises:
      InputError: when a picture is no PNG.
    """
    for picture in pictures:
        if not picture.png.startswith(_PNG):
            raise InputError(f"picture {picture.name!r} is no PNG file; draw it again.")
    drawn = _drawn(summary)
    kept = list(pictures)
    while True:
        html = _fill_report(summary, [*kept, *drawn], [p.name for p in pictures[len(kept) :]])
        excess = len(html.encode()) - PAGE_LIMIT
        if excess <= 0 or not kept:
            return html
        while kept and excess > 0:
            excess -= len(kept.pop().png) * 4 // 3


def _fill_report(
    summary: Mapping[str, Any], pictures: Sequence[Picture], left_out: Sequence[str]
) -> str:
    shown: dict[str, list[Picture]] = {}
    for picture in pictures:
        known = picture.section in ("curves", "confusion", "memory", "detection", "latent")
        shown.setdefault(picture.section if known else "attacked", []).append(picture)
    records = summary.get("records") or []
    sections = {
        "results": ("Results", records),
        "curves": ("Accuracy against the budget", summary.get("curves")),
        "checks": ("Checks of this evaluation", any((summary.get("checks") or {}).values())),
        "attacked": ("Attacked images", shown.get("attacked") or left_out),
        "confusion": ("Undefended classifier and pipeline", shown.get("confusion")),
        "memory": ("Memory", shown.get("memory") or summary.get("diagnostics")),
        "detection": ("Detection by reconstruction error", summary.get("detection")),
        "latent": ("Latent space", shown.get("latent")),
        "transfer": ("Transfer", (summary.get("transfer") or {}).get("accuracy")),
        "provenance": ("Provenance", summary.get("provenance")),
    }
    return fill(
        "report.html",
        summary,
        heading=summary.get("heading") or "Robustness report",
        sections={name: title for name, (title, content) in sections.items() if content},
        rows=sort_records([{**record, "position": i} for i, record in enumerate(records)]),
        pictures=shown,
        left_out=left_out,
    )


def fill(template: str, tree: Mapping[str, Any], **values: Any) -> str:
    """A template's HTML, with the helpers that show what is in a JSON-able tree."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memdef_jax.evaluation.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=functools.partial(number, tree),
        image=image,
        eps_name=eps_name,
        signs=SIGNS,
        diagnostics=DIAGNOSTICS,
        worst=WORST,
    )
    environment.filters["pretty"] = functools.partial(json.dumps, indent=2, ensure_ascii=False)
    return environment.get_template(template).render(
        summary=tree, embedded=embedded(tree), **values
    )


def number(tree: Any, kind: str, *path: str | int) -> Markup:
    """A number of the tree as HTML; a dash where it is absent, null or not finite.

    Args:
      tree: what the page shows.
      kind: how to write it, of `KINDS`.
      path: keys and indices that lead to it.
    """
    value = look_up(tree, path)
    if not _is_number(value):
        return Markup("-")
    names = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return Markup('<span data-value="{}" data-from="{}">{}</span>').format(
        json.dumps(value), "".join(f"/{name}" for name in names), KINDS[kind](value)
    )


def look_up(tree: Any, path: Iterable[str | int]) -> Any:
    """What lies at the end of the path, None where it breaks off."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def image(picture: Picture) -> Markup:
    """An `<img>` that carries its picture."""
    width, height = (int.from_bytes(picture.png[i : i + 4], "big") for i in (16, 20))
    return Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">').format(
        base64.b64encode(picture.png).decode(), picture.alt, width, height
    )


def embedded(tree: Any) -> Markup:
    """The tree as JSON fit for a `<script>`; long lists of scores are left out of a long one."""
    text = _dumps(tree)
    if len(text) > _JSON_LIMIT:
        text = _dumps(tree, without=_LONG)
    return Markup(text.replace("<", "\\u003c"))


def _dumps(tree: Any, without: frozenset[str] = frozenset()) -> str:
    def finite(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: finite(value) for name, value in part.items() if name not in without}
        if isinstance(part, (list, tuple)):
            return [finite(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(tree), separators=(",", ":"), allow_nan=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _drawn(summary: Mapping[str, Any]) -> list[Picture]:
    """The figures of what the summary holds."""
    return [
        *_drawn_curves(summary.get("curves") or []),
        *_drawn_confusion(summary),
        *_drawn_detection(summary.get("detection") or {}),
        *_drawn_latent(summary.get("latent") or {}),
    ]


def _drawn_curves(curves: Sequence[Mapping[str, Any]]) -> list[Picture]:
    pictures = []
    for selector in dict.fromkeys(curve["selector"] for curve in curves):
        own = [curve for curve in curves if curve["selector"] == selector]
        alt = (
            f"Lines of robust accuracy against eps, defense {selector}: "
            f"{'; '.join(curve['name'] for curve in own)}. The numbers are in the table below."
        )
        name = f"Defense {selector}, with 95% intervals"
        pictures.append(Picture(name, figures.curves(own), alt, "curves"))
    return pictures


def _drawn_confusion(summary: Mapping[str, Any]) -> list[Picture]:
    pictures = []
    for selector, found in (summary.get("confusion") or {}).items():
        words = f"Defense {selector}, {found.get('words', '')}".rstrip(", ")
        names = summary.get("class_names") or [str(i) for i in range(len(found["slots"]))]
        alt = f"Matrix of the undefended classifier's answer by the pipeline's, {words}."
        png = figures.confusion(found["slots"], names)
        pictures.append(Picture(words, png, alt, "confusion"))
    return pictures


def _drawn_detection(detection: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    pictures = []
    kinds = {
        "clean": "clean_scores",
        "attacked, detector unknown": "attacked_scores",
        "attacked, evading the detector": "evading_scores",
    }
    for selector, found in detection.items():
        scores = {
            name: [score for score in found.get(key) or () if _is_number(score)]
            for name, key in kinds.items()
        }
        scores = {name: values for name, values in scores.items() if values}
        if not scores:
            continue
        words = f"Defense {selector}, reconstruction error of images: {'; '.join(scores)}"
        png = figures.histograms(scores, found.get("threshold"))
        alt = f"Histograms with the detector's threshold: {words}."
        pictures.append(Picture(words, png, alt, "detection"))
        clean = scores.pop("clean", None)
        if clean and scores:
            words = f"Defense {selector}, receiver operating characteristic of the detector"
            rates = {name: roc(np.asarray(clean), np.asarray(s)) for name, s in scores.items()}
            png = figures.roc(rates)
            alt = f"Detected share against false alarms: {words}."
            pictures.append(Picture(words, png, alt, "detection"))
    return pictures


def _drawn_latent(latent: Mapping[str, Any]) -> list[Picture]:
    pictures = []
    for key, title in SPACES.items():
        found = latent.get(key) or {}
        if found.get("points"):
            words = f"t-SNE: {title}"
            png = figures.scatter({words: found}, latent["class_names"])
            alt = f"{words}: {len(found['points'])} images, coloured by class."
            pictures.append(Picture(words, png, alt, "latent"))
    return pictures
