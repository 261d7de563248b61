"""Stand-ins that make hard, non-differentiable or random functions attackable (contract 3).

Each is a registered pytree around its parts and itself a contract-1 callable, so every attack
works through it, parameters stay arguments of the compiled program, and per-sample parts follow a
re-packed batch. `bpda` and `straight_through` also wrap parts of a pipeline, from images to images;
`compose` joins such parts to a classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks.attack import check_count
from memdef_jax.attacks.logits import judge, take


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Bpda:
    forward: Any
    backward: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        value = jax.lax.stop_gradient(self.forward(jax.lax.stop_gradient(x)))
        smooth = self.backward(x)
        # The added term is exactly zero: the value stays that of forward to the last bit.
        return value + (smooth - jax.lax.stop_gradient(smooth))

    def take(self, indices: jax.Array) -> _Bpda:
        return _Bpda(take(self.forward, indices), take(self.backward, indices))

    def judge(self) -> Any:
        return judge(self.forward)


def bpda(forward: Callable[..., jax.Array], backward: Callable[..., jax.Array]) -> _Bpda:
    """Values of one function, gradients of another (Athalye et al. 2018, arXiv 1802.00420, 4.1).

    Args:
      forward: what is deployed, from images to logits or to images; it is never differentiated.
      backward: a differentiable approximation with the same output shape, finite everywhere.
    """
    return _Bpda(forward, backward)


def straight_through(forward: Callable[..., jax.Array]) -> _Bpda:
    """A map from images to images whose gradient is taken to be that of the identity."""
    return _Bpda(forward, _identity)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Composition:
    functions: tuple[Any, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        for function in self.functions:
            x = function(x)
        return x

    def take(self, indices: jax.Array) -> _Composition:
        return _Composition(tuple(take(function, indices) for function in self.functions))

    def judge(self) -> Any:
        last = judge(self.functions[-1])
        return None if last is None else _Composition((*self.functions[:-1], last))


def compose(*functions: Callable[..., jax.Array]) -> _Composition:
    """Apply functions in turn, the first to the images: `compose(straight_through(q), model)`."""
    return _Composition(functions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Eot:
    function: Any
    key: jax.Array
    samples: int = field(metadata={"static": True})
    votes: int = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(_draws(self, x, self.samples), axis=1)

    def take(self, indices: jax.Array) -> _Eot:
        return replace(self, function=take(self.function, indices))

    def judge(self) -> _Vote:
        return _Vote(replace(self, key=jax.random.fold_in(self.key, 1)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Vote:
    """The share of draws that predict each class, in place of logits."""

    eot: _Eot

    def __call__(self, x: jax.Array) -> jax.Array:
        logits = _draws(self.eot, x, self.eot.votes)
        ballots = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        valid = ~jnp.any(jnp.isnan(logits), axis=-1, keepdims=True)
        return jnp.mean(jnp.where(valid, ballots, jnp.nan), axis=1)

    def take(self, indices: jax.Array) -> _Vote:
        return _Vote(self.eot.take(indices))


def _draws(eot: _Eot, x: jax.Array, samples: int) -> jax.Array:
    """Logits [B, samples, K]."""

    def of_image(index: jax.Array, image: jax.Array) -> jax.Array:
        function = take(eot.function, index[None])
        keys = jax.random.split(_fold_in_image(eot.key, image), samples)
        return jax.vmap(lambda key: function(image[None], key)[0])(keys)

    return jax.vmap(of_image)(jnp.arange(x.shape[0]), x)


def eot(function: Callable[..., jax.Array], samples: int, key: jax.Array, votes: int = 20) -> _Eot:
    """Expectation over a random function's draws (Athalye et al. 2018, arXiv 1707.07397).

    Logits, and so gradients, are means over `samples` independent draws. The draws are a function
    of the key and of the bits of each image: every iterate of an attack meets fresh noise, equal
    images meet equal noise, and an image's logits do not depend on its batch.

    Attacks do not take one draw's word for a success: what fooled the mean of the draws is shown to
    `votes` fresh ones, and counts only if the class that most of them predict is still the wrong
    one (the target, for a targeted attack).

    Args:
      function: `(x[b, H, W, C], key) -> logits[b, K]`; it is mapped over images and draws, and so
        must be vmappable.
      samples: draws an image, at least 1.
      key: a typed key.
      votes: fresh draws that decide success, at least 1.

    Raises:
      InputError: for samples or votes below 1.
    """
    check_count("samples", samples)
    check_count("votes", votes)
    return _Eot(function, key, samples, votes)


def _fold_in_image(key: jax.Array, image: jax.Array) -> jax.Array:
    """A key for an image's exact pixel values."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(image), jnp.uint32).ravel()
    # Odd multipliers, another one for each pixel: any single changed pixel changes the sum.
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jax.random.fold_in(key, jnp.sum(bits * (weights * jnp.uint32(2654435761))))


def _identity(x: jax.Array) -> jax.Array:
    return x
