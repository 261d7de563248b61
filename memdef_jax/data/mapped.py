"""Images that stay in their file: of them a process reads what it needs and holds nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of a mapped file; indexing reads those asked for, and `cut` none.

    Attributes:
      array: mapped, [M, ...].
      rows: which of them these are, int [N].

    Example:
      >>> mapped = Mapped(np.array([[1, 2], [3, 4], [5, 6]], np.uint8), np.array([2, 0]))
      >>> mapped.shape, mapped[:1].tolist(), mapped.cut(np.array([False, True]))[0].tolist()
      ((2, 2), [[5, 6]], [1, 2])
    """

    array: np.ndarray
    rows: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def size(self) -> int:
        return len(self) * int(np.prod(self.array.shape[1:]))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """As NumPy indexes the first axis, but always an array of its own."""
        return np.array(self.array[self.rows[index]])

    def cut(self, index: slice | np.ndarray) -> Mapped:
        """The rows of a slice, or of an index or boolean array, still in the file."""
        return Mapped(self.array, self.rows[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, read."""
        del copy  # always
        return np.asarray(self[:], dtype)
