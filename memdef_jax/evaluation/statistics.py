"""Uncertainty of measured accuracies."""

from __future__ import annotations

import math


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); 95% by default.

    Args:
      correct: successes.
      total: trials, at least 1.
      z: standard normal quantile.

    Returns:
      Lower and upper bound in [0, 1].
    """
    share = correct / total
    shrink = 1.0 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share itself lies inside, whatever rounding does at 0 and 1.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
