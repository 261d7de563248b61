"""Attack settings of published evaluations, in one place."""

from __future__ import annotations

from memdef_jax.attacks.attack import Attack, Number
from memdef_jax.attacks.gradient import BIM, FGSM, PGD
from memdef_jax.checks import InputError

MEMORY_DEFENSE = ("fgsm", "bim", "pgd")


def memory_defense(name: str, eps: Number) -> Attack:
    """The attacks of Memory Defense (arXiv 2202.02595, section IV), in [0, 1] pixel space.

    BIM: 10 iterations of 0.05, larger than its eps of 9/255. PGD: 40 of 0.0075, random start.

    Args:
      name: one of `MEMORY_DEFENSE`.
      eps: Linf radius in [0, 1] pixels; the paper uses 9/255 and 25/255 on Fashion-MNIST and
        2/255, 8/255 and 16/255 on CIFAR-10.

    Raises:
      InputError: for an unknown name.
    """
    if name == "fgsm":
        return FGSM(eps=eps)
    if name == "bim":
        return BIM(eps=eps, step_size=0.05, steps=10)
    if name == "pgd":
        return PGD(eps=eps, step_size=0.0075, steps=40)
    raise InputError(f"attack {name!r} is unknown; choose one of {', '.join(MEMORY_DEFENSE)}.")
