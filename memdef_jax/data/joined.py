"""Arrays that are one along their first axis without being copied together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from memdef_jax.checks import InputError
from memdef_jax.data.dataset import to_float
from memdef_jax.data.mapped import Mapped


@dataclasses.dataclass(frozen=True, eq=False)
class Floats:
    """Images uint8 [N, H, W, C] as float32 in [0, 1], each converted when it is read."""

    images: np.ndarray | Mapped

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    @property
    def nbytes(self) -> int:
        return 4 * self.images.nbytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> np.ndarray:
        return to_float(self.images[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, converted."""
        del copy  # always
        return np.asarray(to_float(self.images), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Arrays after one another; indexing copies the rows asked for, and nothing else.

    The parts may be in files, which are then read where they are indexed.

    Attributes:
      parts: arrays [N_i, ...] of one dtype and, but for N_i, of one shape; at least one.

    Raises:
      InputError: when there is none, or they do not fit together.

    Example:
      >>> joined = Joined((np.zeros((2, 3)), np.ones((4, 3))))
      >>> joined.shape, joined[np.array([1, 2, 5])].sum(1).tolist()
      ((6, 3), [0.0, 3.0, 3.0])
    """

    parts: tuple[np.ndarray | Floats, ...]

    def __post_init__(self) -> None:
        kinds = {(part.dtype.name, part.shape[1:]) for part in self.parts}
        if len(kinds) != 1:
            words = " and ".join(sorted(f"{dtype} rows {shape}" for dtype, shape in kinds))
            raise InputError(
                f"arrays of {words or 'no rows'} cannot be joined; give some of one kind."
            )
        # Rows of plain arrays cost half of those of a memmap, whose memory they share.
        plain = [np.asarray(p) if isinstance(p, np.ndarray) else p for p in self.parts]
        object.__setattr__(self, "parts", tuple(plain))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Rows by their numbers int [B], none negative: an array [B, ...] of its own."""
        index = np.asarray(index)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        part = np.searchsorted(self._ends, index, side="right")
        within = index - np.append(0, self._ends)[part]
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        alone = np.ones(len(index), bool)  # rows that are copied one by one, as cheap as together
        for number, held in enumerate(self.parts):
            if isinstance(held, Floats):
                together = part == number
                found[together] = held[within[together]]
                alone &= ~together
        places = np.flatnonzero(alone)
        for place, number, row in zip(
            places.tolist(), part[places].tolist(), within[places].tolist()
        ):
            found[place] = self.parts[number][row]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, copied together."""
        del copy  # always
        return np.concatenate([np.asarray(part) for part in self.parts], dtype=dtype)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])
