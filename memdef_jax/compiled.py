"""Compiled programs that a long process no longer needs."""

from __future__ import annotations

import gc
import pathlib

import jax

_MAPS = pathlib.Path("/proc/self/maps")
_LIMIT = pathlib.Path("/proc/sys/vm/max_map_count")


def forget_programs(share: float = 1 / 3) -> bool:
    """Free every compiled program if the process is short of memory maps; they compile again.

    On a CPU each program takes hundreds of maps, an AutoAttack on a deep pipeline thousands, and
    Linux grants a process 65,530: at the next one XLA fails with "Cannot allocate memory" or
    crashes, with most of the memory free. Where there is no such limit nothing is done.

    Args:
      share: of the granted maps, from which on programs are freed.

    Returns:
      Whether they were.
    """
    try:
        limit = int(_LIMIT.read_text())
        with _MAPS.open("rb") as lines:
            used = sum(1 for _ in lines)
    except (OSError, ValueError):
        return False
    if used < share * limit:
        return False
    jax.clear_caches()
    gc.collect()
    return True
