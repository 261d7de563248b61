"""Figures of a report, each as the bytes of a PNG: lines, matrices, distributions, points.

All stand on white, so that they can be read on a dark page too, and tell things apart by colour and
by a second sign (dash, marker or hatch). The colours are the "muted" scheme of Paul Tol's technical
note SRON/EPS/TN/09-002, made for colour-blind readers, in an order that puts the dark ones first.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

PALETTE = (
    "#332288",
    "#cc6677",
    "#117733",
    "#aa4499",
    "#999933",
    "#44aa99",
    "#882255",
    "#88ccee",
    "#ddcc77",
    "#777777",
)
_DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....")
_MOST_NAMED = 20  # classes that still find room on an axis or in a legend
_LONGEST = 42  # letters of a name in a legend
_MOST_COUNTED = 12  # classes whose counts can be written into a matrix


def curves(found: Sequence[Mapping[str, Any]]) -> bytes:
    """Robust accuracy against the budget, a line a curve, its 95% interval as a band.

    Args:
      found: at least one, each with "name" (its legend), "eps" [N] in units of [0, 1] pixels and
        "robust" [N] in [0, 1]; with "low" and "high" [N] it gets a band. None leaves a gap.
    """
    names = [curve["name"] for curve in found]
    figure = _figure(3.6 + 0.2 * math.ceil(len(found) / _columns(names)))
    axis = figure.subplots()
    handles = []
    for index, curve in enumerate(found):
        eps, robust = _floats(curve["eps"]), 100 * _floats(curve["robust"])
        color = PALETTE[index % len(PALETTE)]
        handles += axis.plot(
            eps,
            robust,
            color=color,
            linestyle=_DASHES[index % len(_DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            markevery=max(1, len(eps) // 10),
        )
        if curve.get("low") and curve.get("high"):
            low, high = 100 * _floats(curve["low"]), 100 * _floats(curve["high"])
            axis.fill_between(eps, low, high, color=color, alpha=0.12, linewidth=0)
    axis.set(xlabel="eps (in units of [0, 1] pixels)", ylabel="robust accuracy (%)")
    axis.set_ylim(-3, 103)
    axis.grid(color="#dddddd", linewidth=0.6)
    _legend(figure, handles, names)
    return png(figure)


def confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> bytes:
    """A matrix of counts, shaded by the share of its row.

    Args:
      counts: [K, K], the class that the undefended classifier names, which in Memory Defense is
        the chosen slot, by the pipeline's answer.
      class_names: [K].
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure = _figure(4.7)
    axis = figure.subplots()
    image = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("share of the row's images (%)")
    axis.set(xlabel="answer of the pipeline", ylabel="undefended classifier")
    if len(class_names) <= _MOST_NAMED:
        names = [_one_line(name) for name in class_names]
        ticks = np.arange(len(names))
        axis.set_xticks(ticks, names, rotation=90, fontsize=8.5, parse_math=False)
        axis.set_yticks(ticks, names, fontsize=8.5, parse_math=False)
    if len(class_names) <= _MOST_COUNTED:
        for row, column in np.argwhere(table > 0):
            color = "white" if shares[row, column] > 0.55 else "black"
            text = f"{table[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)
    return png(figure)


def histograms(scores: Mapping[str, Sequence[float]], threshold: float | None) -> bytes:
    """Distributions of the reconstruction error on common bins, with the detector's threshold.

    Args:
      scores: at least one kind of images by name, each with at least one error.
      threshold: errors above it are called adversarial; None draws none.
    """
    kinds = {name: _floats(values) for name, values in scores.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(kinds.values())), bins=40)
    figure = _figure(4.6)
    axis = figure.subplots()
    handles: list[Any] = []
    for index, values in enumerate(kinds.values()):
        color = PALETTE[index % len(PALETTE)]
        counts, _ = np.histogram(values, bins)
        patch = axis.stairs(
            100 * counts / len(values),
            bins,
            fill=True,
            facecolor=color + "40",
            edgecolor=color,
            hatch=_HATCHES[index % len(_HATCHES)],
            linewidth=1.5,
        )
        handles.append(patch)
    names = list(kinds)
    if threshold is not None:
        handles.append(axis.axvline(threshold, color="black", linestyle="--", linewidth=1.2))
        names.append("threshold")
    axis.set(xlabel="reconstruction error (mean squared, per pixel)", ylabel="images (%)")
    _legend(figure, handles, names)
    return png(figure)


def roc(rates: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Detected share of adversarial images against the share of clean ones called adversarial.

    Args:
      rates: for each kind of adversarial images (false positive rates [N], detection rates [N]).
    """
    figure = _figure(4.6)
    axis = figure.subplots()
    handles = []
    for index, (false_positives, detected) in enumerate(rates.values()):
        handles += axis.plot(
            100 * false_positives,
            100 * detected,
            color=PALETTE[index % len(PALETTE)],
            linestyle=_DASHES[index % len(_DASHES)],
        )
    handles += axis.plot([0, 100], [0, 100], color="#777777", linestyle=":", linewidth=1)
    axis.set(xlabel="clean images called adversarial (%)", ylabel="adversarial images detected (%)")
    axis.set_aspect("equal")
    axis.grid(color="#dddddd", linewidth=0.6)
    _legend(figure, handles, [*rates, "chance"])
    return png(figure)


def scatter(spaces: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> bytes:
    """Points in the plane, a colour and a marker a class, a column a space.

    Args:
      spaces: by what they are, each with "points" [N, 2], whose units mean nothing, as t-SNE's do,
        and "labels" [N]; with "adversarial" [N] attacked images stand below the clean ones, on the
        same axes; what "alike" says of them, see `latent.alike`, is in their titles.
      class_names: [K].
    """
    split = any(found.get("adversarial") for found in spaces.values())
    kinds = ("clean", "attacked") if split else ("",)
    figure = _figure(1.2 + 4.2 * len(kinds), 5.6 * len(spaces))
    axes = figure.subplots(len(kinds), len(spaces), squeeze=False, sharex="col", sharey="col")
    handles: dict[int, Any] = {}
    for column, (title, found) in zip(axes.T, spaces.items()):
        where, labels = np.asarray(found["points"], dtype=float), np.asarray(found["labels"])
        attacked = np.asarray(found.get("adversarial") or np.zeros(len(where)), bool)
        for axis, kind, shown in zip(column, kinds, (~attacked, attacked)):
            axis.set(ylabel="second coordinate (no unit)", xticks=[], yticks=[])
            parts = (f"{kind} images" if kind else "", title if len(spaces) > 1 else "")
            share = (found.get("alike") or {}).get(kind)
            told = "" if share is None else f"\n{share:.0%} of an image's neighbours have its label"
            words = ", ".join(filter(None, parts)) + told
            axis.set_title(words, fontsize=10, parse_math=False)
            for label in np.unique(labels):
                handles[label] = axis.scatter(
                    *where[shown & (labels == label)].T,
                    s=14,
                    color=PALETTE[label % len(PALETTE)],
                    marker=MARKERS[label % len(MARKERS)],
                    linewidths=0,
                    alpha=0.8,
                )
        column[-1].set_xlabel("first coordinate (no unit)")
    if len(handles) <= _MOST_NAMED:
        present = sorted(handles)
        _legend(figure, [handles[i] for i in present], [class_names[i] for i in present])
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _figure(height: float, width: float = 5.6) -> Figure:
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names below the axes, where they cover nothing."""
    legend = figure.legend(
        handles,
        [_one_line(name, _LONGEST) for name in names],
        loc="outside lower center",
        ncols=_columns(names),
        fontsize=9,
        frameon=False,
    )
    # A class may be named with dollars, which would otherwise start a formula.
    for text in legend.get_texts():
        text.set_parse_math(False)


def _columns(names: Sequence[str]) -> int:
    """How many names of this length stand beside each other."""
    longest = max(len(_one_line(name, _LONGEST)) for name in names)
    return max(1, min(len(names), 78 // (longest + 10)))


def _one_line(name: str, most: int = 18) -> str:
    """A name that fits; matplotlib leaves names that begin with an underscore out of legends."""
    name = " ".join(name.split())
    name = name if len(name) <= most else name[: most - 1] + "…"
    return f" {name}" if name.startswith("_") else name


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """As floats, None becoming NaN, which plots as a gap."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)
