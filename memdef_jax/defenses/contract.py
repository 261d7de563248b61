"""Contract 4: what a defense is to the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from memdef_jax.attacks.logits import Logits


class Spec(Protocol):
    """What a defense takes and gives.

    Attributes:
      image_shape: (H, W, C).
      classes: K.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def classes(self) -> int: ...


class Defense(Protocol):
    """A pytree that predicts, and says what of it an attacker can differentiate.

    Attributes:
      kind: names the defense in records, "memory_defense" for example.
      spec: what it takes and gives.
    """

    @property
    def kind(self) -> str: ...

    @property
    def spec(self) -> Any: ...

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] of the deployed pipeline for images [B, H, W, C]."""
        ...

    def select(self, x: jax.Array) -> jax.Array:
        """The class that the undefended classifier names, int32 [B]."""
        ...

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """Logits functions by the names of `evaluation.sweeps.threats`, for clean images, labels.

        "selector" is the undefended classifier; "deployed" the pipeline as it is; "surrogate" a
        differentiable stand-in for it. One that depends on x or y follows a re-packed batch with
        `take(indices)`.
        """
        ...
