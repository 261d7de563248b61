"""AutoAttack: a fixed cascade of attacks without parameters to tune."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import jax

from memdef_jax.attacks import balls, doubts
from memdef_jax.attacks.apgd import APGD
from memdef_jax.attacks.attack import Attack, Number, check_budget, static
from memdef_jax.attacks.fab import FAB
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.square import Square
from memdef_jax.attacks.state import Result
from memdef_jax.checks import InputError, is_traced

VERSIONS = ("standard", "plus", "rand", "custom")
_TARGETS = 9


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020, arXiv 2003.01690), complete, with its published settings.

    Each attack gets the samples that all before it left, and starts from the clean image. What
    none of them fools comes back clean with success False. `run` returns one record for the
    cascade, whose `stages` hold those of its attacks, and whose `notes` say what had to change for
    the model (fewer classes than targets, no DLR below 4 classes) and what makes the result
    doubtful: AutoAttack's own warnings, see `doubts`; they are computed on concrete arrays only.

    Versions:
      "standard": APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5000 queries).
      "plus": APGD-CE and APGD-DLR (5 restarts each), FAB (5 restarts), Square, APGD-T, FAB-T
        (5 restarts).
      "rand", for random models: APGD-CE and APGD-DLR on the expectation. The model must come as
        `eot(function, samples=20, key)`; success is decided by its votes.
      "custom": `attacks`, any that have an `eps`; their eps and norm are replaced by this one's.

    Attributes:
      eps: radius of the ball in [0, 1] pixels; a number, or one a sample [B].
      norm: "linf" or "l2".
      version: one of `VERSIONS`.
      attacks: those of the custom version, in order.

    Raises:
      InputError: for an unknown norm or version, custom attacks without version="custom" or the
        other way round, or ones that have no budget.
    """

    eps: Number
    norm: str = static("linf")
    version: str = static("standard")
    attacks: tuple[Attack, ...] = ()

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        if self.version not in VERSIONS:
            raise InputError(
                f"version {self.version!r} is unknown; choose one of {', '.join(VERSIONS)}."
            )
        if (self.version == "custom") != bool(self.attacks):
            raise InputError(
                f"version {self.version!r} was given {len(self.attacks)} attacks; "
                "give attacks with version='custom' and only there."
            )
        for attack in self.attacks:
            names = {field.name for field in fields(attack)}  # type: ignore[arg-type]
            if "eps" not in names or attack.targeted:
                raise InputError(
                    f"{type(attack).__name__} cannot be part of a cascade; use untargeted attacks "
                    "that have an eps."
                )

    @property
    def num_steps(self) -> int:
        return sum(attack.num_steps for attack in self._stages())

    @property
    def random(self) -> bool:
        return True

    def check(self) -> None:
        check_budget(self.eps, self.norm)
        for attack in self.attacks:
            attack.check()

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        stages: list[Attack] = []
        notes: list[str] = []
        for stage in self._stages():
            planned, said = stage.plan(classes)
            stages += planned
            notes += [note for note in said if note not in notes]
        return tuple(stages), tuple(notes)

    def run(
        self, logits_fn: Logits, x: jax.Array, y: jax.Array, *, key: jax.Array | None = None
    ) -> Result:
        fn = LogitsFunction.of(logits_fn)
        if self.version == "rand" and fn.judge is None:
            raise InputError(
                "version 'rand' is for random models and logits_fn draws nothing; wrap the random "
                "function as eot(function, samples=20, key=key), or use version='standard'."
            )
        record = super().run(logits_fn, x, y, key=key)
        if len(x) == 0 or is_traced(record):
            return record
        said = doubts.about_model(logits_fn, x, y, for_random=self.version == "rand")
        return replace(record, notes=record.notes + said + self._about_square(record))

    def _stages(self) -> tuple[Attack, ...]:
        given: dict[str, Any] = {"eps": self.eps, "norm": self.norm}
        cross_entropy = APGD(**given)
        dlr = APGD(**given, loss="dlr")
        dlr_targeted = APGD(**given, loss="dlr", targets=_TARGETS)
        fab_targeted = FAB(**given, targets=_TARGETS)
        if self.version == "standard":
            return cross_entropy, dlr_targeted, fab_targeted, Square(**given)
        if self.version == "plus":
            return (
                replace(cross_entropy, restarts=5),
                replace(dlr, restarts=5),
                FAB(**given, restarts=5),
                Square(**given),
                dlr_targeted,
                replace(fab_targeted, restarts=5),
            )
        if self.version == "rand":
            return cross_entropy, dlr
        return tuple(replace(attack, **given) for attack in self.attacks)  # type: ignore[type-var]

    def _about_square(self, record: Result) -> tuple[str, ...]:
        names = [type(stage).__name__ for stage in self._stages()]
        if "Square" not in names:
            return ()
        return doubts.about_black_box(record, names.index("Square"))
