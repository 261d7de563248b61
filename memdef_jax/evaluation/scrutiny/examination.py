"""What a sweep's table cannot say by itself: doubts, detection, and transfer between defenses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import processes
from memdef_jax.attacks import PGD
from memdef_jax.compiled import forget_programs
from memdef_jax.data import Dataset, Split, subset, to_float
from memdef_jax.defenses import Defense
from memdef_jax.evaluation.batching import in_batches
from memdef_jax.evaluation.papers import latent
from memdef_jax.evaluation.scrutiny import detection, doubts
from memdef_jax.evaluation.scrutiny.detection import Evading
from memdef_jax.evaluation.scrutiny.doubts import Subject
from memdef_jax.evaluation.sweeps.crafting import craft
from memdef_jax.evaluation.sweeps.records import Record, select
from memdef_jax.evaluation.sweeps.threats import DEPLOYED_SURFACES, THREATS
from memdef_jax.files import write_atomic
from memdef_jax.training import Reporter

FILE = "examination.json"
# Of the adaptive threat's surfaces those that differ most; every doubt attacks each many times.
_DOUBTED = ("joint", "soft_mask", "surrogate", "deployed")


@dataclasses.dataclass(frozen=True)
class Examination:
    """How much of it is done.

    Attributes:
      eps: Linf budget of every attack, in [0, 1] pixels.
      images: test images that the doubts are measured on.
      detected: test images that detection and transfer are measured on.
      embedded: test images shown in the latent space.
      benign: training images whose scores give the detection threshold.
      limits: up to where a doubt passes.
      effort: of the attacks that the doubts rest on.
      seed: of the attacks.
    """

    eps: float = 25 / 255
    images: int = 100
    detected: int = 250
    embedded: int = 300
    benign: int = 1000
    limits: doubts.Limits = dataclasses.field(default_factory=doubts.Limits)
    effort: doubts.Effort = dataclasses.field(
        default_factory=lambda: doubts.Effort(steps=20, more_steps=100, restarts=3, loss="margin")
    )
    seed: int = 0


def examine(
    folder: pathlib.Path,
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    found: Sequence[Record],
    settings: Examination,
    reporter: Reporter,
) -> dict[str, Any]:
    """Examine every defense, or go on; finished parts are kept in `examination.json`.

    Of several processes the first does it.

    Args:
      folder: the run's.
      defenses: by name; "benign" is what transfer is crafted on.
      dataset: test images are attacked, training images give the detection threshold.
      found: the sweep's records, for what they say of failed attacks.
      settings: how much.
      reporter: told of progress.

    Returns:
      "checks" and "detection" by name, "transfer" between the defenses, and "latent", the last
      defense's latent space in two dimensions, None where there is none.
    """
    room = _Room(defenses, dataset, settings)
    parts: dict[str, Callable[[], Any]]
    parts = {f"checks {name}": partial(room.checks, name) for name in defenses}
    scored = [name for name, defense in defenses.items() if hasattr(defense, "score")]
    parts |= {f"detection {name}": partial(room.detection, name) for name in scored}
    parts["transfer"] = room.transfer
    if latent.has_space(room.last):
        parts["latent"] = room.latent
    digest = hashlib.sha256(
        json.dumps([dataset.info.fingerprint, sorted(defenses), repr(settings)]).encode()
    ).hexdigest()[:16]
    path = folder / FILE

    def finished() -> dict[str, Any]:
        done = _read(path, digest)
        reporter.start("examination", len(done), len(parts), 1)
        for name, measure in parts.items():
            if name not in done:
                done[name] = measure()
                write_atomic(path, json.dumps({"digest": digest, "parts": done}, indent=1))
                reporter.update(len(done), {})
                forget_programs()
        return done

    done = processes.by_one(finished)
    return {
        "checks": {n: [*done[f"checks {n}"], _adaptive(found, n)] for n in defenses},
        "detection": {n: done[f"detection {n}"] for n in scored},
        "transfer": done["transfer"],
        "latent": done.get("latent"),
    }


def _read(path: pathlib.Path, digest: str) -> dict[str, Any]:
    """Finished parts of the same examination; none where the file is another's or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return dict(stored["parts"]) if stored["digest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _adaptive(found: Sequence[Record], selector: str) -> dict[str, Any]:
    """The verdict on the sweep's own adaptive cells."""
    cells = select(found, selector=selector, threat="adaptive")
    worst = max(cells, key=_gap, default=None)
    failed = max((r for r in cells if r["failed"]), key=_gap, default=None)
    verdict = "skipped" if worst is None else "fail" if failed else "pass"
    advice = (
        "no adaptive cell was measured; run the suite 'adaptive'."
        if worst is None
        else f"{failed['attack']} at eps {failed['eps'] or 'any'}: {failed['failed']}"
        if failed
        else "attacks on the whole pipeline are at least as strong as those that know less of it."
    )
    return {
        "name": "adaptive",
        "title": "more knowledge makes the attack stronger",
        "verdict": verdict,
        "number": None if worst is None else _gap(failed or worst),
        "limit": 0.0,
        "unit": "share",
        "advice": advice,
    }


def _gap(cell: Record) -> float:
    """By how much an adaptive cell's own attacks leave more than attackers who know less."""
    weaker = [cell["variants"].get(name, 1.0) for name in THREATS["adaptive"].weaker]
    return float(cell["own_accuracy"] - min(weaker, default=1.0))


@dataclasses.dataclass(frozen=True)
class _Room:
    defenses: Mapping[str, Defense]
    dataset: Dataset
    settings: Examination
    crafted: dict[tuple[str, float | None], np.ndarray] = dataclasses.field(default_factory=dict)

    def _images(self, count: int) -> Split:
        return subset(self.dataset.test, min(count, len(self.dataset.test)))

    def _attack(self) -> PGD:
        eps = self.settings.eps
        return PGD(eps=eps, step_size=eps / 10, steps=40, loss="margin", early_stop=False)

    def checks(self, name: str) -> list[dict[str, Any]]:
        """Verdicts of `doubts.doubt`."""
        defense, split = self.defenses[name], self._images(self.settings.images)
        x, y = to_float(jnp.asarray(split.images)), jnp.asarray(split.labels)
        offered = defense.surfaces(x, y)
        benign = self.defenses.get("benign")
        surfaces = {name: offered[name] for name in _DOUBTED if name in offered}
        subject = Subject(
            deployed=offered.get("deployed", defense),
            surfaces=surfaces,
            same_values=frozenset(surfaces) & DEPLOYED_SURFACES,
            source=(offered if benign is None else benign.surfaces(x, y)).get("selector"),
            frozen=offered.get("frozen_mask"),
        )
        key = jax.random.key(self.settings.seed)
        said = doubts.doubt(
            subject,
            x,
            y,
            eps=self.settings.eps,
            key=key,
            limits=self.settings.limits,
            effort=self.settings.effort,
        )
        return [dataclasses.asdict(verdict) for verdict in said]

    def _crafted(self, name: str, split: Split, limit: float | None) -> np.ndarray:
        """Images against a defense's first adaptive surface; with a limit, of low score too.

        Made once: detection and transfer look at the same.
        """
        defense = self.defenses[name]

        def target(x: jax.Array, y: jax.Array) -> Any:
            offered = defense.surfaces(x, y)
            surface = offered[next(s for s in THREATS["adaptive"].surfaces if s in offered)]
            if limit is None:
                return surface
            score = jax.tree_util.Partial(type(defense).score, defense)  # type: ignore[attr-defined]
            return Evading.of(surface, score, y, limit=limit)

        if (name, limit) not in self.crafted:
            found = craft(self._attack(), target, split, self.settings.seed)
            self.crafted[name, limit] = found
        return self.crafted[name, limit]

    def detection(self, name: str) -> dict[str, Any]:
        """The detector by reconstruction error, against PGD and against one that evades it."""
        defense = self.defenses[name]
        train = subset(self.dataset.train, min(self.settings.benign, len(self.dataset.train)))
        split = self._images(self.settings.detected)
        limit = detection.threshold(_look(defense, to_float(train.images))[1])
        clean = _look(defense, to_float(split.images))[1]
        told: dict[str, Any] = {"clean_scores": _short(clean)}
        for kind, below in (("attacked", None), ("evading", limit)):
            answer, scores = _look(defense, self._crafted(name, split, below))
            found = detection.measure(clean, scores, answer == split.labels, limit)
            told[f"{kind}_scores"] = _short(scores)
            if kind == "attacked":
                told |= dataclasses.asdict(found)
            else:
                told[kind] = dataclasses.asdict(found)
        return told

    @property
    def last(self) -> Defense:
        """The last defense, which is the one that was trained most."""
        return list(self.defenses.values())[-1]

    def latent(self) -> dict[str, Any]:
        """Clean and attacked images in the last defense's latent space, by t-SNE."""
        split, seed = self._images(self.settings.embedded), self.settings.seed
        latents = latent.collect(self.last, split, self._attack(), seed)
        embedded = latent.embed(latents, latent.projection("tsne", seed))
        return {**embedded, "class_names": list(self.dataset.info.class_names)}

    def transfer(self) -> dict[str, Any]:
        """Accuracy of every defense (column) on images crafted against every defense (row)."""
        split = self._images(self.settings.detected)
        rows = []
        for source in self.defenses:
            images = self._crafted(source, split, None)
            answers = [_look(judged, images)[0] for judged in self.defenses.values()]
            rows.append([float((answer == split.labels).mean()) for answer in answers])
        return {"names": list(self.defenses), "accuracy": rows}


@jax.jit
def _judged(defense: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = defense.score(x) if hasattr(defense, "score") else jnp.zeros(len(x))
    return jnp.argmax(defense(x), axis=-1), scores


def _look(defense: Defense, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers and reconstruction errors [N]."""
    return in_batches(partial(_judged, defense), np.asarray(images))


def _short(scores: np.ndarray) -> list[float]:
    """Scores with the digits that a histogram needs."""
    return [float(f"{score:.5g}") for score in scores]
