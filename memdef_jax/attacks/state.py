"""What a running attack carries for each sample, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A batch under attack. Every array has the batch as its first axis.

    Attributes:
      x: clean images [B, H, W, C], never changed.
      y: labels [B] to move away from, or targets to reach.
      image: what would be returned if the run ended now, [B, H, W, C].
      success: whether `image` fools the model, bool [B].
      score: orders results of several runs, float32 [B], higher is better; minus infinity
        while undecided.
      run: which run (restart or target) gave `image`, int32 [B]; -1 while none has.
      done: the sample is frozen and costs nothing more, bool [B].
      nan: the model gave NaN for this sample, bool [B].
      steps: iterations the sample has used, int32 [B].
      forward: forward passes of the model the sample has used, int32 [B].
      backward: backward passes, int32 [B].
      own: what else the attack needs: any pytree of arrays with the batch first.
    """

    x: jax.Array
    y: jax.Array
    image: jax.Array
    success: jax.Array
    score: jax.Array
    run: jax.Array
    done: jax.Array
    nan: jax.Array
    steps: jax.Array
    forward: jax.Array
    backward: jax.Array
    own: Any = None

    @classmethod
    def blank(cls, x: jax.Array, y: jax.Array) -> State:
        """Nothing done yet: the clean image, no success."""
        # Derived from y, not made of constants, so that under shard_map they vary as y does.
        no, zero = y != y, y * 0
        never = zero - jnp.float32(jnp.inf)
        return cls(x, y, x, no, never, zero - 1, no, no, zero, zero, zero)

    def count(self, forward: int, backward: int) -> State:
        """Add model passes to every sample's account."""
        return replace(self, forward=self.forward + forward, backward=self.backward + backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Result:
    """The record of an attack on a batch.

    Attributes:
      images: adversarial images [B, H, W, C] in [0, 1]. A failed budget attack returns its last
        iterate, a failed minimum-norm attack or cascade the clean image.
      success: bool [B], misclassified, or predicted as the target when targeted.
      norm: float32 [B], length of the perturbation in the attack's norm, pixels in [0, 1].
      run: int32 [B], which run (restart, or target class by rank) gave the image; -1 for none.
      steps: int32 [B], iterations used, over all runs; where a fooled sample stopped.
      forward: int32 [B], forward passes of the model used.
      backward: int32 [B], backward passes used.
      seconds: float32 [B], the sample's share of the wall time, compilation included where there
        was any; None when the attack ran inside a compiled program, where no clock can be read.
      stages: for a cascade, the record of each of its attacks on the samples that were left to it
        (others have no steps and no passes); empty otherwise.
      notes: sentences about what was changed or should be doubted, for people to read.
    """

    images: jax.Array
    success: jax.Array
    norm: jax.Array
    run: jax.Array
    steps: jax.Array
    forward: jax.Array
    backward: jax.Array
    seconds: jax.Array | None = None
    stages: tuple[Result, ...] = ()
    notes: tuple[str, ...] = field(default=(), metadata={"static": True})


def where(mask: jax.Array, yes: Any, no: Any) -> Any:
    """`jnp.where` with a mask [B] over two pytrees whose leaves have the batch first."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        # A leaf that was only handed on needs no select, and jit then forwards its buffer.
        return a if a is b else jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)


def rows(tree: Any, indices: jax.Array) -> Any:
    """The given rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[indices], tree)


def merge(best: State, state: State) -> State:
    """Keep the better image of two runs over the same samples. Accounts are totals already."""
    better = state.score > best.score
    image, success, score, run = where(
        better,
        (state.image, state.success, state.score, state.run),
        (best.image, best.success, best.score, best.run),
    )
    return replace(
        best,
        image=image,
        success=success,
        score=score,
        run=run,
        nan=best.nan | state.nan,
        steps=state.steps,
        forward=state.forward,
        backward=state.backward,
    )
