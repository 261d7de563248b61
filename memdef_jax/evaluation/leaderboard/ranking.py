"""Rows of the board: entries that belong together, in order, and beside the best of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from memdef_jax.evaluation.leaderboard.entries import Entry
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.leaderboard.significance import LEVEL, holm, mcnemar
from memdef_jax.evaluation.statistics import wilson_interval

_RANKS = "linf"  # the norm that the order is by


@dataclasses.dataclass(frozen=True)
class Share:
    """An accuracy.

    Attributes:
      accuracy: of one defense, or the mean over seeds.
      interval: 95% Wilson interval of one defense; None over seeds, which share their images.
      deviation: standard deviation over seeds; None of one defense.
    """

    accuracy: float
    interval: tuple[float, float] | None
    deviation: float | None


@dataclasses.dataclass(frozen=True)
class Beside:
    """A row beside the best one, by the Linf worst case of the same images.

    Attributes:
      best_only: images that only the best has right, and
      this_only: only this; over seeds of the pair with the largest p.
      p: of McNemar's exact test; over seeds the largest of all pairs.
      adjusted: the same for there being several rows, see `significance.holm`.
    """

    best_only: int
    this_only: int
    p: float
    adjusted: float

    @property
    def better(self) -> bool:
        """Whether the best is better than this."""
        return self.adjusted < LEVEL


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the board: one defense, or several that differ in nothing but the seed.

    Attributes:
      entries: what it is of, one a seed.
      clean: accuracy without attack.
      worst: by norm, accuracy under every attack; None where no attack was measured.
      beside: the comparison with the best row; None of the best itself, and where the images or
        the attacks are not the same.
    """

    entries: tuple[Entry, ...]
    clean: Share
    worst: dict[str, Share | None]
    beside: Beside | None = None

    @property
    def complete(self) -> bool:
        """Whether all of the protocol was measured; where not, the worst case may be lower."""
        return not any(entry.missing for entry in self.entries)

    @property
    def data(self) -> str:
        """The fingerprint of the data."""
        return str(self.entries[0].run.description["fingerprint"])


def rank(entries: Sequence[Entry], protocol: Protocol, seeds_together: bool = False) -> list[Row]:
    """The rows by the Linf worst case, the highest first; then by L2, then by clean accuracy.

    Rows that were not measured in full come last, since more attacks may lower them.

    Args:
      entries: all defenses.
      protocol: that they were measured under.
      seeds_together: one row for defenses that differ in nothing but the seed of their training.
    """
    groups: dict[Any, list[Entry]] = {}
    for index, entry in enumerate(entries):
        groups.setdefault(_recipe(entry) if seeds_together else index, []).append(entry)
    rows = [_row(group, protocol) for group in groups.values()]

    def order(row: Row) -> tuple[float, ...]:
        shares = [row.worst[_RANKS], *(row.worst[n] for n in row.worst if n != _RANKS), row.clean]
        return (row.complete, *(-1.0 if share is None else share.accuracy for share in shares))

    rows.sort(key=order, reverse=True)
    return _beside_best(rows)


def _recipe(entry: Entry) -> str:
    """All that makes a defense but the seed of its training."""
    run = dict(entry.run.description)
    config = dict(run.get("config") or {})
    config.pop("seed", None)
    return json.dumps([{**run, "config": config}, entry.selector], sort_keys=True)


def _row(group: Sequence[Entry], protocol: Protocol) -> Row:
    worst: dict[str, Share | None] = {}
    for norm in protocol.budgets:
        found = [entry.budgets[norm].survived for entry in group]
        survived = [images for images in found if images is not None]
        worst[norm] = _share(survived) if len(survived) == len(group) else None
    return Row(tuple(group), _share([entry.clean for entry in group]), worst)


def _share(found: Sequence[np.ndarray]) -> Share:
    shares = [float(images.mean()) for images in found]
    mean = sum(shares) / len(shares)
    if len(shares) == 1:
        return Share(mean, wilson_interval(int(found[0].sum()), len(found[0])), None)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / (len(shares) - 1))
    return Share(mean, None, spread)


def _beside_best(rows: Sequence[Row]) -> list[Row]:
    """The rows, those that can be compared with the first beside it."""
    comparable = [row for row in rows[1:] if row.complete and rows[0].complete]
    comparable = [row for row in comparable if row.data == rows[0].data]
    found = [_hardest(rows[0], row) for row in comparable]
    adjusted = holm([p for _, _, p in found])
    beside = {
        id(row): Beside(*one, p) for row, one, p in zip(comparable, found, adjusted, strict=True)
    }
    return [dataclasses.replace(row, beside=beside.get(id(row))) for row in rows]


def _hardest(best: Row, row: Row) -> tuple[int, int, float]:
    """McNemar's test of the pair of seeds that speaks least for the best being better."""
    pairs = []
    for one in best.entries:
        for other in row.entries:
            first, second = (entry.budgets[_RANKS].survived for entry in (one, other))
            if first is not None and second is not None:
                ahead, behind, p = mcnemar(first, second)
                pairs.append((ahead, behind, p if ahead > behind else 1.0))
    return max(pairs, key=lambda pair: pair[2])
