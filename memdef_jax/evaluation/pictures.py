"""Pictures of attacked images and what the memory makes of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from memdef_jax.data import Split, to_float
from memdef_jax.defenses import MemoryDefense


@jax.jit
def _look(defense: MemoryDefense, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Chosen slot, answer, what is rebuilt from the chosen slot and from the true one."""
    slot = defense.select(x)
    rebuilt = defense.reconstruct(x, slot)
    answer = jnp.argmax(defense.classify(rebuilt), axis=-1)
    return slot, answer, rebuilt, defense.reconstruct(x, labels)


def attack_grid(
    defense: MemoryDefense,
    split: Split,
    outcomes: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    title: str,
) -> bytes:
    """A PNG: one row an image, from clean to rebuilt, with every label on the way.

    Columns: the clean image and its rebuilding, the adversarial one, the perturbation magnified
    around grey, and what is rebuilt from the adversarial image's chosen slot and from its true one.

    Args:
      defense: the pipeline.
      split: the clean images of the cell, in its order.
      outcomes: of `records.read_outcomes`, with "shown" [S, H, W, C].
      class_names: one a label.
      title: above the grid.
    """
    shown = outcomes["shown"]
    count = len(shown)
    clean = np.asarray(to_float(split.images[:count]))
    labels = split.labels[:count]
    looked = _look(defense, jnp.asarray(clean), jnp.asarray(labels))
    slot, answer, rebuilt, _ = (np.asarray(array) for array in looked)
    looked = _look(defense, jnp.asarray(shown), jnp.asarray(labels))
    slot_adv, answer_adv, rebuilt_adv, from_true = (np.asarray(array) for array in looked)
    delta = shown - clean
    scale = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    class_names = [_short(name) for name in class_names]
    named = [class_names[label] for label in labels]
    everywhere = np.ones(count, bool)
    columns: list[_Column] = [
        ("clean", clean, named, everywhere),
        (
            "rebuilt",
            rebuilt,
            [
                class_names[said] + ("" if said == chosen else f" (slot {class_names[chosen]})")
                for said, chosen in zip(answer, slot)
            ],
            answer == labels,
        ),
        (
            "adversarial",
            shown,
            [f"slot {class_names[chosen]}" for chosen in slot_adv],
            slot_adv == labels,
        ),
        (
            f"perturbation x{scale:.0f}",
            0.5 + scale * delta,
            [f"max {np.abs(change).max():.3f}" for change in delta],
            everywhere,
        ),
        (
            "rebuilt, chosen slot",
            rebuilt_adv,
            [class_names[said] for said in answer_adv],
            answer_adv == labels,
        ),
        ("rebuilt, true slot", from_true, named, everywhere),
    ]
    return _draw(columns, title)


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
    names = [_short(name) for name in class_names]
    grid: list[_Column] = [("mean", images.mean(axis=1), names, everywhere)]
    grid += [
        (f"row {row}", images[:, column], [""] * spec.classes, everywhere)
        for column, row in enumerate(taken)
    ]
    return _draw(grid, "memory rows, decoded", 1.0)


_decode_rows = jax.jit(lambda defense, rows: defense.decode_rows(rows))


# Heading, images, captions, and which captions are as they should be.
_Column = tuple[str, np.ndarray, list[str], np.ndarray]


def _draw(columns: Sequence[_Column], title: str, inches: float = 1.75) -> bytes:
    """A PNG of columns of captioned images; captions that should not be are red."""
    count = len(columns[0][1])
    size = (inches * len(columns), inches * count + 0.7)
    figure = Figure(figsize=size, layout="constrained")
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _short(name: str) -> str:
    """A class's name on one line, cut where it would run into the next picture."""
    name = " ".join(name.split())
    return name if len(name) <= 20 else name[:19] + "…"
