"""Named configurations of Memory Defense, for 28x28x1 and 32x32x3 images."""

from __future__ import annotations

from memdef_jax.checks import InputError
from memdef_jax.data import Augmentation
from memdef_jax.defenses.memory_training import MemoryDefenseConfig
from memdef_jax.defenses.selector import SelectorConfig
from memdef_jax.defenses.stack import StackConfig

PRESETS = ("quick", "paper", "robust")


def preset(
    name: str, image_shape: tuple[int, int, int], train_size: int = 60_000
) -> MemoryDefenseConfig:
    """A configuration by name, for a dataset's image shape and number of training images.

    "quick": minutes on a CPU; a small classifier-A with attacks in the training loop, the paper's
    loss. "paper": ResNet-50 and the paper's recipe and settings; what it leaves open is said in
    `StackConfig`. "robust": for a GPU, ResNet-18 with attacks in the loop, squared error summed an
    image and a sharper addressing, so that reconstructions depend on the image.

    Raises:
      InputError: for another name.
    """
    colour = image_shape[-1] == 3
    if name == "quick":
        return _quick(colour, train_size)
    if name == "paper":
        return _paper(colour)
    if name == "robust":
        return _robust(colour)
    raise InputError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}.")


def _quick(colour: bool, train_size: int) -> MemoryDefenseConfig:
    def epochs(least: int, steps: int) -> int:
        # A small dataset needs more epochs for the same number of updates of 128 images.
        return max(least, -(-steps * 128 // train_size))

    return MemoryDefenseConfig(
        selector=SelectorConfig(
            benign_epochs=epochs(3, 600),
            epochs=epochs(5, 1000),
            eps=8 / 255 if colour else 0.1,
            step_size=4 / 255 if colour else 0.05,
        ),
        stack=StackConfig(
            epochs=epochs(2, 800), learning_rate=2e-3, cosine=True, entropy_reduction="mean"
        ),
    )


def _paper(colour: bool) -> MemoryDefenseConfig:
    crop_and_flip = Augmentation(crop_padding=4, horizontal_flip=True, vertical_flip=True)
    erase = Augmentation(
        crop_padding=4, horizontal_flip=True, vertical_flip=True, erasing_probability=0.5
    )
    return MemoryDefenseConfig(
        selector=SelectorConfig(
            architecture="resnet50",
            recipe="offline",
            benign_epochs=60,
            epochs=60,
            learning_rate=1e-3,
            augmentation=erase,
            eps=0.03,
            step_size=0.0075,
            attack_steps=40,
            successful_only=True,
        ),
        stack=StackConfig(
            epochs=60,
            learning_rate=1e-4,
            augmentation=crop_and_flip,
            weight_decay=1e-4 if colour else 0.0,
        ),
    )


def _robust(colour: bool) -> MemoryDefenseConfig:
    flip = Augmentation(crop_padding=4 if colour else 2, horizontal_flip=True)
    return MemoryDefenseConfig(
        selector=SelectorConfig(
            architecture="resnet18",
            benign_epochs=15,
            epochs=30,
            learning_rate=1e-3,
            augmentation=flip,
            eps=8 / 255 if colour else 0.1,
            step_size=2 / 255 if colour else 0.025,
            attack_steps=7,
        ),
        stack=StackConfig(
            softmax_scale=20.0,
            mse_reduction="sum",
            entropy_reduction="mean",
            epochs=30,
            learning_rate=1e-3,
            cosine=True,
            augmentation=flip,
        ),
    )
