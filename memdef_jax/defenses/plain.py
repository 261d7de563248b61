"""Any logits function as a defense: how one's own model gets into a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.checks import InputError


@dataclasses.dataclass(frozen=True)
class PlainSpec:
    """What the function takes and gives.

    Attributes:
      image_shape: (H, W, C).
      classes: K.
    """

    image_shape: tuple[int, int, int]
    classes: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PlainDefense:
    """A deployed logits function, with what an attacker may differentiate in its place.

    Make it with `PlainDefense.of`.

    Attributes:
      spec: what it takes and gives (static).
      model: the deployed pipeline.
      surrogate: a differentiable stand-in, or None.
      undefended: the classifier without its defense, or None.
    """

    spec: PlainSpec = dataclasses.field(metadata={"static": True})
    model: LogitsFunction
    surrogate: LogitsFunction | None
    undefended: LogitsFunction | None
    kind: ClassVar[str] = "plain"

    @classmethod
    def of(
        cls,
        model: Logits,
        image_shape: tuple[int, int, int],
        *,
        surrogate: Logits | None = None,
        undefended: Logits | None = None,
    ) -> PlainDefense:
        """Wrap a function from images [B, H, W, C] in [0, 1] to logits [B, K].

        Args:
          model: the deployed pipeline; wrap a random one with `attacks.eot`.
          image_shape: (H, W, C).
          surrogate: what an attacker differentiates where the model's own gradients are useless,
            for example `attacks.bpda(model, smooth)`.
          undefended: the classifier without its defense, for threat model grey_box.

        Raises:
          InputError: when a function cannot be called, or does not give logits.
        """
        fn = LogitsFunction.of(model)
        logits = jax.eval_shape(fn, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
        classes = int(logits.shape[1])
        others = [None if f is None else LogitsFunction.of(f) for f in (surrogate, undefended)]
        for name, other in zip(("surrogate", "undefended"), others):
            if other is None:
                continue
            shape = jax.eval_shape(other, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
            if shape.shape[1] != classes:
                raise InputError(
                    f"{name} gives {shape.shape[1]} classes and the model {classes}; "
                    "give functions of the same classes."
                )
        return cls(PlainSpec(image_shape, classes), fn, *others)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K]; for a random model the share of its votes."""
        return (self.model.judge or self.model)(x)

    def select(self, x: jax.Array) -> jax.Array:
        """The undefended classifier's class int32 [B]; the model's own where there is none."""
        return jnp.argmax((self.undefended or self.__call__)(x), axis=-1).astype(jnp.int32)

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """The "deployed", and "surrogate" and "selector" (the undefended) where they were given."""
        offered = {
            "deployed": self.model,
            "surrogate": self.surrogate,
            "selector": self.undefended,
        }
        return {name: surface for name, surface in offered.items() if surface is not None}
