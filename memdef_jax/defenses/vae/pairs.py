"""Pairs of adversarial and clean images, from which a purifier learns to undo attacks.

As in Defense-VAE (arXiv 1812.06570, section 4.1) there are several attacks, each at several levels,
crafted on the undefended classifier. Its own are FGSM, RAND-FGSM, CW-L2 and DeepFool; others have
the settings of `attacks.presets.named`, with MAD-VAE's where that paper has them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import FGSM, RFGSM, CarliniWagnerL2, DeepFool, presets
from memdef_jax.attacks.attack import Attack
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Floats, Joined, Split, to_float
from memdef_jax.defenses.examples import adversarial_examples
from memdef_jax.training import Reporter

_OTHERS = ("pgd", "bim", "mifgsm", "apgd", "square", "single_pixel", "noise")
NAMES = ("fgsm", "rfgsm", "cw", "deepfool", *_OTHERS)  # the order is part of their randomness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Which adversarial images a purifier learns from.

    Level l of an attack is the l-th of its values, cyclically. Images begin at different levels, so
    with fewer than all rounds every level is still seen equally often.

    Attributes:
      attacks: of `NAMES`; each makes one image a round.
      images: clean images that are attacked, the first ones; None for all. Streamed, all are.
      rounds: levels that every image is attacked at; 0 for all of them. Three attacks at four
        levels are the twelve images of Defense-VAE.
      eps: levels of the attacks with an Linf budget, in [0, 1].
      alpha: RAND-FGSM's random step.
      noise: its kind, "sign" or "gaussian".
      cw_learning_rates: levels of CW-L2.
      cw_confidences: levels of CW-L2.
      cw_steps: its iterations.
      cw_search_steps: values of its constant that are tried.
      cw_initial_const: the first.
      streamed: make the images anew in every training step, one a clean image, instead of once and
        for all. CW is then slow.
    """

    attacks: tuple[str, ...] = ("fgsm", "rfgsm", "cw")
    images: int | None = None
    rounds: int = 0
    eps: tuple[float, ...] = (0.25, 0.3, 0.35, 0.4)
    alpha: float = 0.05
    noise: Literal["sign", "gaussian"] = "sign"
    cw_learning_rates: tuple[float, ...] = (6.0, 8.0, 10.0, 12.0)
    cw_confidences: tuple[float, ...] = (0.0,)
    cw_steps: int = 100
    cw_search_steps: int = 1
    cw_initial_const: float = 100.0
    streamed: bool = False

    def __post_init__(self) -> None:
        if not self.attacks or set(self.attacks) - set(NAMES):
            raise InputError(
                f"attacks {self.attacks} cannot be mixed; use some of {', '.join(NAMES)}."
            )
        for name in ("eps", "cw_learning_rates", "cw_confidences"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give one value or more.")
        for value in self.eps:
            check_eps(value)
        if "rfgsm" in self.attacks and not 0.0 <= self.alpha <= min(self.eps):
            raise InputError(
                f"alpha {self.alpha:g} is outside [0, {min(self.eps):g}], the smallest eps."
            )
        if self.images is not None and self.images < 1:
            raise InputError(f"images {self.images} is below 1; attack 1 or more, or None for all.")
        if not 0 <= self.rounds <= self.levels:
            raise InputError(
                f"rounds {self.rounds} is outside 0 to {self.levels}, the number of levels."
            )
        for name in self.attacks:
            self.attack(name, np.arange(self.levels)).check()

    @property
    def levels(self) -> int:
        """How many values the attack with the most of them has."""
        return max(len(self.eps), len(self.cw_learning_rates), len(self.cw_confidences))

    @property
    def per_image(self) -> int:
        """Adversarial images made of each clean one."""
        return 1 if self.streamed else (self.rounds or self.levels) * len(self.attacks)

    def attack(self, name: str, level: Any) -> Attack:
        """An attack with a level of its own for each sample, int [B]."""

        def of(values: tuple[float, ...]) -> jax.Array:
            return jnp.asarray(values, jnp.float32)[level % len(values)]

        if name == "fgsm":
            return FGSM(eps=of(self.eps), early_stop=False)
        if name == "rfgsm":
            alpha = jnp.float32(self.alpha)
            return RFGSM(eps=of(self.eps), alpha=alpha, noise=self.noise, early_stop=False)
        if name == "cw":
            return CarliniWagnerL2(
                search_steps=self.cw_search_steps,
                steps=self.cw_steps,
                learning_rate=of(self.cw_learning_rates),
                initial_const=self.cw_initial_const,
                confidence=of(self.cw_confidences),
            )
        if name == "deepfool":
            return DeepFool(norm="l2")
        return presets.named(name, of(self.eps), "mad_vae")


def stored_pairs(
    mixture: Mixture,
    logits_fn: Logits,
    split: Split,
    key: jax.Array,
    folder: pathlib.Path,
    reporter: Reporter,
) -> Joined:
    """Every adversarial image of a mixture, made once and kept in the folder.

    Returns:
      Images float32 [K * N, H, W, C] with K = `mixture.per_image`, those of each attack and level
      in the order of the split.

    Raises:
      InputError: when the folder cannot be written.
    """
    made: list[np.ndarray | Floats] = []
    for turn in range(mixture.rounds or mixture.levels):
        for name in mixture.attacks:

            def attack(index: np.ndarray, name: str = name, turn: int = turn) -> Attack:
                return mixture.attack(name, (index + turn) % mixture.levels)

            own = jax.random.fold_in(key, NAMES.index(name) + len(NAMES) * turn)
            part = folder / f"{name}_{turn}"
            made += adversarial_examples(attack, logits_fn, split, own, part, reporter)[0].parts
    return Joined(tuple(made))


def attacked_batch(
    mixture: Mixture, target: Logits, batch: Mapping[str, jax.Array], keys: jax.Array
) -> jax.Array:
    """A batch's adversarial images float32 [B, H, W, C]: its own, or made here and now.

    Streamed, the i-th image of a device's share meets attack i modulo their number, at a level
    drawn from its key.
    """
    if "adversarial" in batch:
        return batch["adversarial"]
    x, y = to_float(batch["image"]), batch["label"]
    fold = jax.vmap(jax.random.fold_in, (0, None))
    level = jax.vmap(lambda key: jax.random.randint(key, (), 0, mixture.levels))(fold(keys, 1))
    adversarial = x
    for first, name in enumerate(mixture.attacks):
        places = np.arange(first, len(x), len(mixture.attacks))
        if len(places):
            attack = mixture.attack(name, level[places])
            made = attack(target, x[places], y[places], key=fold(keys, 0)[places])
            adversarial = adversarial.at[places].set(made)
    return jax.lax.stop_gradient(adversarial)
