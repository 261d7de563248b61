"""What a sweep crosses, and the named suites of attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from memdef_jax.attacks import Attack, CarliniWagnerL2, balls, presets
from memdef_jax.checks import InputError, check_eps
from memdef_jax.evaluation.sweeps.threats import parse_threats


@dataclasses.dataclass(frozen=True)
class Suite:
    """Attacks and the threat models they are run under.

    Attributes:
      attacks: of `attacks.presets.NAMES`.
      threats: names, or ("all",).
      eps: usual budgets.
      paper: whose settings the attacks have, of `attacks.presets.PAPERS`.
    """

    attacks: tuple[str, ...]
    threats: tuple[str, ...]
    eps: tuple[float, ...] = (9 / 255, 25 / 255)
    paper: str = "memory_defense"


SUITES = {
    # The attacks of the Memory Defense paper with its settings.
    "paper": Suite(presets.MEMORY_DEFENSE, ("all",)),
    # The white-box attacks of the Defense-VAE and MAD-VAE papers, which attack the classifier
    # alone, and the same on the whole pipeline.
    "defense_vae": Suite(presets.DEFENSE_VAE, ("grey_box", "adaptive"), (0.3,), "defense_vae"),
    "mad_vae": Suite(presets.MAD_VAE, ("grey_box", "adaptive"), (0.3,), "mad_vae"),
    # Those of the feature-map denoising autoencoder, likewise.
    "feature_denoiser": Suite(
        presets.FEATURE_DENOISER, ("grey_box", "adaptive"), (0.2,), "feature_denoiser"
    ),
    # What robustness is commonly quoted by.
    "standard": Suite(("autoattack",), ("grey_box", "adaptive")),
    # What fits the defense best, and curves over eps.
    "adaptive": Suite(
        ("pgd", "apgd_margin", "square", "noise", "fmn"), ("grey_box", "frozen_mask", "adaptive")
    ),
    # A first look.
    "quick": Suite(("fgsm", "pgd"), ("grey_box", "frozen_mask", "adaptive")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep crosses.

    Attributes:
      attacks: of `attacks.presets.NAMES`.
      eps: budgets in [0, 1] pixels; CW-L2, FMN and single_pixel have none.
      threats: names, or ("all",).
      where_offered: leave a threat model out where a defense offers nothing to attack under it, or
        no benign one is there to transfer from, as ("all",) does; without it that is refused.
      count: test images, see `data.subset`; None for all.
      cw_count: fewer for CW-L2, which is slow; the first of those.
      cw_search_steps: of CW-L2, None for the paper's;
      cw_steps: likewise
      cw_learning_rate: and likewise.
      batch_size: images attacked at once.
      seeds: of the attacks' random draws; an attack that draws nothing is run once.
      paper: whose settings the attacks have, of `attacks.presets.PAPERS`.
      norm: of the budgets, "linf" or "l2"; in L2 only attacks of `attacks.presets.L2`. A worst
        case is over cells of one norm.
    """

    attacks: tuple[str, ...] = presets.MEMORY_DEFENSE
    eps: tuple[float, ...] = (9 / 255, 25 / 255)
    threats: tuple[str, ...] = ("all",)
    where_offered: bool = False
    count: int | None = 500
    cw_count: int = 100
    cw_search_steps: int | None = None
    cw_steps: int | None = None
    cw_learning_rate: float | None = None
    batch_size: int = 250
    seeds: tuple[int, ...] = (0,)
    paper: str = "memory_defense"
    norm: str = "linf"

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        for value in self.eps if self.norm == "linf" else ():
            check_eps(value)
        parse_threats(self.threats)
        for name in ("count", "cw_count", "cw_search_steps", "cw_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} is below 1; use 1 or more.")
        if not self.attacks:
            raise InputError(f"no attack was given; use some of {', '.join(presets.NAMES)}.")
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(f"seeds {self.seeds} cannot be used; give one or more from 0 on.")
        if not self.eps and set(self.attacks) - set(presets.MINIMAL):
            raise InputError("no eps was given; use one or more, for example 9/255.")
        for _, _, attack in self.budgeted():
            attack.check()

    def budgeted(self) -> Iterator[tuple[str, float | None, Attack]]:
        """Every attack at every budget, once: name, eps (None where it has none), attack."""
        for name in dict.fromkeys(self.attacks):
            for eps in (None,) if name in presets.MINIMAL else dict.fromkeys(self.eps):
                yield name, eps, self.attack(name, eps)

    def attack(self, name: str, eps: float | None) -> Attack:
        """The named attack with its paper's settings, CW's overridden by this configuration."""
        attack = presets.named(name, eps, self.paper, self.norm)
        if not isinstance(attack, CarliniWagnerL2):
            return attack
        own = {
            "search_steps": self.cw_search_steps,
            "steps": self.cw_steps,
            "learning_rate": self.cw_learning_rate,
        }
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(attack, **given)  # type: ignore[arg-type]
