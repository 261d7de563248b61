"""Training of classifier-A: benign, on stored adversarial examples, or with attacks in the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax.attacks import PGD
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Augmentation, to_float
from memdef_jax.nn import Bound
from memdef_jax.nn.losses import cross_entropy
from memdef_jax.training import LossFn

Recipe = Literal["benign", "offline", "in_loop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """How classifier-A is trained. A benign one is always trained first: attacks transfer from it.

    Attributes:
      architecture: one of `nn.CLASSIFIERS`.
      recipe: "benign" alone; "offline" as the paper: PGD examples generated once against the benign
        classifier, then training on benign and adversarial images 1:1; "in_loop": examples made
        anew at every step against the current weights.
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

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if self.recipe not in ("benign", "offline", "in_loop"):
            raise InputError(
                f"selector recipe {self.recipe!r} is unknown; use benign, offline or in_loop."
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
    def attack(self) -> PGD:
        """What makes the training examples, in the loop or offline."""
        return PGD(
            norm="linf",
            eps=self.eps,
            step_size=self.step_size,
            steps=self.attack_steps,
            random_start=True,
            early_stop=False,
        )


def adversarial_places(size: int, clean_share: float) -> np.ndarray:
    """Which of `size` consecutive samples get attacked: evenly spread, (1 - clean_share) of them.

    Evenly, so that the choice is the same however a batch is cut over devices, as long as each
    device's share of it is a whole number of samples.
    """
    marks = np.floor(np.arange(size + 1) * (1.0 - clean_share) + 1e-9)
    return np.flatnonzero(np.diff(marks))


def check_places(batch_size: int, clean_share: float, devices: int) -> None:
    """Check that every device attacks the same whole number of its samples.

    Raises:
      InputError: if not; the trained weights would then depend on the number of devices.
    """
    attacked = batch_size * (1.0 - clean_share) / devices
    if devices > 1 and abs(attacked - round(attacked)) > 1e-6:
        raise InputError(
            f"clean share {clean_share:g} of batch size {batch_size} has {attacked:g} images "
            f"attacked on each of {devices} devices; choose them so that the number is whole."
        )


def selector_loss(module: nn.Module, config: SelectorConfig, in_loop: bool) -> LossFn:
    """Cross-entropy of classifier-A on a (partly attacked) batch, see `training.LossFn`."""
    attack = config.attack

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        x, y = batch["image"], batch["label"]
        if x.dtype == jnp.uint8:  # stored adversarial examples are float32 already
            x = to_float(x)
        fold = jax.vmap(jax.random.fold_in, (0, None))
        x = config.augmentation.apply(fold(keys, 0), x)
        if in_loop:
            places = adversarial_places(x.shape[0], config.clean_share)
            variables = {"params": params, "batch_stats": batch_stats}
            target = Bound(module, jax.lax.stop_gradient(variables))
            attacked = attack(target, x[places], y[places], key=fold(keys, 1)[places])
            x = x.at[places].set(jax.lax.stop_gradient(attacked))
        logits, updated = module.apply(
            {"params": params, "batch_stats": batch_stats},
            x,
            train=True,
            dropout_keys=fold(keys, 2),
            mutable=["batch_stats"],
        )
        loss = cross_entropy(logits, y).mean()
        accuracy = (jnp.argmax(logits, axis=-1) == y).mean(dtype=jnp.float32)
        metrics = {"cross_entropy": loss, "accuracy": accuracy}
        return loss, (updated.get("batch_stats", batch_stats), metrics)

    return loss_fn


def adam(
    learning_rate: float, steps: int, weight_decay: float = 0.0, cosine: bool = True
) -> optax.GradientTransformation:
    """Adam (betas 0.9 and 0.999, eps 1e-8) with L2 regularisation, cosine or constant rate."""
    rate = optax.cosine_decay_schedule(learning_rate, max(steps, 1)) if cosine else learning_rate
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(decay, optax.adam(rate))


def mixed_batches(
    benign: Callable[[int], tuple[np.ndarray, np.ndarray]],
    adversarial: Callable[[int], tuple[np.ndarray, np.ndarray]],
) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches that alternate benign and adversarial samples, 1:1, as float32."""

    def batch(step: int) -> dict[str, np.ndarray]:
        (x, y), (x_adv, y_adv) = benign(step), adversarial(step)
        x = x.astype(np.float32) / 255
        images = np.stack([x, x_adv], axis=1).reshape(-1, *x.shape[1:])
        return {"image": images, "label": np.stack([y, y_adv], axis=1).reshape(-1)}

    return batch
