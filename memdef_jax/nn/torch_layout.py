"""Parameters in torch's layout and ours: names, axes, and what does not fit.

A module "features" with a convolution "0" in it has here the parameters features/0/kernel [h, w,
in, out] and features/0/bias, there features.0.weight [out, in, h, w] and features.0.bias. Dense
kernels [in, out] are weights [out, in]; of BatchNorm scale, bias, mean and var are weight, bias,
running_mean and running_var. Transposed convolutions change axes like convolutions, because ours
keep the kernel of the convolution whose adjoint they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from memdef_jax.checks import InputError

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Of a dense layer that reads flattened features: their (height, width, channels). Here they are
# flattened in this order, in torch with the channels first.
Flattened = Mapping[str, tuple[int, int, int]]


def names(variables: Any) -> dict[str, tuple[int, ...]]:
    """Torch's names of a tree's arrays, with the shapes that they have there.

    Args:
      variables: {"params": ...} and perhaps {"batch_stats": ...}, arrays or shapes.
    """
    return {name: _there(leaf.shape) for name, leaf in _leaves(variables)}


def check(
    found: Mapping[str, tuple[int, ...]], variables: Any, source: str, prefix: str = ""
) -> None:
    """Check, before anything is read, that a file's arrays fit a tree; it may hold others too.

    Args:
      found: shapes by name.
      variables: the tree, of arrays or shapes.
      source: names the file in errors.
      prefix: what the file's names have before the tree's own, for example "features.".

    Raises:
      InputError: naming the first array that is absent or of another shape.
    """
    for own, shape in names(variables).items():
        name = prefix + own
        if name not in found:
            raise InputError(
                f"{source} has no array {name}, which is {list(shape)} here; "
                "give weights of the same architecture."
            )
        if tuple(found[name]) != shape:
            raise InputError(
                f"{name} of {source} is {list(found[name])} and {list(shape)} here; "
                "give weights of the same architecture."
            )


def from_torch(
    arrays: Mapping[str, np.ndarray], like: Any, flattened: Flattened | None = None
) -> Any:
    """A tree of float32 arrays of those in torch's layout.

    Args:
      arrays: by torch's names, see `check`.
      like: a tree of arrays or shapes.
      flattened: shapes of flattened features, by torch's names of the weights that read them.
    """
    found = [_here(arrays[name], (flattened or {}).get(name)) for name, _ in _leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), found)


def to_torch(variables: Any, flattened: Flattened | None = None) -> dict[str, np.ndarray]:
    """The arrays of a tree by torch's names and in its layout; undoes `from_torch`."""
    found = {}
    for name, leaf in _leaves(variables):
        array = np.asarray(leaf)
        shape = (flattened or {}).get(name)
        if shape is not None:
            array = array.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(array.shape)
        found[name] = np.ascontiguousarray(array.transpose(_axes(array.ndim)))
    return found


def _leaves(variables: Any) -> Iterator[tuple[str, Any]]:
    """Torch's name and the leaf, in the order of the tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *modules, last = (str(entry.key) for entry in path)  # the first is the collection
        yield ".".join([*modules, _NAMES.get(last, last)]), leaf


def _axes(rank: int) -> tuple[int, ...]:
    """Of an array of this rank here, in torch's order."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _there(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(len(shape)))


def _here(array: np.ndarray, flattened: tuple[int, int, int] | None) -> np.ndarray:
    found = np.asarray(array, np.float32).transpose(np.argsort(_axes(array.ndim)))
    if flattened is not None:
        height, width, channels = flattened
        inputs = found.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        found = inputs.reshape(found.shape)
    return np.ascontiguousarray(found)
