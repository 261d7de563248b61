"""A module with its variables as a logits function."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A Linen module bound to its variables: a pytree that is called as `bound(x)`.

    The variables are leaves, so they are arguments of a compiled program and a new checkpoint does
    not recompile it. The module is the static part: modules compare by value (bound methods, by
    identity, would recompile for every instance). Two bound modules are equal only if they are the
    same object, because arrays have no single truth value; so one can be hashed, and `jax.jit`
    takes it as a function.

    Attributes:
      module: a Linen module whose call takes images [B, H, W, C].
      variables: its variables, {"params": ..., "batch_stats": ...}.
    """

    module: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.module.apply(self.variables, x)  # type: ignore[return-value]
