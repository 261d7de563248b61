"""Pictures of attacked images and what the memory makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from memdef_jax.data import Split, to_float
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation.reports.figures import png


@jax.jit
def _look(defense: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """What the undefended classifier says, the pipeline's answer, and what is rebuilt."""
    return defense.select(x), jnp.argmax(defense(x), axis=-1), defense.reconstruct(x)


_rebuild = jax.jit(lambda defense, x, labels: defense.reconstruct(x, labels))


def attack_grid(
    defense: Any,
    split: Split,
    outcomes: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    title: str,
) -> bytes:
    """A PNG: one row an image, from clean to rebuilt, with every label on the way.

    Columns: the clean image and its rebuilding, the adversarial one, the perturbation magnified
    around grey, and what is rebuilt from the adversarial image; where there are slots, from the
    chosen one and from the true one.

    Args:
      defense: the pipeline, with `reconstruct(x)` and, if it has a memory, `decode_rows`.
      split: the clean images of the cell, in its order.
      outcomes: of `records.read_outcomes`, with "shown" [S, H, W, C].
      class_names: one a label.
      title: above the grid.
    """
    shown, slotted = outcomes["shown"], hasattr(defense, "decode_rows")
    word = "slot" if slotted else "undefended"
    count = len(shown)
    clean, labels = np.asarray(to_float(split.images[:count])), split.labels[:count]
    chosen, answer, rebuilt = map(np.asarray, _look(defense, jnp.asarray(clean)))
    chosen_adv, answer_adv, rebuilt_adv = map(np.asarray, _look(defense, jnp.asarray(shown)))
    delta = shown - clean
    scale = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    names = [short_name(name) for name in class_names]
    named = [names[label] for label in labels]
    everywhere = np.ones(count, bool)
    columns: list[Column] = [
        ("clean", clean, named, everywhere),
        (
            "rebuilt",
            rebuilt,
            [
                names[said] + ("" if said == other else f" ({word} {names[other]})")
                for said, other in zip(answer, chosen)
            ],
            answer == labels,
        ),
        (
            "adversarial",
            shown,
            [f"{word} {names[other]}" for other in chosen_adv],
            chosen_adv == labels,
        ),
        (
            f"perturbation x{scale:.0f}",
            0.5 + scale * delta,
            [f"max {np.abs(change).max():.3f}" for change in delta],
            everywhere,
        ),
        (
            "rebuilt, chosen slot" if slotted else "rebuilt",
            rebuilt_adv,
            [names[said] for said in answer_adv],
            answer_adv == labels,
        ),
    ]
    if slotted:
        from_true = np.asarray(_rebuild(defense, jnp.asarray(shown), jnp.asarray(labels)))
        columns.append(("rebuilt, true slot", from_true, named, everywhere))
    return draw_grid(columns, title)


def memory_grid(
    defense: MemoryDefense, class_names: Sequence[str], columns: int = 10
) -> bytes | None:
    """A PNG of the memory rows decoded one by one: a line of rows for each class, and their mean.

    None for a defense without memory.
    """
    spec = defense.spec
    if not spec.memory_rows:
        return None
    slots = spec.memory_rows // spec.classes
    taken = np.linspace(0, slots - 1, min(columns, slots)).round().astype(int)
    places = np.arange(spec.classes)[:, None] * slots + taken
    images = np.asarray(_decode_rows(defense, jnp.asarray(places.ravel())))
    images = images.reshape(*places.shape, *images.shape[1:])
    everywhere = np.ones(spec.classes, bool)
    names = [short_name(name) for name in class_names]
    grid: list[Column] = [("mean", images.mean(axis=1), names, everywhere)]
    grid += [
        (f"row {row}", images[:, column], [""] * spec.classes, everywhere)
        for column, row in enumerate(taken)
    ]
    return draw_grid(grid, "memory rows, decoded", 1.0)


_decode_rows = jax.jit(lambda defense, rows: defense.decode_rows(rows))


# Heading, images, captions, and which captions are as they should be.
Column = tuple[str, np.ndarray, list[str], np.ndarray]


def draw_grid(columns: Sequence[Column], title: str, inches: float = 1.75) -> bytes:
    """A PNG of columns of captioned images; captions that should not be are red."""
    count = len(columns[0][1])
    size = (inches * len(columns), inches * count + 0.7)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, images, captions, right) in enumerate(columns):
        axes[0][column].set_title(name, fontsize=9)
        for row in range(count):
            axis = axes[row][column]
            picture = np.clip(images[row], 0.0, 1.0)
            picture = picture.squeeze(-1) if picture.shape[-1] == 1 else picture
            axis.imshow(picture, "gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            color = "black" if right[row] else "#b00020"
            # A class may be named with dollars, which would otherwise start a formula.
            axis.set_xlabel(captions[row], fontsize=8, color=color, parse_math=False)
    return png(figure)


def short_name(name: str) -> str:
    """A class's name on one line, cut where it would run into the next picture."""
    name = " ".join(name.split())
    return name if len(name) <= 20 else name[:19] + "…"
