"""Attack settings of published evaluations, in one place."""

from __future__ import annotations

from memdef_jax.attacks.attack import Attack, Number
from memdef_jax.attacks.carlini_wagner import CarliniWagnerL2
from memdef_jax.attacks.gradient import BIM, FGSM, PGD
from memdef_jax.checks import InputError

MEMORY_DEFENSE = ("fgsm", "bim", "pgd", "cw")


def memory_defense(name: str, eps: Number = None) -> Attack:
    """The attacks of Memory Defense (arXiv 2202.02595, section IV), in [0, 1] pixel space.

    BIM: 10 iterations of 0.05, larger than its eps of 9/255. PGD: 40 of 0.0075, random start.
    CW-L2: 5 search steps of 1000 iterations, learning rate 5e-3, initial constant 1e-2,
    confidence 0 (one of the authors' scripts has 50).

    Args:
      name: one of `MEMORY_DEFENSE`.
      eps: Linf radius in [0, 1] pixels; the paper uses 9/255 and 25/255 on Fashion-MNIST and
        2/255, 8/255 and 16/255 on CIFAR-10. CW, which seeks the smallest perturbation, has none.

    Raises:
      InputError: for an unknown name, or no eps where one is needed.
    """
    if name not in MEMORY_DEFENSE:
        raise InputError(f"attack {name!r} is unknown; choose one of {', '.join(MEMORY_DEFENSE)}.")
    if name == "cw":
        return CarliniWagnerL2(
            search_steps=5, steps=1000, learning_rate=5e-3, initial_const=1e-2, confidence=0.0
        )
    if eps is None:
        raise InputError(f"attack {name!r} needs eps; give it in [0, 1] pixels, for example 9/255.")
    if name == "fgsm":
        return FGSM(eps=eps)
    if name == "bim":
        return BIM(eps=eps, step_size=0.05, steps=10)
    return PGD(eps=eps, step_size=0.0075, steps=40)
