"""Classifiers: the selectors and targets of the defenses, and Memory Defense's classifier-B.

All map images [B, H, W, C] in [0, 1] to logits [B, K] and take `train` and `dropout_keys` [B], one
typed key an image: dropout acts only in training and only with keys. Those that have none ignore
the keys. All but classifier-B end in one of the heads of `nn.heads`; the residual networks are in
`nn.residual`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.heads import check_head, head
from memdef_jax.nn.layers import Conv, Dense, max_pool
from memdef_jax.nn.residual import (
    ResNet18,
    ResNet50,
    WideResNet16x4,
    WideResNet28x10,
    WideResNet34x10,
)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Inverted dropout of [B, ...] with one key a sample.

    So that a sample's mask depends neither on its batch nor on the number of devices.
    """
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def _dropped(x: jax.Array, rate: float, keys: jax.Array | None, layer: int) -> jax.Array:
    """Dropout of one layer, which draws from keys of its own; nothing without keys or at rate 0."""
    if keys is None or not rate:
        return x
    return dropout(x, rate, jax.vmap(jax.random.fold_in, (0, None))(keys, layer))


def _check_size(x: jax.Array, least: int) -> None:
    height, width = x.shape[1:3]
    if min(height, width) < least:
        raise InputError(
            f"images of {height}x{width} are too small for this classifier's convolutions; "
            f"resize them to {least}x{least} or more."
        )


class ClassifierB(nn.Module):
    """The target classifier that reads the reconstruction (Table 4 and the published code).

    Two 5x5 convolutions with pooling, then 256, 128 and K units; dropout 0.5 after both hidden
    layers while training.
    """

    classes: int
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = nn.relu(max_pool(Conv(6, 5)(x)))
        x = nn.relu(max_pool(Conv(16, 5)(x)))
        x = x.reshape(x.shape[0], -1)
        keys = dropout_keys if train else None
        for i, features in enumerate((256, 128)):
            x = _dropped(nn.relu(Dense(features)(x)), self.dropout_rate, keys, i)
        return Dense(self.classes)(x)


class SmallCNN(nn.Module):
    """Two strided 5x5 convolutions and one hidden layer: a selector that trains on a laptop."""

    classes: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = nn.relu(Conv(16, 5, stride=2, padding=2)(x))
        x = nn.relu(Conv(32, 5, stride=2, padding=2)(x))
        x = nn.relu(Dense(100)(x.reshape(x.shape[0], -1)))
        return head(self.head, self.classes)(x)


class DefenseGANConvolutional(nn.Module):
    """Two convolutions and 128 units: models A and C of Defense-GAN (Table 5 of Defense-VAE).

    Dropout 0.25 after the convolutions, 0.5 after the hidden layer. `features` and `kernel_size`
    (odd) are those of the first convolution, which keeps the size.
    """

    classes: int
    features: int
    kernel_size: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        _check_size(x, 5)
        keys = dropout_keys if train else None
        x = nn.relu(Conv(self.features, self.kernel_size, padding=self.kernel_size // 2)(x))
        x = nn.relu(Conv(64, 5, stride=2)(x))
        x = _dropped(x.reshape(x.shape[0], -1), 0.25, keys, 0)
        x = _dropped(nn.relu(Dense(128)(x)), 0.5, keys, 1)
        return head(self.head, self.classes)(x)


class DefenseGANModelB(nn.Module):
    """Three convolutions, no hidden layer: model B of Defense-GAN (Table 5 of Defense-VAE).

    Dropout 0.2 on the image and 0.5 before the last layer. The first convolution is padded to
    half the size, as in Defense-GAN's code; Defense-VAE prints a padding of 5. That code gives its
    dropout what to keep, so that there 80% of the image is dropped, not the 20% of the papers.
    """

    classes: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        _check_size(x, 28)
        keys = dropout_keys if train else None
        x = _dropped(x, 0.2, keys, 0)
        x = nn.relu(Conv(64, 8, stride=2, padding=3)(x))
        x = nn.relu(Conv(128, 6, stride=2)(x))
        x = nn.relu(Conv(128, 5)(x))
        x = _dropped(x.reshape(x.shape[0], -1), 0.5, keys, 1)
        return head(self.head, self.classes)(x)


class DefenseGANDense(nn.Module):
    """Two hidden layers of 200: models D and E of Defense-GAN (Table 5 of Defense-VAE).

    `dropout_rates` are those after the two hidden layers.
    """

    classes: int
    dropout_rates: tuple[float, float]
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        keys = dropout_keys if train else None
        x = x.reshape(x.shape[0], -1)
        for i, rate in enumerate(self.dropout_rates):
            x = _dropped(nn.relu(Dense(200)(x)), rate, keys, i)
        return head(self.head, self.classes)(x)


class MagNetClassifier(nn.Module):
    """MAD-VAE's classifier (its Table 5), that of Carlini & Wagner 2017 and MagNet for MNIST.

    Twice two unpadded 3x3 convolutions and a pooling, then 200, 200 and K units. The table has no
    dropout.
    """

    classes: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        _check_size(x, 16)
        for features in (32, 64):
            x = nn.relu(Conv(features, 3)(x))
            x = max_pool(nn.relu(Conv(features, 3)(x)))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(Dense(200)(x))
        return head(self.head, self.classes)(x)


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling and 500 units: the target of the feature-map denoiser.

    Section 4.2 of its paper: 20 and 50 features; 28x28 pixels give 4x4x50 = 800 inputs.
    """

    classes: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        _check_size(x, 16)
        for features in (20, 50):
            x = max_pool(nn.relu(Conv(features, 5)(x)))
        x = nn.relu(Dense(500)(x.reshape(x.shape[0], -1)))
        return head(self.head, self.classes)(x)


DefenseGANModelA = functools.partial(DefenseGANConvolutional, features=64, kernel_size=5)
DefenseGANModelC = functools.partial(DefenseGANConvolutional, features=128, kernel_size=3)
DefenseGANModelD = functools.partial(DefenseGANDense, dropout_rates=(0.5, 0.25))
DefenseGANModelE = functools.partial(DefenseGANDense, dropout_rates=(0.0, 0.0))

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "wide_resnet16_4": WideResNet16x4,
    "wide_resnet28_10": WideResNet28x10,
    "wide_resnet34_10": WideResNet34x10,
    "a": DefenseGANModelA,
    "b": DefenseGANModelB,
    "c": DefenseGANModelC,
    "d": DefenseGANModelD,
    "e": DefenseGANModelE,
    "magnet": MagNetClassifier,
    "lenet": LeNet,
}


def classifier(
    name: str, classes: int, axis_name: str | None = None, head: str = "linear"
) -> nn.Module:
    """A classifier by name, one of `CLASSIFIERS`; "a" to "e" are Defense-GAN's models.

    Args:
      name: of the architecture.
      classes: K.
      axis_name: mesh axis over which BatchNorm averages while training.
      head: its last layer, one of `nn.heads.HEADS`.

    Raises:
      InputError: for an unknown name or head.
    """
    if name not in CLASSIFIERS:
        raise InputError(f"classifier {name!r} is unknown; use one of {', '.join(CLASSIFIERS)}.")
    check_head(head)
    # Passed only where another is wanted: a classifier put into the table may know of none.
    other = {} if head == "linear" else {"head": head}
    return CLASSIFIERS[name](classes=classes, axis_name=axis_name, **other)
