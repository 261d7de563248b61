"""Classifiers trained on plain images: what a purifier defends, and the denoisers' loss network."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import optax

from memdef_jax import data
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.defenses.selector import SelectorConfig, selector_loss
from memdef_jax.defenses.trainer import Trainer


class Settings(Protocol):
    """What `train_plain` reads of a configuration."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The classifier that is defended, trained on plain images.

    Attributes:
      architecture: one of `nn.CLASSIFIERS`; "a" to "e" are Defense-GAN's.
      epochs: over the training split.
      batch_size: global.
      learning_rate: of Adam, constant.
    """

    architecture: str = "a"
    epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(config: Settings) -> None:
    """Check epochs, batch size and learning rate.

    Raises:
      InputError: when one of them is not above zero.
    """
    for name in ("epochs", "batch_size"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} {getattr(config, name)} is below 1; use 1 or more.")
    check_number("learning_rate", config.learning_rate, above_zero=True)


def train_plain(
    trainer: Trainer,
    name: str,
    purpose: int,
    module: nn.Module,
    start: dict[str, Any],
    config: Settings,
) -> dict[str, Any]:
    """Train a classifier on the run's plain images, or go on with it.

    Args:
      trainer: of the run.
      name: of the stage.
      purpose: of its random numbers.
      module: one of `nn.CLASSIFIERS`, or of their signature.
      start: its initial variables.
      config: epochs, batch size and Adam's constant learning rate.

    Returns:
      Its variables, on the host.
    """
    steps = config.epochs * data.steps_per_epoch(len(trainer.split), config.batch_size)
    return jax.device_get(
        trainer.run(
            name,
            purpose,
            selector_loss(module, SelectorConfig(), in_loop=False),
            start,
            optax.adam(config.learning_rate),
            trainer.benign_batches(config.batch_size, purpose),
            steps,
            config.batch_size,
        )
    )
