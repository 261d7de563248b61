"""Training of classifier-A: benign, on stored adversarial examples, or with attacks in the loop."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import optax

from memdef_jax.attacks import PGD
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Augmentation
from memdef_jax.defenses.adversarial_training import AdversarialTraining, adversarial_loss
from memdef_jax.training import LossFn

Recipe = Literal["benign", "offline", "in_loop", "trained"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """How classifier-A is trained. A benign one is always trained first: attacks transfer from it.

    Attributes:
      architecture: one of `nn.CLASSIFIERS`.
      recipe: "benign" alone; "offline" as the paper: PGD examples generated once against the benign
        classifier, then training on benign and adversarial images 1:1; "in_loop": examples made
        anew at every step against the current weights; "trained": one that was trained before.
      benign_epochs: of the benign classifier.
      epochs: of the adversarial one; one epoch shows every benign image once.
      batch_size: global.
      learning_rate: peak, of Adam with a cosine decay to zero.
      weight_decay: L2 regularisation added to the gradient.
      augmentation: applied to every image before any attack.
      eps: Linf budget of the training examples, in units of [0, 1].
      step_size: of their attack.
      attack_steps: 1 with a random start is FGSM-RS.
      clean_share: share of a batch that stays benign.
      successful_only: offline: keep only the examples that fool the benign classifier.
      warm_start: offline: go on from the benign weights.
      trained: trained: the folder of a classifier, for example runs/at/defenses/memory, whose
        architecture and head classifier-A then has, the benign one too.
    """

    architecture: str = "small_cnn"
    recipe: Recipe = "in_loop"
    benign_epochs: int = 3
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    eps: float = 0.1
    step_size: float = 0.05
    attack_steps: int = 3
    clean_share: float = 0.5
    successful_only: bool = False
    warm_start: bool = True
    trained: str | None = None

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if self.recipe not in ("benign", "offline", "in_loop", "trained"):
            raise InputError(
                f"selector recipe {self.recipe!r} is unknown; "
                "use benign, offline, in_loop or trained."
            )
        if (self.recipe == "trained") != (self.trained is not None):
            raise InputError(
                f"selector recipe {self.recipe!r} does not go with trained={self.trained!r}; "
                "give recipe 'trained' and the folder of a trained classifier, or neither."
            )
        if not 0.0 <= self.clean_share <= 1.0:
            raise InputError(f"clean share {self.clean_share:g} is outside [0, 1].")
        for name in ("benign_epochs", "epochs", "batch_size", "attack_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")
        if self.recipe == "offline" and self.batch_size % 2:
            raise InputError(
                f"batch size {self.batch_size} cannot be half adversarial; use an even one."
            )
        check_number("learning_rate", self.learning_rate, above_zero=True)
        check_number("weight_decay", self.weight_decay)
        check_number("step_size", self.step_size)

    @property
    def training(self) -> AdversarialTraining:
        """The same settings for `adversarial_loss`."""
        return AdversarialTraining(
            recipe="pgd",
            eps=self.eps,
            step_size=self.step_size,
            attack_steps=self.attack_steps,
            clean_share=self.clean_share,
        )

    @property
    def attack(self) -> PGD:
        """What makes the training examples, in the loop or offline."""
        return self.training.attack


def selector_loss(module: nn.Module, config: SelectorConfig, in_loop: bool) -> LossFn:
    """Cross-entropy of classifier-A on a (partly attacked) batch, see `training.LossFn`."""
    settings = config.training if in_loop else AdversarialTraining(recipe="plain")
    return adversarial_loss(module, settings, config.augmentation)


def adam(
    learning_rate: float, steps: int, weight_decay: float = 0.0, cosine: bool = True
) -> optax.GradientTransformation:
    """Adam (betas 0.9 and 0.999, eps 1e-8) with L2 regularisation, cosine or constant rate."""
    rate = optax.cosine_decay_schedule(learning_rate, max(steps, 1)) if cosine else learning_rate
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(decay, optax.adam(rate))
