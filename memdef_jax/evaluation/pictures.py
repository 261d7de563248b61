"""Pictures of attacked images and what the memory makes of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from memdef_jax.data import Split, to_float
from memdef_jax.defenses import MemoryDefense


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
    x, adversarial = jnp.asarray(clean), jnp.asarray(shown)
    slots = np.asarray(defense.select(x)), np.asarray(defense.select(adversarial))
    rebuilt_clean = np.asarray(defense.reconstruct(x))
    rebuilt = np.asarray(defense.reconstruct(adversarial))
    from_true = np.asarray(defense.reconstruct(adversarial, jnp.asarray(labels)))
    answers = (
        np.asarray(defense(x)).argmax(-1),
        np.asarray(defense(adversarial)).argmax(-1),
    )
    delta = shown - clean
    scale = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    named = [class_names[label] for label in labels]
    everywhere = np.ones(count, bool)
    columns: list[tuple[str, np.ndarray, list[str], np.ndarray]] = [
        ("clean", clean, named, everywhere),
        (
            "rebuilt",
            rebuilt_clean,
            [
                f"{class_names[answer]} (slot {class_names[slot]})"
                for answer, slot in zip(answers[0], slots[0])
            ],
            answers[0] == labels,
        ),
        (
            "adversarial",
            shown,
            [f"slot {class_names[slot]}" for slot in slots[1]],
            slots[1] == labels,
        ),
        (
            f"perturbation x{scale:.0f}",
            0.5 + scale * delta,
            [f"max {np.abs(change).max():.3f}" for change in delta],
            everywhere,
        ),
        (
            "rebuilt, chosen slot",
            rebuilt,
            [class_names[answer] for answer in answers[1]],
            answers[1] == labels,
        ),
        ("rebuilt, true slot", from_true, named, everywhere),
    ]
    figure = Figure(figsize=(1.75 * len(columns), 1.75 * count + 0.7), layout="constrained")
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
            axis.set_xlabel(captions[row], fontsize=7, color="black" if right[row] else "#b00020")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
