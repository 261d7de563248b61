"""The models that attacks are compared on, trained here and kept under runs/benchmarks/.

    python -m benchmarks.models [small_cnn_clean small_cnn_pgd resnet18]

On two CPU cores the small ones take about one and five minutes, ResNet-18 about eight. Stopped,
the same command continues; trained models are only read.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from memdef_jax import console, data
from memdef_jax.checks import InputError
from memdef_jax.data.images import resize
from memdef_jax.defenses.selector import SelectorConfig, adam, selector_loss
from memdef_jax.nn import Bound, classifier
from memdef_jax.training import (
    AXIS,
    Reporter,
    Stage,
    TrainState,
    make_mesh,
    make_step,
    shard,
    train,
)
from memdef_jax.training.run import open_run

FOLDER = pathlib.Path("runs/benchmarks")
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
      selector: architecture and recipe; "benign" is without attacks.
      steps: updates of `selector.batch_size` images.
      image_shape: Fashion-MNIST is resized to it, and its one channel repeated.
      eps: Linf budget at which the model is attacked.
    """

    selector: SelectorConfig
    steps: int
    image_shape: tuple[int, int, int]
    eps: float

    @property
    def in_loop(self) -> bool:
        """Whether it is trained with attacks."""
        return self.selector.recipe == "in_loop"


def _robust_resnet(architecture: str) -> SelectorConfig:
    """FGSM-RS on half of each batch: a robust model for twice the price of a clean one."""
    return SelectorConfig(
        architecture=architecture, eps=0.05, step_size=0.0625, attack_steps=1, clean_share=0.5
    )


RECIPES: Mapping[str, Recipe] = {
    "small_cnn_clean": Recipe(SelectorConfig(recipe="benign"), 2340, (28, 28, 1), 0.03),
    "small_cnn_pgd": Recipe(
        SelectorConfig(eps=0.1, step_size=0.025, attack_steps=7, clean_share=0.0),
        3744,
        (28, 28, 1),
        0.1,
    ),
    "resnet18": Recipe(_robust_resnet("resnet18"), 350, (28, 28, 1), 0.03),
    # For a GPU; on a CPU they take hours.
    "resnet18_rgb32": Recipe(_robust_resnet("resnet18"), 2340, (32, 32, 3), 0.03),
    "resnet50": Recipe(_robust_resnet("resnet50"), 2340, (28, 28, 1), 0.03),
}


def recipe(name: str) -> Recipe:
    """A recipe by name, one of `RECIPES`.

    Raises:
      InputError: for an unknown name.
    """
    if name not in RECIPES:
        raise InputError(f"model {name!r} is unknown; choose from {', '.join(RECIPES)}.")
    return RECIPES[name]


def _shaped(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.repeat(resize(images, shape[:2]), shape[2] // images.shape[3], axis=3)


def test_images(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images, float32 [count, H, W, C] in [0, 1], and labels int32 [count]."""
    test = data.load("fashion_mnist").test
    images = _shaped(test.images[:count], recipe(name).image_shape)
    return images.astype(np.float32) / 255, test.labels[:count].astype(np.int32)


def load(name: str, reporter: Reporter | None = None, folder: pathlib.Path = FOLDER) -> Bound:
    """The trained model, which is trained first where it is not there.

    Raises:
      InputError: for an unknown name, or a folder that holds another training.
    """
    settings = recipe(name)
    selector = settings.selector
    module = classifier(selector.architecture, CLASSES, AXIS)
    variables = jax.jit(module.init)(
        jax.random.key(0), np.zeros((1, *settings.image_shape), np.float32)
    )
    optimizer = adam(selector.learning_rate, settings.steps, selector.weight_decay)
    open_run(folder / name, dataclasses.asdict(settings))
    mesh = make_mesh(1)
    loss = selector_loss(module, selector, settings.in_loop)
    stage = Stage(
        name=name,
        step=shard(make_step(loss, optimizer), mesh),
        batch=_batches(settings),
        total_steps=settings.steps,
        batch_size=selector.batch_size,
        save_every=max(50, settings.steps // 20),
    )
    state = TrainState.create(variables, optimizer)
    state = train(stage, state, jax.random.key(1), folder / name, mesh, reporter)
    # Off the mesh, as any user's variables are.
    return Bound(module, jax.device_put(jax.device_get(state.variables), jax.devices()[0]))


def _batches(settings: Recipe) -> Any:
    training: list[data.Split] = []  # loaded when the first batch is asked for, if ever

    def batch(step: int) -> dict[str, np.ndarray]:
        if not training:
            training.append(data.load("fashion_mnist").train)
        images, labels = data.train_batch(training[0], step, settings.selector.batch_size, seed=0)
        return {"image": _shaped(images, settings.image_shape), "label": labels}

    return batch


def main() -> None:
    reporter = console.ConsoleReporter()
    for name in sys.argv[1:] or ("small_cnn_clean", "small_cnn_pgd", "resnet18"):
        bound = load(name, reporter)
        x, y = test_images(name, 1000)
        correct = np.asarray(jax.jit(bound)(x)).argmax(-1) == y
        print(f"{name}: {100 * correct.mean():.1f}% of the first 1000 test images", flush=True)


if __name__ == "__main__":
    console.run(main)
