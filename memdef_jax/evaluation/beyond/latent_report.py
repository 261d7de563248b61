"""What an attack on latent spaces found, as a table, in words and in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks.logits import Logits
from memdef_jax.data import Split, to_float
from memdef_jax.evaluation.beyond.proxy import answers
from memdef_jax.evaluation.reports import pictures
from memdef_jax.evaluation.reports.layout import as_markdown

HEADER = ("variant", "clean", "accuracy", "95% interval", "original", "found", "changed", "kept")
_CRAFTED = {
    "deployed": "searched and judged on the deployed pipeline",
    "classifier": "searched on the classifier alone, judged on the deployed pipeline",
}


def as_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text, in percent, of what `latent_attack.evaluate` returns."""
    lines = []
    for variant, shares in result["variants"].items():
        low, high = shares["interval"]
        names = ("original_accuracy", "found", "changed", "accuracy_kept")
        lines.append(
            [
                variant,
                f"{100 * shares['clean']:.1f}",
                f"{100 * shares['accuracy']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                *("" if shares[n] is None else f"{100 * shares[n]:.1f}" for n in names),
            ]
        )
    return list(HEADER), lines


def explain(result: Mapping[str, Any]) -> str:
    """What the columns of the table mean, one paragraph."""
    rhos = ", ".join(f"{rho:g}" for rho in result["rhos"])
    n, proxy = result["n"], result["proxy"]
    return (
        f"Percent, on the first {n} test images of {result['dataset']}; "
        f"{_CRAFTED[result['target']]}. accuracy: right, rho "
        f"{rhos} pooled; its interval is that of {n} images. original: of the images, those right "
        "under every rho. found: searches that succeeded within the budget. changed: of the found "
        "images, those that a proxy for people no longer calls by their label. kept: the accuracy "
        f"if these are no errors. The proxy is classifier {proxy['architecture']}, right on "
        f"{100 * proxy['accuracy']:.1f}% of the clean test images; it can be fooled itself."
    )


def as_document(result: Mapping[str, Any]) -> str:
    """The table and what it means, in Markdown."""
    heading = f"# The Overpowered attack on {result['kind']}, {result['dataset']}"
    return "\n\n".join([heading, as_markdown(*as_table(result)), explain(result)]) + "\n"


@jax.jit
def _purify(defense: Any, x: jax.Array) -> jax.Array:
    return jnp.clip(defense.decode(defense.embed(x)), 0.0, 1.0)


def found_grid(
    defense: Any,
    proxy: Logits,
    split: Split,
    attacked: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> bytes:
    """A PNG: one row a found image, from the original to what the classifier reads.

    Columns: the original with its label; its code decoded, where the search began; the attacked
    image; and what the defense makes of that. Below the second and the last stands what the
    pipeline answers, when it is given the start or the attacked image; below the third, what the
    proxy says of that.

    Args:
      defense: the pipeline, with `embed` and `decode`.
      proxy: a stand-in for people.
      split: the original images, S of them.
      attacked: what was found from them, float32 [S, H, W, C] in [0, 1].
      class_names: one a label.
      title: above the grid.
    """
    labels, names = split.labels, [pictures.short_name(name) for name in class_names]
    original = to_float(split.images)
    start, purified = (np.asarray(_purify(defense, jnp.asarray(x))) for x in (original, attacked))
    columns = [("original", original, [names[label] for label in labels], labels == labels)]
    for heading, shown, word, said in (
        ("code decoded", start, "answer", answers(defense, start)),
        ("attacked", attacked, "proxy", answers(proxy, attacked)),
        ("attacked, purified", purified, "answer", answers(defense, attacked)),
    ):
        columns.append((heading, shown, [f"{word}: {names[c]}" for c in said], said == labels))
    return pictures.draw_grid(columns, title)
