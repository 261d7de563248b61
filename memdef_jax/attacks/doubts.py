"""What should make one doubt an attack's result: the warnings of AutoAttack, as sentences.

They follow "flags" of the AutoAttack authors' repository: a random model, probabilities in place of
logits, vanishing gradients, a black-box attack that finds what gradients did not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import objectives
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.state import Result

_LOOK_AT = 100  # images
_FORWARDS = 5
_BLACK_BOX_GAIN = 0.002


class Look(NamedTuple):
    """What one forward and one backward pass show; see `look`."""

    logits: jax.Array
    silent: jax.Array
    broken: jax.Array


def about_model(
    logits_fn: Logits, x: jax.Array, y: jax.Array, *, for_random: bool = False
) -> tuple[str, ...]:
    """Doubts raised by the model itself, on the first images of a batch.

    Args:
      logits_fn: any logits function.
      x: images [B, H, W, C] in [0, 1], concrete.
      y: labels [B].
      for_random: the attack expects a random model.

    Returns:
      One sentence for each doubt.
    """
    fn = LogitsFunction.of(logits_fn)
    some = jnp.arange(min(len(x), _LOOK_AT))
    if len(some) < len(x):
        fn = fn.take(some)
    x, y = jnp.asarray(x)[some], jnp.asarray(y, jnp.int32)[some]
    looks = [jax.device_get(look(fn, x, y)) for _ in range(_FORWARDS)]
    logits, silent, _ = looks[0]
    said = []
    if fn.judge is not None and not for_random:
        said.append(
            "the model is random (its logits are a mean of draws), which this attack is not made "
            "for; use AutoAttack(version='rand')."
        )
    if any((again.logits != logits).any() for again in looks[1:]):
        said.append(
            f"{_FORWARDS} forward passes of the same images gave different logits; make the model "
            "a function (images, key) and wrap it with eot, then use version='rand'."
        )
    if like_probabilities(logits).all():
        said.append(
            "the outputs are between 0 and 1 and sum to 1, so they are probabilities; return "
            "logits, for through a softmax gradients vanish."
        )
    if silent.any():
        said.append(
            f"the gradient is exactly zero for {silent.sum()} of {len(silent)} clean images; "
            "attack a differentiable stand-in (bpda, straight_through) or rescaled logits."
        )
    return tuple(said)


def about_black_box(record: Result, stage: int) -> tuple[str, ...]:
    """A doubt where a cascade's black-box stage felled more than 0.2% of the batch."""
    share = float(np.mean(np.asarray(record.stages[stage].success)))
    if share <= _BLACK_BOX_GAIN:
        return ()
    return (
        f"Square felled {100 * share:.1f}% of all images after the gradient attacks had left them, "
        "which points to masked gradients; attack a surrogate with better ones.",
    )


def like_probabilities(logits: np.ndarray) -> np.ndarray:
    """Which rows [B] of outputs [B, K] lie in [0, 1] and sum to 1 within 0.001."""
    inside = (logits.min(axis=1) >= 0.0) & (logits.max(axis=1) <= 1.0)
    return inside & (np.abs(logits.sum(axis=1) - 1.0) < 1e-3)


@jax.jit
def look(fn: LogitsFunction, x: jax.Array, y: jax.Array) -> Look:
    """Logits, and what the margin's gradient is good for.

    Args:
      fn: what is looked at.
      x: images [B, H, W, C] in [0, 1].
      y: labels int32 [B].

    Returns:
      Logits [B, K]; whether the gradient is exactly zero, bool [B]; whether an entry of it is
      not finite, bool [B].
    """
    # The margin's, because unlike the cross-entropy's it does not fade as logits grow.
    _, logits, gradient = objectives.value_and_gradient(
        fn, x, lambda logits: objectives.margin(logits, y)
    )
    axes = (1, 2, 3)
    return Look(
        logits, jnp.all(gradient == 0.0, axis=axes), ~jnp.all(jnp.isfinite(gradient), axis=axes)
    )
