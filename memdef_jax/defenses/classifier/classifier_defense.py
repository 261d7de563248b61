"""A classifier as a defense: nothing stands before it, its robustness is its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.nn import Bound, classifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """What the network is; with variables it is a defense.

    Attributes:
      image_shape: (H, W, C).
      classes: K.
      architecture: one of `nn.CLASSIFIERS`.
      head: its last layer, one of `nn.heads.HEADS`.
    """

    image_shape: tuple[int, int, int]
    classes: int
    architecture: str = "small_cnn"
    head: str = "linear"

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(f"{self.classes} classes cannot be told apart; give 2 or more.")
        self.module()

    def module(self, axis_name: str | None = None) -> nn.Module:
        """The network."""
        return classifier(self.architecture, self.classes, axis_name, self.head)

    def networks(self) -> dict[str, nn.Module]:
        """The network, whose variables are all there are."""
        return {"": self.module()}

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables, {"params", "batch_stats"}."""
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        return {"batch_stats": {}, **jax.jit(self.module().init)(key, x)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierDefense:
    """The trained classifier, a pytree that predicts.

    Attributes:
      spec: what the network is (static).
      variables: {"params": ..., "batch_stats": ...}.
    """

    spec: ClassifierSpec = dataclasses.field(metadata={"static": True})
    variables: Any
    kind: ClassVar[str] = "classifier"

    @property
    def undefended(self) -> Bound:
        """The classifier; there is no other."""
        return Bound(self.spec.module(), self.variables)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] of images [B, H, W, C]."""
        return self.undefended(x)

    def select(self, x: jax.Array) -> jax.Array:
        """The class it names, int32 [B]."""
        return jnp.argmax(self(x), axis=-1).astype(jnp.int32)

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """The classifier, twice: who knows "selector" knows all that is "deployed"."""
        return {"selector": self, "deployed": self}
