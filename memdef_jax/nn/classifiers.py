"""Classifiers: the selector (classifier-A) in three sizes, and Memory Defense's classifier-B.

All map images [B, H, W, C] in [0, 1] to logits [B, K] and take `train`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.autoencoder import batch_norm
from memdef_jax.nn.layers import Conv, max_pool

_KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Inverted dropout of [B, F] with one key a sample.

    So that a sample's mask depends neither on its batch nor on the number of devices.
    """
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


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
        for i, features in enumerate((256, 128)):
            x = nn.relu(nn.Dense(features)(x))
            if train and dropout_keys is not None:
                keys = jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(dropout_keys)
                x = dropout(x, self.dropout_rate, keys)
        return nn.Dense(self.classes)(x)


class SmallCNN(nn.Module):
    """Two strided 5x5 convolutions and one hidden layer: a selector that trains on a laptop."""

    classes: int
    axis_name: str | None = None  # no BatchNorm: here for a common signature

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(Conv(16, 5, stride=2, padding=2)(x))
        x = nn.relu(Conv(32, 5, stride=2, padding=2)(x))
        x = nn.relu(nn.Dense(100)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1-3x3-1x1 with four times the features."""

    features: int
    stride: int
    bottleneck: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(batch_norm, train, self.axis_name)
        conv = functools.partial(Conv, use_bias=False, kernel_init=_KAIMING_FAN_OUT)
        wide = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:  # v1.5: the stride is on the 3x3 convolution
            y = nn.relu(norm()(conv(self.features, 1)(x)))
            y = nn.relu(norm()(conv(self.features, 3, self.stride, 1)(y)))
            y = norm()(conv(wide, 1)(y))
        else:
            y = nn.relu(norm()(conv(self.features, 3, self.stride, 1)(x)))
            y = norm()(conv(wide, 3, 1, 1)(y))
        if x.shape != y.shape:
            x = norm()(conv(wide, 1, self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet with a 3x3 stride-1 stem for small images, max-pool kept (arXiv 1512.03385)."""

    classes: int
    stages: Sequence[int]
    bottleneck: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(64, 3, 1, 1, use_bias=False, kernel_init=_KAIMING_FAN_OUT)(x)
        x = nn.relu(batch_norm(train, self.axis_name)(x))
        x = max_pool(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = _Block(64 * 2**stage, stride, self.bottleneck, self.axis_name)(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


ResNet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), bottleneck=False)
ResNet50 = functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True)

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
}


def classifier(name: str, classes: int, axis_name: str | None = None) -> nn.Module:
    """A selector by name, one of `CLASSIFIERS`.

    Raises:
      InputError: for an unknown name.
    """
    if name not in CLASSIFIERS:
        raise InputError(f"classifier {name!r} is unknown; use one of {', '.join(CLASSIFIERS)}.")
    return CLASSIFIERS[name](classes=classes, axis_name=axis_name)
