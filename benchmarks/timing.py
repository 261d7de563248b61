"""Clocks for attacks: of any library from nothing and warm, and of ours beside its model alone."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ledger import Record
from benchmarks.work import OURS, Contender, Work, judge
from memdef_jax.attacks import PGD, objectives

# A pass of a torch peer that took so many seconds is not repeated: there is nothing to warm up.
_LONG = 60.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A model in JAX and in torch, and the images."""

    name: str
    model: Any
    module: Any
    x: np.ndarray
    y: np.ndarray
    eps: float
    scale: float
    device: str


def one_pass(
    contender: Contender, x: np.ndarray, y: np.ndarray, batch: int
) -> tuple[float, np.ndarray]:
    """Seconds of the attack over all batches, and the images."""
    seconds, parts = 0.0, []
    for start in range(0, len(x), batch):
        inputs = contender.prepare(x[start : start + batch], y[start : start + batch])
        begin = time.perf_counter()
        found = contender.attack(inputs)
        seconds += time.perf_counter() - begin
        parts.append(contender.images(found))
    return seconds, np.concatenate(parts)


class Measurement:
    """One library's attack: a first pass, then warm ones."""

    def __init__(self, contender: Contender, work: Work, target: Target, batch: int) -> None:
        self.contender, self._work, self._batch = contender, work, batch
        self._count = min(len(target.x), contender.at_most or len(target.x))
        self._all = len(target.x)
        self._x, self._y = target.x[: self._count], target.y[: self._count]
        self._compiles = contender.library in (OURS, "foolbox-jax")
        self._first, self._judging, self._warm = 0.0, 0.0, float("inf")
        self.error = ""

    def first(self) -> None:
        """The pass from nothing to a robust accuracy."""
        try:
            self._first, images = one_pass(self.contender, self._x, self._y, self._batch)
        except Exception as error:  # a peer that fails is a result, not the end
            if self.contender.library == OURS:
                raise
            self.error = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            return
        for _ in range(2):  # the first may compile
            begin = time.perf_counter()
            self._outcome = judge(self.contender, self._x, self._y, images, self._work.norm)
            self._judging = time.perf_counter() - begin
        if self.contender.library == OURS:
            self._judging = 0.0  # the attack's record says it; this only checks it

    def warm(self) -> None:
        """One more pass, unless the last says that it would be the same."""
        if self.error or (not self._compiles and self._first > _LONG):
            return
        if self._warm > _LONG and self._warm < float("inf"):
            return
        self._warm = min(self._warm, one_pass(self.contender, self._x, self._y, self._batch)[0])

    def record(self) -> Record:
        """Numbers for the table; where few images were measured, scaled to all."""
        if self.error:
            return {"error": self.error}
        warm = min(self._warm, self._first)
        factor = self._all / self._count
        fooled = self._outcome.fooled
        norms = self._outcome.norm[fooled]
        compiled = self._first - warm if self._compiles else 0.0
        return {
            "images": self._count,
            "images_per_second": self._count / warm,
            "seconds": (warm + self._judging) * factor,
            "compile": compiled if self._compiles else None,
            "robust": self._outcome.robust,
            "median": float(np.median(norms)) if len(norms) else None,
            "note": self.contender.note,
        }


def own_share(target: Target, work: Work, repeats: int, batch: int, seed: int) -> Record:
    """What of PGD's time is the model's: as many plain gradients, by the attack without stopping.

    Each gradient is a jitted `value_and_grad` of the cross-entropy of one batch.
    """
    x, y = (jnp.asarray(a[:batch]) for a in (target.x, target.y))
    attack = PGD(eps=work.eps, step_size=work.step_size, steps=work.steps, early_stop=False)

    @jax.jit
    def gradient(model: Any, x: jax.Array, y: jax.Array) -> Any:
        loss = lambda z: objectives.cross_entropy(model(z), y).sum()  # noqa: E731
        return jax.value_and_grad(loss)(x)

    whole = jax.jit(lambda model, x, y, key: attack(model, x, y, key=key))
    key = jax.random.key(seed)

    def gradients() -> Any:
        for _ in range(work.steps):
            found = jax.block_until_ready(gradient(target.model, x, y))
        return found

    def eager() -> Any:
        return attack(target.model, x, y, key=key)

    def jitted() -> Any:
        return whole(target.model, x, y, key)

    best = [float("inf")] * 3
    for repeat in range(repeats + 1):
        for i, run in enumerate((gradients, eager, jitted)):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:  # the first compiles
                best[i] = min(best[i], time.perf_counter() - begin)
    seconds = dict(zip(("gradients", "eager", "jitted"), best, strict=True))
    return {"steps": work.steps, "batch": len(x), "seconds": seconds}
