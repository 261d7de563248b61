"""Named configurations of Memory Defense.

"quick": minutes on a CPU; a small classifier-A with attacks in the training loop, the paper's loss.
"paper": ResNet-50 and the paper's recipe and settings; what it leaves open is said in
`StackConfig`. "robust": for a GPU, ResNet-18 with attacks in the loop, squared error summed an
image and a sharper addressing, so that reconstructions depend on the image.
"""

from __future__ import annotations

from memdef_jax.data import Augmentation
from memdef_jax.defenses.memory.memory_training import MemoryDefenseConfig
from memdef_jax.defenses.memory.stack import StackConfig
from memdef_jax.defenses.selector import SelectorConfig


def _quick(image_shape: tuple[int, int, int], train_size: int) -> MemoryDefenseConfig:
    colour = image_shape[-1] == 3

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


def _paper(image_shape: tuple[int, int, int], train_size: int) -> MemoryDefenseConfig:
    colour = image_shape[-1] == 3
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


def _robust(image_shape: tuple[int, int, int], train_size: int) -> MemoryDefenseConfig:
    colour = image_shape[-1] == 3
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


MEMORY_DEFENSE = {"quick": _quick, "paper": _paper, "robust": _robust}
