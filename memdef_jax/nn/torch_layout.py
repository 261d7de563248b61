"""Parameters in torch's layout and ours: names, axes, and what does not fit.

A module "features" with a convolution "0" in it has here the parameters features/0/kernel [h, w,
in, out] and features/0/bias, there features.0.weight [out, in, h, w] and features.0.bias. Dense
kernels [in, out] are weights [out, in]; of BatchNorm scale, bias, mean and var are weight, bias,
running_mean and running_var. Transposed convolutions change axes like convolutions, because ours
keep the kernel of the convolution whose adjoint they are. All others, memories among them, keep
name and axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from memdef_jax.checks import InputError

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COLLECTIONS = ("params", "batch_stats")
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # of a kernel of this rank here, in torch's order
# By torch's name of an array: its axis there that stands for flattened features, and how many
# channels they have. Here they are flattened as rows, columns, channels, in torch with the channels
# first.
Flattened = Mapping[str, tuple[int, int]]


def names(variables: Any) -> dict[str, tuple[int, ...]]:
    """Torch's names of a tree's arrays, with the shapes that they have there.

    Args:
      variables: {"params": ...} and perhaps {"batch_stats": ...}, arrays or shapes; or a tree of
        such, whose names stand before those of the modules.
    """
    return {
        name: tuple(leaf.shape[axis] for axis in axes) for name, axes, leaf in _leaves(variables)
    }


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
      flattened: which arrays have an axis of flattened features.
    """
    found = []
    for name, axes, _ in _leaves(like):
        array = np.asarray(arrays[name], np.float32)
        if flattened and name in flattened:
            array = _reordered(array, *flattened[name], to_torch=False)
        found.append(np.ascontiguousarray(array.transpose(np.argsort(axes))))
    return jax.tree.unflatten(jax.tree.structure(like), found)


def to_torch(variables: Any, flattened: Flattened | None = None) -> dict[str, np.ndarray]:
    """The arrays of a tree by torch's names and in its layout; undoes `from_torch`."""
    found = {}
    for name, axes, leaf in _leaves(variables):
        array = np.asarray(leaf).transpose(axes)
        if flattened and name in flattened:
            array = _reordered(array, *flattened[name], to_torch=True)
        found[name] = np.ascontiguousarray(array)
    return found


def _leaves(variables: Any) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Torch's name, our axes in torch's order, and the leaf, in the order of the tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        keys = [str(entry.key) for entry in path]
        *modules, last = (key for key in keys if key not in _COLLECTIONS)
        axes = tuple(range(len(leaf.shape)))
        if last == "kernel":
            axes = _KERNEL_AXES[len(axes)]
        yield ".".join([*modules, _NAMES.get(last, last)]), axes, leaf


def _reordered(array: np.ndarray, axis: int, channels: int, *, to_torch: bool) -> np.ndarray:
    """An axis of flattened features with its channels moved to the front, or back to the end."""
    moved = np.moveaxis(array, axis, 0)
    sizes = (-1, channels) if to_torch else (channels, -1)
    found = moved.reshape(*sizes, *moved.shape[1:]).swapaxes(0, 1).reshape(moved.shape)
    return np.moveaxis(found, 0, axis)
