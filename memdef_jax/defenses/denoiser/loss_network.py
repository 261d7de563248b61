"""The network whose feature maps a perceptual loss compares: read from a file, or trained here."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax import arrays, data
from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.defenses.target import check_settings, train_plain
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.nn import torch_layout
from memdef_jax.nn.perceptual import LAYERS
from memdef_jax.nn.vgg import SIZE, VGG16, VGG16Features, check_layers
from memdef_jax.training import AXIS

_PREFIX = "features."  # of the convolutions' names in torchvision's VGG-16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossNetworkConfig:
    """The loss network, a VGG-16.

    The paper's has ImageNet's weights, and "does not have to be trained for the same classification
    purpose": without a file it is trained to classify the dataset at hand.

    Attributes:
      weights: a .safetensors or .npz file with torchvision's VGG-16, arrays features.0.weight and
        so on [out, in, h, w]; its dense layers are not read. None to train one.
      layers: feature maps that are compared, see `nn.vgg.LAYERS`.
      width: factor of the number of features, 1 with a file;
      images: that it is trained on, the first ones, None for all; and for
      epochs: over these, with batches of
      batch_size: images, global, at
      learning_rate: of Adam. There is no BatchNorm, so it must be small at full width.
    """

    weights: str | None = None
    layers: tuple[str, ...] = LAYERS
    width: float = 1.0
    images: int | None = None
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_settings(self)
        check_layers(self.layers)
        check_number("width", self.width, above_zero=True)
        if self.images is not None and self.images < 1:
            raise InputError(f"images {self.images} is below 1; use 1 or more, or None for all.")
        if self.weights is not None and self.width != 1.0:
            raise InputError(
                f"width {self.width:g} of the loss network does not go with weights from a file; "
                "use width 1."
            )

    @property
    def path(self) -> pathlib.Path | None:
        """Of the file with weights."""
        return None if self.weights is None else pathlib.Path(self.weights).expanduser()


def described(config: LossNetworkConfig, dataset: str) -> str:
    """Which network it is, in words, for the run's description."""
    if config.path is None:
        return f"VGG-16 of width {config.width:g}, trained on {dataset}"
    return f"VGG-16 of {config.path.name}, SHA-256 {arrays.digest(config.path)}"


def imported(config: LossNetworkConfig) -> Any:
    """Parameters of `nn.vgg.VGG16Features` from the configured file; None where there is none.

    Raises:
      InputError: naming the first layer that is absent or of another shape, before any is read.
    """
    if config.path is None:
        return None
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    like = jax.eval_shape(VGG16Features(config.width).init, jax.random.key(0), x)
    shapes = {name: found.shape for name, found in arrays.describe(config.path).items()}
    torch_layout.check(shapes, like, str(config.path), _PREFIX)
    read = arrays.read(config.path, [_PREFIX + name for name in torch_layout.names(like)])
    own = {name.removeprefix(_PREFIX): array for name, array in read.items()}
    return torch_layout.from_torch(own, like)["params"]


def trained(
    config: LossNetworkConfig, trainer: Trainer, purpose: int, shape: tuple[int, int, int], k: int
) -> Any:
    """Parameters of a `VGG16Features` trained as a classifier on the run's plain images.

    Args:
      config: of the network.
      trainer: of the run; its stage is "loss_network".
      purpose: of its random numbers.
      shape: of images, (H, W, C).
      k: how many classes.
    """
    own = dataclasses.replace(trainer, split=data.subset(trainer.split, config.images))
    x = jnp.zeros((1, *shape), jnp.float32)
    start = jax.jit(VGG16(k, config.width).init)(trainer.key(purpose + 100), x)
    module = VGG16(k, config.width, AXIS)
    found = train_plain(own, "loss_network", purpose, module, {"batch_stats": {}, **start}, config)
    return found["params"]["features"]
