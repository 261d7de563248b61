"""Robust accuracy on held-out training images while a classifier trains, and what it may reveal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memdef_jax.attacks import PGD
from memdef_jax.data import Split, eval_batches, to_float
from memdef_jax.nn import Bound
from memdef_jax.training import History, process_rows, put_batch, replicate

CLEAN, ROBUST = "validation_accuracy", "validation_robust_accuracy"
# A robust accuracy that was once this high and is now below this part of it has collapsed.
_HIGH, _COLLAPSED = 0.2, 1 / 3
_BATCH = 250


def robust_accuracy(
    module: nn.Module, attacks: Sequence[PGD], held_out: Split, key: jax.Array, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """What `training.Validation` measures: accuracy on clean and on attacked images.

    Of attacked images those are right that no attack fools.

    Args:
      module: the classifier.
      attacks: on its current weights.
      held_out: images that it is not trained on.
      key: of the attack, the same for every measurement.
      mesh: devices.

    Returns:
      From variables to {"validation_accuracy", "validation_robust_accuracy"}.
    """
    devices, count = mesh.devices.size, len(held_out)
    size = -(-min(_BATCH, count) // devices) * devices
    rows = process_rows(size, mesh)
    numbers = np.asarray(jax.random.key_data(jax.random.split(key, count)))

    @jax.jit
    def judge(
        variables: Any, x: jax.Array, y: jax.Array, valid: jax.Array, numbers: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model = Bound(module, variables)
        keys = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(key))
        clean = jnp.argmax(model(x), axis=-1) == y
        fooled = jnp.stack([a.run(model, x, y, key=keys).success for a in attacks]).any(axis=0)
        return (clean & valid).sum(), (~fooled & valid).sum()

    def measure(variables: Any) -> dict[str, float]:
        variables = replicate(variables, mesh)
        found = np.zeros(2)
        for batch in eval_batches((np.arange(count), held_out.labels), size):
            index, labels, valid = (part[rows] for part in batch)
            x = to_float(held_out.images[index])
            found += judge(variables, *put_batch((x, labels, valid, numbers[index]), mesh))
        return dict(zip((CLEAN, ROBUST), (found / count).tolist()))

    return measure


def catastrophic_overfitting(history: History) -> str | None:
    """A sentence once a classifier resists its training attack alone (Wong et al. 2020, section 4).

    That is: PGD accuracy on validation images has been high and is now a small part of what it was,
    while accuracy on the training attack is above that former height.

    Args:
      history: metrics of the validated steps, oldest first; see `training.Validation`.
    """
    best = 0.0
    for row in history:
        robust, trained = row[ROBUST], row.get("adversarial_accuracy", 0.0)
        if best >= _HIGH and robust < _COLLAPSED * best and trained > best:
            return (
                f"catastrophic overfitting: at step {row['step']:.0f} PGD accuracy on validation "
                f"images has fallen from {best:.3f} to {robust:.3f} while that on the training "
                f"attack is {trained:.3f}; the best weights are kept."
            )
        best = max(best, robust)
    return None
