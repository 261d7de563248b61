"""The cells of a sweep: craft on a threat's surfaces, judge on the deployed pipeline."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memdef_jax import processes
from memdef_jax.attacks import Attack, presets
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.checks import InputError
from memdef_jax.compiled import forget_programs
from memdef_jax.data import Dataset, Split, eval_batches, to_float
from memdef_jax.defenses import Defense
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.config import SweepConfig
from memdef_jax.evaluation.sweeps.counting import Outcomes, combine, count, failure
from memdef_jax.evaluation.sweeps.records import Record
from memdef_jax.evaluation.sweeps.threats import DEPLOYED_SURFACES, Threat
from memdef_jax.training import put_batch, replicate

SHOWN = 8  # adversarial images a cell keeps, for the pictures: "shown" [SHOWN, H, W, C]
# What `Result` says of each sample's attack; not the seconds, which no two runs share.
_SPENT = ("run", "steps", "forward", "backward")


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
      mesh: devices of this process, which share every batch.
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
        tried = [id(offered[name]) for name in own]  # a plain classifier is all there is to know
        weaker = (n for n in threat.weaker if n in offered and id(offered[n]) not in tried)
        return own and own + tuple(weaker)

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
        record = count(
            cell.identity,
            outcomes,
            outcomes["correct"] if clean is None else clean,
            variants=accuracy,
            variant=min(accuracy, key=lambda name: accuracy[name]),
            own_accuracy=float(own["correct"].mean()),
            failed=failure(float(own["correct"].mean()), accuracy, weaker),
            seconds=round(time.perf_counter() - start, 3),
        )
        return record, outcomes

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
            forget_programs()
        return self.judged[key]

    def _craft_and_judge(
        self, selector: str, split: Split, crafting: tuple[Attack, str, str, int] | None
    ) -> Outcomes:
        """The batches one after the other, or several processes' in turn."""
        arrays = processes.gathered(lambda: self._own_batches(selector, split, crafting))
        parts: dict[int, Outcomes] = {}
        for name, values in arrays.items():
            number, _, key = name.partition(" ")
            parts.setdefault(int(number), {})[key] = values
        shown = parts[0].pop("shown")
        joined = {key: np.concatenate([parts[i][key] for i in sorted(parts)]) for key in parts[0]}
        return joined | {"shown": shown[: len(split)]}

    def _batch_size(self, selector: str, n: int) -> int:
        """Images at once: as configured, fewer where another process would have none to attack."""
        size = min(self.config.batch_size, n)
        # Where a batch gives BatchNorm its statistics, it must be the same for any number of them.
        if getattr(self.defenses[selector].spec, "statistics", "running") != "batch":
            size = min(size, max(SHOWN, -(-n // processes.count())))
        return -(-size // self.mesh.devices.size) * self.mesh.devices.size

    def _own_batches(
        self, selector: str, split: Split, crafting: tuple[Attack, str, str, int] | None
    ) -> dict[str, np.ndarray]:
        """Outcomes of this process's batches, each under the batch's number and the name."""
        keys = sample_keys(jax.random.key(crafting[3] if crafting else 0), len(split))
        defense = replicate(self.defenses[selector], self.mesh)
        source = replicate(self.defenses[crafting[1]], self.mesh) if crafting else defense
        size = self._batch_size(selector, len(split))
        found: dict[str, np.ndarray] = {}
        index = np.arange(len(split))
        for number, places in enumerate(eval_batches((index, index), size)):
            if number % processes.count() != processes.index():
                continue
            batch = split[places.images]
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
            for key, value in part.items():
                found[f"{number} {key}"] = np.asarray(value)[places.valid]
            if number == 0:
                found["0 shown"] = np.asarray(images[:SHOWN])
        return found


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
    limit, size = float(getattr(attack, "eps", np.inf)), delta.max()
    if attack.norm == "l2":
        size = np.sqrt(np.square(delta, dtype=np.float64).sum(axis=(1, 2, 3))).max()
    elif attack.norm != "linf":
        limit = np.inf
    inside = values.min() >= 0.0 and values.max() <= 1.0 and size <= 1.0001 * limit + 1e-6
    if not inside:  # also with NaN
        raise InputError(
            f"{type(attack).__name__} left its budget: pixels in [{values.min():g}, "
            f"{values.max():g}], perturbation {size:g} of {limit:g}; its result is not used."
        )
