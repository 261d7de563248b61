"""The runs that lie below a folder."""

from __future__ import annotations

import pathlib
from typing import Any

from memdef_jax.training.run import read_run

_PATTERNS = ("run.json", "*/run.json", "*/*/run.json")


def find_runs(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """The run in a folder, those in the folders in it and those one deeper, sorted by path.

    Returns:
      For each its folder and what it was started with; none where there is no such folder.

    Raises:
      InputError: when the description of one is damaged, or of a newer version.
    """
    places = sorted({path.parent for pattern in _PATTERNS for path in folder.glob(pattern)})
    return [(place, read_run(place)) for place in places]
