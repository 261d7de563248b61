"""Adversarial training: the losses of all recipes, with the attack on the current weights inside.

"plain"    cross-entropy of clean images
"pgd"      of PGD examples, a share of the images clean (Madry et al. 2018, arXiv 1706.06083)
"fgsm_rs"  of one step from a uniform random start (Wong et al. 2020, arXiv 2001.03994)
"trades"   of clean images, and the divergence of adversarial from clean predictions (Zhang et al.
           2019, arXiv 1901.08573, eq. 5)

The attack sees running statistics and no dropout, and never a margin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import PGD
from memdef_jax.attacks.attack import Attack, Number, check_number
from memdef_jax.attacks.objectives import kl_divergence
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Augmentation, to_float
from memdef_jax.nn import Bound
from memdef_jax.nn.losses import cross_entropy
from memdef_jax.training import LossFn

Recipe = Literal["plain", "pgd", "fgsm_rs", "trades"]
# Step sizes in units of eps: half for few steps, Wong et al.'s 1.25, about TRADES' 0.007 of 0.031.
_STEPS = {"plain": 0.5, "pgd": 0.5, "fgsm_rs": 1.25, "trades": 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """What a classifier is trained on.

    Attributes:
      recipe: "plain", "pgd", "fgsm_rs" or "trades", see the module.
      eps: Linf budget of the training examples, in units of [0, 1].
      step_size: of their attack; None for eps times 1/2 ("pgd"), 1.25 ("fgsm_rs") or 1/4
        ("trades").
      attack_steps: of "pgd" and "trades"; "fgsm_rs" has one.
      random_start: of "pgd": begin anywhere in the ball, as Madry et al., or at the image itself;
        of few steps the latter leave less of the way from the image unseen. "fgsm_rs" always
        begins anywhere.
      clean_share: share of a batch that stays clean, of "pgd" and "fgsm_rs". "trades" sees every
        image clean and attacked.
      beta: weight of the divergence of "trades".
      margin: subtracted from the label's logit in the cross-entropy of adversarial examples,
      clean_margin: and of clean ones.
    """

    recipe: Recipe = "pgd"
    eps: float = 0.1
    step_size: float | None = None
    attack_steps: int = 3
    random_start: bool = True
    clean_share: float = 0.5
    beta: float = 6.0
    margin: float = 0.0
    clean_margin: float = 0.0

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if self.recipe not in _STEPS:
            raise InputError(f"recipe {self.recipe!r} is unknown; use one of {', '.join(_STEPS)}.")
        if not 0.0 <= self.clean_share <= 1.0:
            raise InputError(f"clean share {self.clean_share:g} is outside [0, 1].")
        if self.attack_steps < 1:
            raise InputError(f"attack_steps {self.attack_steps} is below 1; use 1 or more.")
        if self.step_size is not None:
            check_number("step_size", self.step_size)
        for name in ("beta", "margin", "clean_margin"):
            check_number(name, getattr(self, name))

    @property
    def attack(self) -> PGD:
        """What makes the training examples."""
        make = DivergencePGD if self.recipe == "trades" else PGD
        return make(
            norm="linf",
            eps=self.eps,
            step_size=_STEPS[self.recipe] * self.eps if self.step_size is None else self.step_size,
            steps=1 if self.recipe == "fgsm_rs" else self.attack_steps,
            random_start=self.random_start or self.recipe == "fgsm_rs",
            early_stop=False,
        )

    def attacked(self, size: int) -> np.ndarray:
        """Places int [A] of the images that are attacked, of `size` consecutive ones."""
        shares = {"plain": 1.0, "trades": 0.0}
        return adversarial_places(size, shares.get(self.recipe, self.clean_share))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergencePGD(PGD):
    """The inner attack of TRADES: PGD on the divergence from the clean prediction.

    It starts at Gaussian noise, small because the divergence has no gradient at the clean image
    itself.

    Attributes:
      spread: standard deviation of the noise, in [0, 1] pixels.
      eps, step_size, steps, norm, early_stop: as for `PGD`; labels are ignored.
    """

    spread: Number = 1e-3
    loss: str = dataclasses.field(default="kl", metadata={"static": True})

    @property
    def core(self) -> Attack:
        return dataclasses.replace(super().core, start="gaussian", spread=self.spread)  # type: ignore[type-var]


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


def margin_cross_entropy(logits: jax.Array, labels: jax.Array, margin: jax.Array) -> jax.Array:
    """Cross-entropy [B] in nats of the logits [B, K] with margins [B] off those of the labels."""
    labelled = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return cross_entropy(logits - margin[:, None] * labelled, labels)


def adversarial_loss(
    module: nn.Module, settings: AdversarialTraining, augmentation: Augmentation
) -> LossFn:
    """The loss of a recipe, see the module and `training.LossFn`.

    Batches are {"image": uint8 or float32 [B, H, W, C], "label": int [B]}. Metrics:
    "cross_entropy" with its margins, "accuracy" on the images it is taken on, and where some
    images are attacked "adversarial_accuracy" on them; of "trades" also "divergence" and "loss".
    """
    attack = settings.attack
    fold = jax.vmap(jax.random.fold_in, (0, None))

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        x, y = batch["image"], batch["label"]
        if x.dtype == jnp.uint8:  # stored adversarial examples are float32 already
            x = to_float(x)
        x = augmentation.apply(fold(keys, 0), x)
        places = settings.attacked(x.shape[0])
        adversarial = x
        if places.size:
            variables = {"params": params, "batch_stats": batch_stats}
            target = Bound(module, jax.lax.stop_gradient(variables))
            attacked = attack(target, x[places], y[places], key=fold(keys, 1)[places])
            adversarial = x.at[places].set(jax.lax.stop_gradient(attacked))

        def run(images: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
            logits, updated = module.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                dropout_keys=fold(keys, 2),
                mutable=["batch_stats"],
            )
            return logits, updated.get("batch_stats", stats)

        if settings.recipe == "trades":
            # Clean and adversarial images are normalised apart, as in the published code.
            logits, stats = run(x, batch_stats)
            moved, stats = run(adversarial, stats)
            loss, metrics = _trades(logits, moved, y, settings)
            return loss, (stats, metrics)
        logits, stats = run(adversarial, batch_stats)
        margins = np.full(len(y), settings.clean_margin, np.float32)
        margins[places] = settings.margin
        loss = margin_cross_entropy(logits, y, jnp.asarray(margins)).mean()
        right = (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
        metrics = {"cross_entropy": loss, "accuracy": right.mean()}
        if places.size:
            metrics["adversarial_accuracy"] = right[places].mean()
        return loss, (stats, metrics)

    return loss_fn


def _trades(
    logits: jax.Array, moved: jax.Array, labels: jax.Array, settings: AdversarialTraining
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Equation 5 of TRADES, beta its 1/lambda, from clean and adversarial logits [B, K]."""
    margins = jnp.full(len(labels), settings.clean_margin, logits.dtype)
    natural = margin_cross_entropy(logits, labels, margins).mean()
    divergence = kl_divergence(moved, logits).mean()
    loss = natural + settings.beta * divergence
    return loss, {
        "cross_entropy": natural,
        "divergence": divergence,
        "loss": loss,
        "accuracy": (jnp.argmax(logits, axis=-1) == labels).mean(dtype=jnp.float32),
        "adversarial_accuracy": (jnp.argmax(moved, axis=-1) == labels).mean(dtype=jnp.float32),
    }
