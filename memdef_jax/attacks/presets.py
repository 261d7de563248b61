"""Attacks by name, with the settings that published evaluations use."""

from __future__ import annotations

from memdef_jax.attacks.apgd import APGD
from memdef_jax.attacks.attack import Attack, Number
from memdef_jax.attacks.autoattack import AutoAttack
from memdef_jax.attacks.carlini_wagner import CarliniWagnerL2
from memdef_jax.attacks.gradient import BIM, FGSM, MIFGSM, PGD, RFGSM
from memdef_jax.attacks.minimum_norm import FMN
from memdef_jax.attacks.noise import Noise
from memdef_jax.attacks.single_pixel import SinglePixel
from memdef_jax.attacks.square import Square
from memdef_jax.checks import InputError

MEMORY_DEFENSE = ("fgsm", "bim", "pgd", "cw")
DEFENSE_VAE = ("fgsm", "rfgsm", "cw")
MAD_VAE = ("fgsm", "rfgsm", "cw", "mifgsm", "pgd", "single_pixel")
FEATURE_DENOISER = ("fgsm", "pgd")
PAPERS = ("memory_defense", "defense_vae", "mad_vae", "feature_denoiser")
# These have no eps; the first two seek the smallest perturbation.
MINIMAL = ("cw", "fmn", "single_pixel")
# These know L2 too.
L2 = ("cw", "apgd", "apgd_margin", "autoattack", "square", "noise", "fmn")
NAMES = (
    *MEMORY_DEFENSE,
    "rfgsm",
    "mifgsm",
    "apgd",
    "apgd_margin",
    "autoattack",
    "square",
    "single_pixel",
    "noise",
    "fmn",
)


def named(
    name: str, eps: Number = None, paper: str = "memory_defense", norm: str = "linf"
) -> Attack:
    """An attack by name, in [0, 1] pixel space; Linf, or L2 where it is asked for (CW: always).

    Where papers differ in an attack's settings, `paper` says whose are taken.
    fgsm; rfgsm: alpha 0.05, its noise a sign, in MAD-VAE Gaussian.
    memory_defense (arXiv 2202.02595, section IV): BIM: 10 iterations of 0.05, larger than its eps
    of 9/255. PGD: 40 of 0.0075, random start. CW-L2: 5 search steps of 1000 iterations, learning
    rate 5e-3, initial constant 1e-2, confidence 0 (one of the authors' scripts has 50).
    defense_vae (arXiv 1812.06570): CW-L2: one constant, 100, with 100 iterations at learning rate
    10.
    mad_vae (arXiv 2011.01755): PGD and MI-FGSM: 40 of 0.01, PGD from a random start. CW-L2:
    confidence 10, 9 search steps of 1000 iterations (10,000 there) from 1e-3, learning rate 1e-2.
    feature_denoiser (the feature-map denoising autoencoder, section 4.2; eps 0.2): PGD: 100
    iterations of 0.1, random start.
    mifgsm otherwise: 10 iterations of eps/10, decay 1 (arXiv 1710.06081).
    apgd, apgd_margin: APGD, 100 iterations, on cross-entropy, and on the margin with 3 restarts.
    autoattack: the standard version, complete. square: 1000 queries. single_pixel: 100 pixels.
    noise: 20 draws of uniform noise, which no attack should be weaker than.
    fmn: smallest perturbation, 100 iterations, for curves over eps.

    Args:
      name: one of `NAMES`.
      eps: Linf radius in [0, 1] pixels; Memory Defense uses 9/255 and 25/255 on Fashion-MNIST and
        2/255, 8/255 and 16/255 on CIFAR-10, the others 0.3. Those of `MINIMAL` have none.
      paper: one of `PAPERS`.
      norm: "linf", or "l2" for those of `L2`; the papers' other attacks have Linf steps.

    Raises:
      InputError: for an unknown name or paper, a norm that the attack does not have, or no eps
        where one is needed.
    """
    if name not in NAMES:
        raise InputError(f"attack {name!r} is unknown; use some of {', '.join(NAMES)}.")
    if paper not in PAPERS:
        raise InputError(f"paper {paper!r} is unknown; use one of {', '.join(PAPERS)}.")
    if norm != "linf" and (norm != "l2" or name not in L2):
        raise InputError(f"attack {name!r} has no norm {norm!r} here; in L2 use {', '.join(L2)}.")
    if name == "cw":
        return _CARLINI_WAGNER.get(paper, _CARLINI_WAGNER[PAPERS[0]])
    if name == "fmn":
        return FMN(norm=norm, steps=100)
    if name == "single_pixel":
        return SinglePixel(method="random", steps=100)
    if eps is None:
        raise InputError(f"attack {name!r} needs eps; give it in [0, 1] pixels, for example 9/255.")
    mad = paper == "mad_vae"
    step_size, steps = _PGD.get(paper, _PGD[PAPERS[0]])
    return {
        "fgsm": lambda: FGSM(eps=eps),
        "rfgsm": lambda: RFGSM(eps=eps, alpha=0.05, noise="gaussian" if mad else "sign"),
        "bim": lambda: BIM(eps=eps, step_size=0.05, steps=10),
        "pgd": lambda: PGD(eps=eps, step_size=step_size, steps=steps),
        "mifgsm": lambda: (
            MIFGSM(eps=eps, step_size=0.01, steps=40)
            if mad
            else MIFGSM(eps=eps, step_size=eps / 10, steps=10)
        ),
        "apgd": lambda: APGD(eps=eps, norm=norm),
        "apgd_margin": lambda: APGD(eps=eps, norm=norm, loss="margin", restarts=3),
        "autoattack": lambda: AutoAttack(eps=eps, norm=norm),
        "square": lambda: Square(eps=eps, norm=norm, steps=1000),
        "noise": lambda: Noise(eps=eps, norm=norm, restarts=20),
    }[name]()


# Step size and iterations; papers that are not here have no such attack, and get the first's.
_PGD = {
    "memory_defense": (0.0075, 40),
    "mad_vae": (0.01, 40),
    "feature_denoiser": (0.1, 100),
}
_CARLINI_WAGNER = {
    "memory_defense": CarliniWagnerL2(
        search_steps=5, steps=1000, learning_rate=5e-3, initial_const=1e-2
    ),
    "defense_vae": CarliniWagnerL2(
        search_steps=1, steps=100, learning_rate=10.0, initial_const=100.0
    ),
    "mad_vae": CarliniWagnerL2(
        search_steps=9, steps=1000, learning_rate=1e-2, initial_const=1e-3, confidence=10.0
    ),
}
