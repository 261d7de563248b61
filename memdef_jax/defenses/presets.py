"""Named configurations of every defense, for 28x28x1 and 32x32x3 images."""

from __future__ import annotations

import dataclasses
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.data import Augmentation
from memdef_jax.defenses.memory.memory_training import MemoryDefenseConfig
from memdef_jax.defenses.memory.stack import StackConfig
from memdef_jax.defenses.selector import SelectorConfig
from memdef_jax.defenses.vae.defense_vae import DefenseVAEConfig
from memdef_jax.defenses.vae.mad_vae import MADVAEConfig

# Presets by the kind of the defense.
PRESETS = {
    "memory_defense": ("quick", "paper", "robust"),
    "defense_vae": ("quick", "paper"),
    "mad_vae": ("quick", "paper"),
}


def preset(
    name: str,
    image_shape: tuple[int, int, int],
    train_size: int = 60_000,
    kind: str = "memory_defense",
) -> Any:
    """A configuration by name, for a dataset's image shape and number of training images.

    memory_defense: "quick": minutes on a CPU; a small classifier-A with attacks in the training
    loop, the paper's loss. "paper": ResNet-50 and the paper's recipe and settings; what it leaves
    open is said in `StackConfig`. "robust": for a GPU, ResNet-18 with attacks in the loop, squared
    error summed an image and a sharper addressing, so that reconstructions depend on the image.
    defense_vae, mad_vae: "quick": minutes on a CPU; a part of the images, each attacked at one
    level, and few iterations of CW. "paper": the paper's settings, for a GPU.

    Raises:
      InputError: for another name or kind.
    """
    if kind not in PRESETS:
        raise InputError(f"defense {kind!r} is unknown; use one of {', '.join(PRESETS)}.")
    if name not in PRESETS[kind]:
        raise InputError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS[kind])}.")
    colour = image_shape[-1] == 3
    if kind == "memory_defense":
        makers = {"quick": _quick, "paper": _paper, "robust": _robust}
        return makers[name](colour, train_size)
    if kind == "defense_vae":
        return DefenseVAEConfig() if name == "paper" else _quick_defense_vae(train_size)
    return MADVAEConfig() if name == "paper" else _quick_mad_vae(train_size)


def _quick_defense_vae(train_size: int) -> DefenseVAEConfig:
    paper, images = DefenseVAEConfig(), min(6000, train_size)
    mixture = dataclasses.replace(paper.mixture, rounds=1, images=images, cw_steps=10)
    return dataclasses.replace(
        paper,
        classifier=dataclasses.replace(paper.classifier, epochs=-(-60_000 // train_size)),
        mixture=mixture,
        vae=dataclasses.replace(
            paper.vae, epochs=-(-18_000 // images), batch_size=32, learning_rate=1e-3
        ),
        variants=("vae", "rec", "e2e"),
        end_to_end_epochs=-(-6000 // images),
    )


def _quick_mad_vae(train_size: int) -> MADVAEConfig:
    paper, images = MADVAEConfig(), min(4000, train_size)
    mixture = dataclasses.replace(
        paper.mixture,
        rounds=1,
        images=images,
        cw_learning_rates=(0.1,),
        cw_steps=20,
        cw_search_steps=2,
        cw_initial_const=1.0,
    )
    epochs = -(-8000 // images)
    return dataclasses.replace(
        paper,
        classifier=dataclasses.replace(paper.classifier, epochs=-(-60_000 // train_size)),
        mixture=mixture,
        vae=dataclasses.replace(paper.vae, epochs=epochs, batch_size=32),
        classification_epochs=epochs,
    )


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


def _paper(colour: bool, train_size: int) -> MemoryDefenseConfig:
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


def _robust(colour: bool, train_size: int) -> MemoryDefenseConfig:
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
