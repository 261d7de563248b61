"""Contract 1, the logits function, in the form that compiled attacks carry.

Any callable `x[B, H, W, C] in [0, 1] -> logits[B, K]` can be attacked: a plain function, a
`jax.tree_util.Partial`, a registered dataclass holding a model's variables, a pytree module. It is
split into arrays, which are arguments of the compiled program, and the hashable rest, which is part
of the program's identity. So a new checkpoint of the same model does not compile anything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import objectives
from memdef_jax.checks import InputError

Logits = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogitsFunction:
    """A callable pytree split into its arrays and everything else.

    Attributes:
      arrays: the array leaves, None where a leaf is static.
      rest: the tree structure and the static leaves, None where a leaf is an array.
    """

    arrays: tuple[Any, ...]
    rest: tuple[Any, tuple[Hashable, ...]] = field(metadata={"static": True})

    @classmethod
    def of(cls, function: Logits) -> LogitsFunction:
        """Split a callable.

        Raises:
          InputError: when it is not callable, or a part is neither an array nor hashable.
        """
        if isinstance(function, LogitsFunction):
            return function
        if not callable(function):
            raise InputError(
                f"logits_fn is a {type(function).__name__}, which cannot be called; "
                "give a function of images that returns logits."
            )
        leaves, structure = jax.tree.flatten(function)
        arrays = tuple(leaf if _is_array(leaf) else None for leaf in leaves)
        static = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        try:
            hash((structure, static))
        except TypeError:
            raise InputError(
                f"logits_fn ({type(function).__name__}) holds a part that is neither an array nor "
                "hashable; bind parameters with jax.tree_util.Partial(function, parameters)."
            ) from None
        return cls(arrays, (structure, static))

    @property
    def function(self) -> Any:
        """The callable, put together again."""
        structure, static = self.rest
        leaves = [a if s is None else s for a, s in zip(self.arrays, static, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] in float32 of images [B, H, W, C].

        Raises:
          InputError: when the shape of what comes out is not [B, K] with K of at least 2.
        """
        logits = self.function(x)
        shape = np.shape(logits)
        if len(shape) != 2 or shape[0] != x.shape[0] or shape[1] < 2:
            raise InputError(
                f"logits_fn returned shape {shape} for {x.shape[0]} images; it must return "
                f"[{x.shape[0]}, classes] with at least 2 classes."
            )
        return jnp.asarray(logits, jnp.float32)

    @property
    def captured(self) -> list[Any]:
        """What plain functions among the static leaves close over."""
        cells = [getattr(leaf, "__closure__", None) or () for leaf in self.rest[1]]
        return [cell.cell_contents for closure in cells for cell in closure]

    def take(self, indices: jax.Array) -> LogitsFunction:
        """The same function for a re-packed batch, that of the given rows."""
        return LogitsFunction.of(take(self.function, indices))

    def fooled(
        self, images: jax.Array, logits: jax.Array, labels: jax.Array, targeted: bool
    ) -> jax.Array:
        """Whether images with these logits fool the function, bool [B].

        A random function is not judged by one lucky forward pass: what its logits call a success
        must be upheld by its vote, see `judge`. The vote's passes are in no attack's account.

        Args:
          images: [B, H, W, C].
          logits: this function's at the images, [B, K].
          labels: [B], the targets when `targeted`.
          targeted: whether the label is to be reached, not left.
        """
        hit = objectives.fooled(logits, labels, targeted)
        judge = self.judge
        if judge is None:
            return hit
        vote = lambda: hit & objectives.fooled(judge(images), labels, targeted)  # noqa: E731
        return jax.lax.cond(jnp.any(hit), vote, lambda: hit)

    @property
    def judge(self) -> LogitsFunction | None:
        """What decides success for a random function, see `judge`; None for all others."""
        function = judge(self.function)
        return None if function is None else LogitsFunction.of(function)


def take(function: Any, indices: jax.Array) -> Any:
    """Follow a re-packed batch: `function.take(indices)` where it has per-sample parts.

    A logits function that carries something for each image (a frozen mask label, say) offers
    `take(indices)`, which returns the same kind of callable for those rows. All others are
    returned as they are.
    """
    method = getattr(function, "take", None)
    return function if method is None else method(indices)


def judge(function: Any) -> Any:
    """What finally decides whether a random function was fooled, or None.

    A random logits function offers `judge()`, a contract-1 callable that decides by the vote of
    fresh draws: no image counts as adversarial for one lucky draw.
    """
    method = getattr(function, "judge", None)
    return None if method is None else method()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))
