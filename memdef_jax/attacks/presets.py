"""Attacks by name, with the settings that published evaluations use."""

from __future__ import annotations

from memdef_jax.attacks.apgd import APGD
from memdef_jax.attacks.attack import Attack, Number
from memdef_jax.attacks.autoattack import AutoAttack
from memdef_jax.attacks.carlini_wagner import CarliniWagnerL2
from memdef_jax.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from memdef_jax.attacks.minimum_norm import FMN
from memdef_jax.attacks.noise import Noise
from memdef_jax.attacks.square import Square
from memdef_jax.checks import InputError

MEMORY_DEFENSE = ("fgsm", "bim", "pgd", "cw")
# These seek the smallest perturbation and have no eps.
MINIMAL = ("cw", "fmn")
NAMES = (
    *MEMORY_DEFENSE,
    "mifgsm",
    "apgd",
    "apgd_margin",
    "autoattack",
    "square",
    "noise",
    "fmn",
)


def named(name: str, eps: Number = None) -> Attack:
    """An Linf attack (CW: L2) by name, in [0, 1] pixel space.

    fgsm, bim, pgd, cw: of Memory Defense (arXiv 2202.02595, section IV). BIM: 10 iterations of
    0.05, larger than its eps of 9/255. PGD: 40 of 0.0075, random start. CW-L2: 5 search steps of
    1000 iterations, learning rate 5e-3, initial constant 1e-2, confidence 0 (one of the authors'
    scripts has 50).
    mifgsm: 10 iterations of eps/10, decay 1 (arXiv 1710.06081).
    apgd, apgd_margin: APGD, 100 iterations, on cross-entropy, and on the margin with 3 restarts.
    autoattack: the standard version, complete. square: 1000 queries.
    noise: 20 draws of uniform noise, which no attack should be weaker than.
    fmn: smallest Linf perturbation, 100 iterations, for curves over eps.

    Args:
      name: one of `NAMES`.
      eps: Linf radius in [0, 1] pixels; the paper uses 9/255 and 25/255 on Fashion-MNIST and
        2/255, 8/255 and 16/255 on CIFAR-10. Those of `MINIMAL` have none.

    Raises:
      InputError: for an unknown name, or no eps where one is needed.
    """
    if name not in NAMES:
        raise InputError(f"attack {name!r} is unknown; use some of {', '.join(NAMES)}.")
    if name == "cw":
        return CarliniWagnerL2(
            search_steps=5, steps=1000, learning_rate=5e-3, initial_const=1e-2, confidence=0.0
        )
    if name == "fmn":
        return FMN(norm="linf", steps=100)
    if eps is None:
        raise InputError(f"attack {name!r} needs eps; give it in [0, 1] pixels, for example 9/255.")
    return {
        "fgsm": FGSM(eps=eps),
        "bim": BIM(eps=eps, step_size=0.05, steps=10),
        "pgd": PGD(eps=eps, step_size=0.0075, steps=40),
        "mifgsm": MIFGSM(eps=eps, step_size=eps / 10, steps=10),
        "apgd": APGD(eps=eps),
        "apgd_margin": APGD(eps=eps, loss="margin", restarts=3),
        "autoattack": AutoAttack(eps=eps),
        "square": Square(eps=eps, steps=1000),
        "noise": Noise(eps=eps, restarts=20),
    }[name]
