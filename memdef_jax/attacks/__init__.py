"""Adversarial attacks on any `x -> logits`, as pure state machines run by one driver."""

from memdef_jax.attacks import presets
from memdef_jax.attacks.attack import Attack
from memdef_jax.attacks.carlini_wagner import CarliniWagnerL2
from memdef_jax.attacks.gradient import BIM, FGSM, MIFGSM, PGD, RFGSM
from memdef_jax.attacks.state import Result, State
from memdef_jax.attacks.surrogates import bpda, compose, eot, straight_through

__all__ = [
    "BIM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "CarliniWagnerL2",
    "Result",
    "State",
    "bpda",
    "compose",
    "eot",
    "presets",
    "straight_through",
]
