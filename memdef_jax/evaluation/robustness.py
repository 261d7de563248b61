"""Robustness sweeps: defenses x threat models x attacks x eps, cell by cell, resumable."""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import __version__
from memdef_jax.attacks import Attack, CarliniWagnerL2, presets
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Dataset, Split, eval_batches, subset, to_float
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import records
from memdef_jax.evaluation.published import paper_accuracy
from memdef_jax.evaluation.records import Record
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.threats import DEPLOYED_SURFACES, WORST, Threat, parse_threats
from memdef_jax.files import check_writable
from memdef_jax.training import Reporter, Silent

# What `Result` says of each sample's attack; not the seconds, which no two runs share.
_SPENT = ("run", "steps", "forward", "backward")
SHOWN = 8  # adversarial images a cell keeps, for the pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep crosses.

    Attributes:
      attacks: of `attacks.presets.MEMORY_DEFENSE`.
      eps: Linf budgets in [0, 1] pixels; CW-L2 has none.
      threats: names, or ("all",).
      count: test images, see `data.subset`; None for all.
      cw_count: fewer for CW-L2, which is slow; the first of those.
      cw_search_steps: of CW-L2; the paper has 5,
      cw_steps: 1000
      cw_learning_rate: and 5e-3.
      batch_size: images attacked at once.
      seed: of the attacks' random starts.
    """

    attacks: tuple[str, ...] = presets.MEMORY_DEFENSE
    eps: tuple[float, ...] = (9 / 255, 25 / 255)
    threats: tuple[str, ...] = ("all",)
    count: int | None = 500
    cw_count: int = 100
    cw_search_steps: int = 5
    cw_steps: int = 1000
    cw_learning_rate: float = 5e-3
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in presets.MEMORY_DEFENSE:
                raise InputError(
                    f"attack {name!r} is unknown; use some of {', '.join(presets.MEMORY_DEFENSE)}."
                )
        for value in self.eps:
            check_eps(value)
        parse_threats(self.threats)
        for name in ("count", "cw_count", "cw_search_steps", "cw_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} is below 1; use 1 or more.")
        if not self.attacks:
            raise InputError(
                f"no attack was given; use some of {', '.join(presets.MEMORY_DEFENSE)}."
            )
        if not self.eps and set(self.attacks) - {"cw"}:
            raise InputError("no eps was given; use one or more, for example 9/255.")
        for _, _, attack in self.budgeted():
            attack.check()

    def budgeted(self) -> Iterator[tuple[str, float | None, Attack]]:
        """Every attack at every budget, once: name, eps (None for CW), attack."""
        for name in dict.fromkeys(self.attacks):
            for eps in (None,) if name == "cw" else dict.fromkeys(self.eps):
                yield name, eps, self.attack(name, eps)

    def attack(self, name: str, eps: float | None) -> Attack:
        """The named attack with the paper's settings, CW's overridden by this configuration."""
        attack = presets.memory_defense(name, eps)
        if isinstance(attack, CarliniWagnerL2):
            return dataclasses.replace(
                attack,
                search_steps=self.cw_search_steps,
                steps=self.cw_steps,
                learning_rate=self.cw_learning_rate,
            )
        return attack


def sweep(
    defenses: Mapping[str, MemoryDefense],
    dataset: Dataset,
    config: SweepConfig,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure every cell that `folder` does not have yet, then derive the worst case.

    Args:
      defenses: by selector, as `defenses.fit` returns them; "benign" is what transfer attacks are
        crafted on.
      dataset: its test split is attacked.
      config: what to cross.
      folder: the run's; lines are appended to `robustness.jsonl` as cells finish.
      reporter: told of progress.

    Returns:
      The records of this sweep: clean, attacked and worst-case cells.

    Raises:
      InputError: before any work, when something does not fit.
    """
    reporter = reporter or Silent()
    split = subset(dataset.test, config.count)
    threats = parse_threats(config.threats)
    if any(t.from_benign for t in threats) and "benign" not in defenses:
        raise InputError("threat model 'transfer' needs the run's benign defense; evaluate it too.")
    for name, defense in defenses.items():
        fits = defense.spec.image_shape, defense.spec.classes
        if fits != (dataset.info.image_shape, len(dataset.info.class_names)):
            raise InputError(
                f"the {name} defense takes images {fits[0]} of {fits[1]} classes and "
                f"{dataset.info.name} has {dataset.info.image_shape} of "
                f"{len(dataset.info.class_names)}; give the data it was trained on."
            )
    known = records.read_records(folder)
    check_writable(folder)
    lab = _Lab(defenses, dataset, split, config)
    cells = list(lab.cells(threats))
    found: dict[str, _Found] = {}
    for cell in cells:
        record = known.get(cell.name)
        outcomes = None if record is None else records.read_outcomes(folder, record)
        if record is not None and outcomes is not None:
            found[cell.name] = record, outcomes
    reporter.start("evaluation", len(found), len(cells), 1)
    clean: dict[str, np.ndarray] = {}  # by selector; these cells come first
    for cell in cells:
        selector = cell.identity["selector"]
        if cell.name not in found:
            record, outcomes = lab.measure(cell, clean.get(selector))
            record = records.append_record(folder, record, outcomes)
            found[cell.name] = record, outcomes
            reporter.update(len(found), {"robust_accuracy": record["robust_accuracy"]})
        clean.setdefault(selector, found[cell.name][1]["correct"])
    measured = [found[cell.name] for cell in cells]
    worst = lab.worst_cases(measured, clean)
    for record in worst:
        if known.get(records.cell_id(record)) != record:
            records.append_record(folder, record)
    return [record for record, _ in measured] + worst


_Found = tuple[Record, Mapping[str, np.ndarray]]  # with the outcomes per sample


@dataclasses.dataclass(frozen=True)
class _Cell:
    identity: Record
    threat: Threat | None = None
    attack: Attack | None = None

    @property
    def name(self) -> str:
        return records.cell_id(self.identity)


@jax.jit
def _decisions(defense: MemoryDefense, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(defense(x), axis=-1), defense.select(x)


@dataclasses.dataclass(frozen=True)
class _Lab:
    defenses: Mapping[str, MemoryDefense]
    dataset: Dataset
    split: Split
    config: SweepConfig

    def _identity(self, selector: str, attack: str, eps: float | None, **fields: Any) -> Record:
        return {
            "dataset": self.dataset.info.name,
            "fingerprint": self.dataset.info.fingerprint,
            "defense": "memory_defense",
            "selector": selector,
            "attack": attack,
            "eps": eps,
            "n": min(self.config.cw_count, len(self.split)) if attack == "cw" else len(self.split),
            "seed": self.config.seed,
            **fields,
        }

    def cells(self, threats: Sequence[Threat]) -> Iterator[_Cell]:
        for selector in self.defenses:
            yield _Cell(
                self._identity(selector, "clean", None, threat="none", norm=None, settings={})
            )
        for selector in self.defenses:
            for threat in threats:
                for name, eps, attack in self.config.budgeted():
                    identity = self._identity(
                        selector,
                        name,
                        eps,
                        threat=threat.name,
                        norm=attack.norm,
                        settings=_settings(attack),
                    )
                    yield _Cell(identity, threat, attack)

    def measure(
        self, cell: _Cell, clean: np.ndarray | None
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """One cell: attack on each of the threat's surfaces, judge on the deployed pipeline.

        `clean` says which clean images the pipeline has right; None for that very cell.
        """
        start = time.perf_counter()
        defense = self.defenses[cell.identity["selector"]]
        split = self.split.take(cell.identity["n"])
        if cell.threat is None or cell.attack is None:
            variants = {"clean": self._judge(defense, split, None)}
        else:
            crafted_on = self.defenses["benign"] if cell.threat.from_benign else defense
            variants = {
                surface: self._judge(defense, split, (cell.attack, crafted_on, surface))
                for surface in cell.threat.surfaces
            }
        strongest = min(variants, key=lambda name: variants[name]["correct"].mean())
        outcomes = {
            **variants[strongest],
            "correct_any": np.all([v["correct"] for v in variants.values()], axis=0),
            "selector_correct_any": np.all(
                [v["selector_correct"] for v in variants.values()], axis=0
            ),
        }
        accuracy = {name: float(v["correct"].mean()) for name, v in variants.items()}
        seconds = time.perf_counter() - start
        clean = outcomes["correct"] if clean is None else clean
        return self._record(cell.identity, outcomes, clean, strongest, accuracy, seconds), outcomes

    def _judge(
        self,
        defense: MemoryDefense,
        split: Split,
        crafting: tuple[Attack, MemoryDefense, str] | None,
    ) -> dict[str, np.ndarray]:
        """Outcomes per sample of one attack on one surface, or of clean images."""
        keys = sample_keys(jax.random.key(self.config.seed), len(split))
        parts: list[dict[str, np.ndarray]] = []
        size = min(self.config.batch_size, len(split))
        index = np.arange(len(split))
        for batch, places in zip(eval_batches(split, size), eval_batches((index, index), size)):
            x = to_float(jnp.asarray(batch.images))
            y = jnp.asarray(batch.labels)
            success, norm, images = jnp.zeros(size, bool), jnp.zeros(size), x
            spent: dict[str, Any] = {}
            if crafting is not None:
                attack, crafted_on, name = crafting
                if hasattr(attack, "early_stop"):
                    attack = dataclasses.replace(  # type: ignore[type-var]
                        attack, early_stop=name in DEPLOYED_SURFACES
                    )
                surface = crafted_on.surfaces(x, y)[name]
                result = attack.run(surface, x, y, key=keys[places.images])
                success, norm, images = result.success, result.norm, result.images
                _check_budget(attack, x, images)
                spent = {name: getattr(result, name) for name in _SPENT}
            answer, slot = _decisions(defense, images)
            part = {
                "correct": answer == y,
                "selector_correct": slot == y,
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
        return joined | {"shown": shown}

    def _record(
        self,
        identity: Record,
        outcomes: Mapping[str, np.ndarray],
        clean: np.ndarray,
        variant: str | None = None,
        variants: Mapping[str, float] | None = None,
        seconds: float = 0.0,
    ) -> Record:
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
            "paper": paper,
            "paper_selector": paper_accuracy(identity["dataset"], alone, name, eps),
            "passes": {
                name: float(outcomes[name].mean()) if name in outcomes else 0.0
                for name in ("forward", "backward")
            },
            "seconds": round(seconds, 3),
            "device": jax.devices()[0].device_kind,
            "versions": {
                "memdef_jax": __version__,
                "jax": jax.__version__,
                "python": platform.python_version(),
            },
        }

    def worst_cases(
        self, measured: Sequence[_Found], clean: Mapping[str, np.ndarray]
    ) -> list[Record]:
        """Per sample the worst over threat models, for each attack and over all attacks."""
        groups: dict[tuple[str, str, Any], list[_Found]] = {}
        for record, outcomes in measured:
            if record["threat"] == "none":
                continue
            for attack in (record["attack"], *(["all"] if record["norm"] == "linf" else [])):
                group = groups.setdefault((record["selector"], attack, record["eps"]), [])
                group.append((record, outcomes))
        result = []
        for (selector, attack, eps), group in groups.items():
            worst = {
                name: np.all([outcomes[f"{name}_any"] for _, outcomes in group], axis=0)
                for name in ("correct", "selector_correct")
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
            record = self._record(identity, worst, clean[selector])
            record["over"] = sorted({f"{r['threat']}/{r['attack']}" for r, _ in group})
            result.append(record)
        return result


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
