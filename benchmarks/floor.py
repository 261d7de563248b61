"""How fast this machine could be: rates that it reaches on one matrix product and on one copy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.evaluation.papers.latency import measure


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the device reaches.

    Attributes:
      flops: floating-point operations a second of a large matrix product.
      bytes: a second, read and written together, of a copy larger than any cache.
    """

    flops: float
    bytes: float

    def floor(self, compiled: Any) -> float:
        """Least seconds of a compiled program: of its arithmetic or its traffic, the longer.

        Its traffic is its arguments, read once, and its results, written once: what lies between
        can stay in a cache.
        """
        memory = compiled.memory_analysis()
        moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return max(compiled.cost_analysis()["flops"] / self.flops, moved / self.bytes)

    def words(self) -> str:
        """One sentence."""
        return (
            f"This device multiplies matrices at {self.flops / 1e9:.0f} GFLOP/s and copies at "
            f"{self.bytes / 1e9:.1f} GB/s (read and written)."
        )


def rates(dtype: Any = jnp.float32, size: int = 2048, repeats: int = 5) -> Rates:
    """Measure both, the best of the repeats."""
    a = jnp.ones((size, size), dtype)
    long = jnp.ones(1 << 26, jnp.float32)
    product = jax.jit(lambda a: a @ a)
    copy = jax.jit(lambda x: x + 1.0)
    multiply = _least(lambda: product(a), repeats)
    move = _least(lambda: copy(long), repeats)
    return Rates(2.0 * size**3 / multiply, 2.0 * long.nbytes / move)


def _least(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        best = min(best, time.perf_counter() - begin)
    return best


def least(calls: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Least seconds of each call; they take turns."""
    return {name: float(s.min()) for name, s in measure(calls, repeats, warm_up).items()}
