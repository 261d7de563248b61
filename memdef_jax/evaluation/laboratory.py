"""One cell of a sweep: craft on a threat's surfaces, judge on the deployed pipeline, count."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memdef_jax import __version__
from memdef_jax.attacks import Attack, presets
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, Split, eval_batches, to_float
from memdef_jax.defenses import Defense
from memdef_jax.evaluation import records
from memdef_jax.evaluation.config import SweepConfig
from memdef_jax.evaluation.published import paper_accuracy
from memdef_jax.evaluation.records import Record
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.threats import DEPLOYED_SURFACES, WORST, Threat
from memdef_jax.training import put_batch, replicate

SHOWN = 8  # adversarial images a cell keeps, for the pictures
# What `Result` says of each sample's attack; not the seconds, which no two runs share.
_SPENT = ("run", "steps", "forward", "backward")

Outcomes = dict[str, np.ndarray]  # arrays [n], but for "shown" [SHOWN, H, W, C]
Found = tuple[Record, Mapping[str, np.ndarray]]  # with the outcomes per sample


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured; without a threat, clean images."""

    identity: Record
    threat: Threat | None = None
    attack: Attack | None = None

    @property
    def name(self) -> str:
        """The record's name, see `records.cell_id`."""
        return records.cell_id(self.identity)


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Everything that the cells of one sweep share.

    Attributes:
      defenses: by selector.
      dataset: what they defend.
      split: the test images.
      config: of the sweep.
      mesh: devices that share every batch.
      judged: what was crafted before, by what it was crafted with; cells may share it.
    """

    defenses: Mapping[str, Defense]
    dataset: Dataset
    split: Split
    config: SweepConfig
    mesh: Mesh
    judged: dict[Any, Outcomes] = dataclasses.field(default_factory=dict)

    def cells(self, threats: Sequence[Threat]) -> Iterator[Cell]:
        """All cells, the clean ones first."""
        for selector in self.defenses:
            yield Cell(self._identity(selector, "clean", None, threat="none"))
        for selector in self.defenses:
            for threat in threats:
                if not self.surfaces(selector, threat):
                    continue
                for name, eps, attack in self.config.budgeted():
                    for seed in self.config.seeds if attack.random else (0,):
                        identity = self._identity(
                            selector,
                            name,
                            eps,
                            threat=threat.name,
                            norm=attack.norm,
                            settings=_settings(attack),
                            seed=seed,
                        )
                        yield Cell(identity, threat, attack)

    def surfaces(self, selector: str, threat: Threat) -> tuple[str, ...]:
        """Those of a threat's surfaces that the attacked defense (or the benign one) offers."""
        source = "benign" if threat.from_benign else selector
        if source not in self.defenses:
            return ()
        defense = self.defenses[source]
        x, y = to_float(jnp.asarray(self.split.images[:1])), jnp.asarray(self.split.labels[:1])
        offered = defense.surfaces(x, y)
        own = tuple(name for name in threat.surfaces if name in offered)
        return own and own + tuple(name for name in threat.weaker if name in offered)

    def measure(self, cell: Cell, clean: np.ndarray | None) -> tuple[Record, Outcomes]:
        """One cell; `clean` says which clean images are right, None for that very cell."""
        start = time.perf_counter()
        selector, n = cell.identity["selector"], cell.identity["n"]
        variants: dict[str, Outcomes]
        if cell.threat is None or cell.attack is None:
            variants = {"clean": self._judge(selector, n, None)}
        else:
            source = "benign" if cell.threat.from_benign else selector
            variants = {
                surface: self._judge(
                    selector, n, (cell.attack, source, surface, cell.identity["seed"])
                )
                for surface in self.surfaces(selector, cell.threat)
            }
        weaker = cell.threat.weaker if cell.threat else ()
        minimal = cell.identity["attack"] in presets.MINIMAL
        own = combine({k: v for k, v in variants.items() if k not in weaker}, minimal)
        outcomes = combine(variants, minimal)
        accuracy = {name: float(v["correct"].mean()) for name, v in variants.items()}
        record = self.record(
            cell.identity,
            outcomes,
            outcomes["correct"] if clean is None else clean,
            variants=accuracy,
            variant=min(accuracy, key=lambda name: accuracy[name]),
            own_accuracy=float(own["correct"].mean()),
            failed=_failure(float(own["correct"].mean()), accuracy, weaker),
            seconds=round(time.perf_counter() - start, 3),
        )
        return record, outcomes

    def record(
        self,
        identity: Record,
        outcomes: Mapping[str, np.ndarray],
        clean: np.ndarray,
        *,
        variant: str | None = None,
        variants: Mapping[str, float] | None = None,
        own_accuracy: float | None = None,
        failed: str | None = None,
        seconds: float = 0.0,
    ) -> Record:
        """The line of a cell: what is counted over its outcomes, and what made it."""
        correct = outcomes["correct"]
        total = len(correct)
        found = outcomes["success"] if "success" in outcomes else np.zeros(0, bool)
        # What is wrong without any change says nothing of how much change it takes.
        norms = outcomes["norm"][found & (outcomes["norm"] > 0)] if found.any() else np.zeros(0)
        name, eps = identity["attack"], identity["eps"]
        benign = identity["selector"] == "benign"  # the paper has no pipeline with that one
        paper = None if benign else paper_accuracy(identity["dataset"], "pipeline", name, eps)
        alone = "benign" if benign else "adversarial"
        return {
            **identity,
            "robust_accuracy": float(correct.mean()),
            "interval": list(wilson_interval(int(correct.sum()), total)),
            "clean_accuracy": float(clean[:total].mean()),
            "selector_accuracy": float(outcomes["selector_correct"].mean()),
            "agreement": float(outcomes["agree"].mean()) if "agree" in outcomes else None,
            "success_rate": float(found.mean()) if found.size else None,
            "median_norm": float(np.median(norms)) if norms.size else None,
            "variant": variant,
            "variants": dict(variants or {}),
            "own_accuracy": own_accuracy,
            "failed": failed,
            "paper": paper,
            "paper_selector": paper_accuracy(identity["dataset"], alone, name, eps),
            "passes": {
                name: float(outcomes[name].mean()) if name in outcomes else 0.0
                for name in ("forward", "backward")
            },
            "seconds": seconds,
            "device": jax.devices()[0].device_kind,
            "versions": {
                "memdef_jax": __version__,
                "jax": jax.__version__,
                "python": platform.python_version(),
            },
        }

    def worst_cases(
        self, measured: Sequence[Found], clean: Mapping[str, np.ndarray]
    ) -> list[Record]:
        """Per sample the worst over threat models and seeds, for each attack and over all."""
        groups: dict[tuple[str, str, Any], list[Found]] = {}
        for record, outcomes in measured:
            if record["threat"] == "none":
                continue
            everything = [] if record["eps"] is None else ["all"]
            for attack in (record["attack"], *everything):
                group = groups.setdefault((record["selector"], attack, record["eps"]), [])
                group.append((record, outcomes))
        result = []
        for (selector, attack, eps), group in groups.items():
            worst = {
                "correct": np.all([found["correct"] for _, found in group], axis=0),
                "selector_correct": np.all(
                    [found["selector_correct_any"] for _, found in group], axis=0
                ),
            }
            # What it is the worst of is part of what it is: a narrower sweep is another cell.
            over = sorted(records.cell_id(record) for record, _ in group)
            identity = self._identity(
                selector,
                attack,
                eps,
                threat=WORST,
                norm=group[0][0]["norm"],
                settings={"cells": over},
            )
            record = self.record(identity, worst, clean[selector])
            record["over"] = sorted({f"{r['threat']}/{r['attack']}" for r, _ in group})
            result.append(record)
        return result

    def _identity(self, selector: str, attack: str, eps: float | None, **fields: Any) -> Record:
        return {
            "dataset": self.dataset.info.name,
            "fingerprint": self.dataset.info.fingerprint,
            "defense": self.defenses[selector].kind,
            "selector": selector,
            "attack": attack,
            "eps": eps,
            "n": min(self.config.cw_count, len(self.split)) if attack == "cw" else len(self.split),
            "norm": None,
            "seed": 0,
            "settings": {},
            **fields,
        }

    def _judge(
        self, selector: str, n: int, crafting: tuple[Attack, str, str, int] | None
    ) -> Outcomes:
        """Outcomes of an attack on a surface of a source, judged on a defense; or of clean images.

        Deterministic, so what was asked before is not made again.
        """
        told = crafting and (repr(crafting[0]), *crafting[1:])
        key = (selector, n, told)
        if key not in self.judged:
            self.judged[key] = self._craft_and_judge(selector, self.split.take(n), crafting)
        return self.judged[key]

    def _craft_and_judge(
        self, selector: str, split: Split, crafting: tuple[Attack, str, str, int] | None
    ) -> Outcomes:
        keys = sample_keys(jax.random.key(crafting[3] if crafting else 0), len(split))
        defense = replicate(self.defenses[selector], self.mesh)
        source = replicate(self.defenses[crafting[1]], self.mesh) if crafting else defense
        devices = self.mesh.devices.size
        size = -(-min(self.config.batch_size, len(split)) // devices) * devices
        parts: list[Outcomes] = []
        index = np.arange(len(split))
        for batch, places in zip(eval_batches(split, size), eval_batches((index, index), size)):
            x, y, own_keys = put_batch(
                (to_float(jnp.asarray(batch.images)), batch.labels, keys[places.images]), self.mesh
            )
            success, norm, images = jnp.zeros(size, bool), jnp.zeros(size), x
            spent: dict[str, Any] = {}
            if crafting is not None:
                attack, _, name, _ = crafting
                attack = _fitted(attack, name)
                result = attack.run(source.surfaces(x, y)[name], x, y, key=own_keys)
                success, norm, images = result.success, result.norm, result.images
                _check_budget(attack, x, images)
                spent = {name: getattr(result, name) for name in _SPENT}
            answer, slot = _decisions(defense, images)
            part = {
                "correct": answer == y,
                "selector_correct": slot == y,
                "selector_correct_any": slot == y,
                "agree": answer == slot,
                "answer": answer,
                "slot": slot,
                "success": success,
                "norm": norm,
                **spent,
            }
            part = {key: np.asarray(value)[batch.valid] for key, value in part.items()}
            if not parts:
                part["shown"] = np.asarray(images[:SHOWN])
            parts.append(part)
        shown = parts[0].pop("shown")
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return joined | {"shown": shown[: len(split)]}


def combine(variants: Mapping[str, Outcomes], minimal: bool = False) -> Outcomes:
    """Each image as the variant left it that works on it; where none does, as the strongest did.

    Args:
      variants: outcomes of several attacks on the same images.
      minimal: of those that work, take the one that changes the image least.

    Returns:
      Outcomes, "selector_correct_any" being true where no variant misled classifier-A.
    """
    order = sorted(variants, key=lambda name: float(variants[name]["correct"].mean()))
    best = dict(variants[order[0]])
    for name in order[1:]:
        other = variants[name]
        better = best["correct"] & ~other["correct"]
        if minimal:
            better |= ~best["correct"] & ~other["correct"] & (other["norm"] < best["norm"])
        misled = best["selector_correct_any"] & other["selector_correct_any"]
        for key, values in other.items():
            here = better[: len(values)].reshape(-1, *[1] * (values.ndim - 1))
            best[key] = np.where(here, values, best[key])
        best["selector_correct_any"] = misled
    return best


def _fitted(attack: Attack, surface: str) -> Attack:
    """An attack as it suits a surface, in its own settings.

    Where the surface is not what is deployed, an image that fools it has stopped too early. And on
    both classifiers at once the margin is the objective that neither can saturate. Deployed values
    are flat between changes of slot, so on them a loss that stalls is no reason to stop.
    """
    has = {field.name for field in dataclasses.fields(attack)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    if "early_stop" in has:
        changes["early_stop"] = surface in DEPLOYED_SURFACES
    if "abort_early" in has and surface in DEPLOYED_SURFACES:
        changes["abort_early"] = False
    if surface == "joint" and getattr(attack, "loss", None) == "cross_entropy":
        changes["loss"] = "margin"
    return dataclasses.replace(attack, **changes) if changes else attack  # type: ignore[type-var]


def _failure(own: float, accuracy: Mapping[str, float], weaker: Sequence[str]) -> str | None:
    """Why the attacks on a threat's own surfaces failed: attackers who know less do better."""
    better = {name: accuracy[name] for name in weaker if accuracy.get(name, own) < own}
    if not better:
        return None
    name = min(better, key=lambda surface: better[surface])
    return (
        f"the attack failed: differentiating the whole pipeline leaves {100 * own:.1f}%, "
        f"the {name} surface alone {100 * better[name]:.1f}%, so gradients through the choice of "
        "slot are worse than ignoring the defense; the images of the latter were counted."
    )


@jax.jit
def _decisions(defense: Defense, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(defense(x), axis=-1), defense.select(x)


def _settings(attack: Attack) -> dict[str, Any]:
    """An attack's own numbers as JSON, without eps, which is a column."""
    fields = dataclasses.asdict(attack)  # type: ignore[call-overload]
    return {name: value for name, value in fields.items() if name not in ("eps", "early_stop")}


def _check_budget(attack: Attack, clean: jax.Array, images: jax.Array) -> None:
    """Refuse to judge images outside the threat: a number must not rest on a faulty attack."""
    values, delta = np.asarray(images), np.abs(np.asarray(images) - np.asarray(clean))
    limit = float(getattr(attack, "eps", 1.0)) if attack.norm == "linf" else 1.0
    inside = values.min() >= 0.0 and values.max() <= 1.0 and delta.max() <= 1.0001 * limit + 1e-6
    if not inside:  # also with NaN
        raise InputError(
            f"{type(attack).__name__} left its budget: pixels in [{values.min():g}, "
            f"{values.max():g}], perturbation {delta.max():g} of {limit:g}; its result is not used."
        )
