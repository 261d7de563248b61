"""What every defense on the board is attacked with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from memdef_jax.attacks import presets
from memdef_jax.checks import InputError
from memdef_jax.evaluation.scrutiny.examination import Examination
from memdef_jax.evaluation.sweeps.config import SUITES, SweepConfig
from memdef_jax.evaluation.sweeps.threats import THREATS

THREAT = "adaptive"  # whose cells hold what grey_box and frozen_mask find, too
_TENTH = 25 / 255
_ATTACKS = ("autoattack", *SUITES["adaptive"].attacks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One attacker for all: AutoAttack and the suite "adaptive", through every surface offered.

    Attributes:
      count: test images, the same for all.
      linf: Linf budget in [0, 1] pixels, by which defenses are ranked;
      l2: L2 budget, beside it.
      batch_size: images attacked at once.
      attacks: of both norms, of `attacks.presets.NAMES`; L2 has those of them that are in
        `attacks.presets.L2`.

    Raises:
      InputError: for a count or budget that cannot be used, or an unknown attack.
    """

    count: int = 200
    linf: float = _TENTH
    l2: float = 1.0
    batch_size: int = 250
    attacks: tuple[str, ...] = _ATTACKS

    def __post_init__(self) -> None:
        for norm, eps in self.budgets.items():
            if eps <= 0:
                raise InputError(f"{norm} budget {eps:g} is not above 0; use 25/255, for example.")
        for norm in self.budgets:
            self.sweep(norm)

    @property
    def budgets(self) -> Mapping[str, float]:
        """The budget of each norm; the first is the one that ranks."""
        return {"linf": self.linf, "l2": self.l2}

    def names(self, norm: str) -> tuple[str, ...]:
        """The attacks of a norm."""
        return tuple(n for n in self.attacks if norm == "linf" or n in presets.L2)

    def sweep(self, norm: str) -> SweepConfig:
        """What is measured in a norm."""
        return SweepConfig(
            attacks=self.names(norm),
            eps=(self.budgets[norm],),
            threats=(THREAT,),
            count=self.count,
            cw_count=self.count,
            batch_size=self.batch_size,
            norm=norm,
        )

    def examination(self) -> Examination:
        """How the evaluation itself is doubted: as `eval.robustness` does at this budget."""
        return Examination(eps=self.linf, images=min(Examination.images, self.count))

    def words(self) -> list[str]:
        """Sentences that say what the numbers are."""
        rounded = (
            " (0.098: the usual 0.1, rounded down to whole grey levels)"
            if self.linf == _TENTH
            else ""
        )
        return [
            f"Budgets: Linf {255 * self.linf:.4g}/255{rounded} and L2 {self.l2:g}, in units of "
            f"[0, 1] pixels; {self.count} test images, the same for all.",
            f"Threat model {THREAT}: the whole pipeline is known, and every surface is attacked "
            f"that the defense offers of {', '.join((*THREATS[THREAT].surfaces, *_WEAKER))}.",
            f"Attacks: {', '.join(self.names('linf'))} in Linf; {', '.join(self.names('l2'))} in "
            "L2. Minimum-norm attacks count where they stayed within the budget, and so does "
            "everything else that other sweeps in a run's folder tried on the same images.",
            "The worst case counts an image only if it survives all of them. Defenses are sorted "
            "by the Linf worst case, L2 stands beside it; rows on which not everything was "
            "measured come last.",
            "Intervals are Wilson's, 95%.",
        ]


_WEAKER = THREATS[THREAT].weaker
