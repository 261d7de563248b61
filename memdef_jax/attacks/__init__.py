"""Adversarial attacks on any `x -> logits`, as pure state machines run by one driver."""

from memdef_jax.attacks import objectives, presets
from memdef_jax.attacks.apgd import APGD
from memdef_jax.attacks.attack import Attack
from memdef_jax.attacks.autoattack import AutoAttack
from memdef_jax.attacks.carlini_wagner import CarliniWagnerL2
from memdef_jax.attacks.carlini_wagner_linf import CarliniWagnerLinf
from memdef_jax.attacks.deepfool import DeepFool
from memdef_jax.attacks.fab import FAB
from memdef_jax.attacks.gradient import BIM, FGSM, MIFGSM, PGD, RFGSM
from memdef_jax.attacks.minimum_norm import DDN, FMN
from memdef_jax.attacks.noise import BlendedUniform, Noise
from memdef_jax.attacks.overpowered import LatentResult, Overpowered
from memdef_jax.attacks.single_pixel import SinglePixel
from memdef_jax.attacks.square import Square
from memdef_jax.attacks.state import Result, State
from memdef_jax.attacks.substitute import Substitute, jacobian_augmentation, train_substitute
from memdef_jax.attacks.surrogates import bpda, compose, eot, straight_through
from memdef_jax.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "BIM",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "AutoAttack",
    "BlendedUniform",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "DeepFool",
    "LatentResult",
    "Noise",
    "Overpowered",
    "Result",
    "SinglePixel",
    "Square",
    "State",
    "Substitute",
    "Transfer",
    "bpda",
    "compose",
    "eot",
    "jacobian_augmentation",
    "objectives",
    "presets",
    "straight_through",
    "train_substitute",
]
