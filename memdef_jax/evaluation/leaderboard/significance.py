"""Whether one defense is better than another on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.05  # p below which a difference is called one


def mcnemar(one: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test on the images that only one of two has right.

    If both were equally good, each such image would be the one's or the other's with probability
    1/2 (McNemar 1947; the exact form is the two-sided binomial test).

    Args:
      one: bool [n].
      other: bool [n], of the same images.

    Returns:
      How many images only the one has right, how many only the other, and p.
    """
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    total, least = first + second, min(first, second)
    tail = ways = 1  # of choosing at most, and exactly, k images
    for k in range(least):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    # A quotient of integers, which have any length: as floats they would overflow.
    return first, second, min(1.0, 2 * tail / 2**total)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p adjusted for there being as many tests as there are (Holm 1979), in the given order.

    Among tests whose adjusted p is below a level, one or more are wrong at most that often.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, before = [1.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        before = max(before, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = before
    return adjusted
