"""Residual networks: ResNet, and the wide ones of adversarial training.

See `nn.classifiers` for what all classifiers take and give.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from memdef_jax.nn.heads import head
from memdef_jax.nn.layers import Conv, batch_norm, max_pool

_KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = Conv(64, 3, 1, 1, use_bias=False, kernel_init=_KAIMING_FAN_OUT)(x)
        x = nn.relu(batch_norm(train, self.axis_name)(x))
        x = max_pool(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = _Block(64 * 2**stage, stride, self.bottleneck, self.axis_name)(x, train)
        return head(self.head, self.classes)(x.mean(axis=(1, 2)))


class _WideBlock(nn.Module):
    """A pre-activation block: BatchNorm, ReLU and a 3x3 convolution, twice (Table 1, B(3, 3))."""

    features: int
    stride: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(batch_norm, train, self.axis_name)
        conv = functools.partial(Conv, use_bias=False, kernel_init=_KAIMING_FAN_OUT)
        active = nn.relu(norm()(x))
        y = conv(self.features, 3, self.stride, 1)(active)
        y = conv(self.features, 3, 1, 1)(nn.relu(norm()(y)))
        if x.shape != y.shape:  # then the shortcut shares the first activation
            x = conv(self.features, 1, self.stride)(active)
        return x + y


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width (arXiv 1605.07146, Table 1), without dropout.

    A 3x3 stem of 16 features, three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times
    `width` features, the last two at half the size of the one before.
    """

    classes: int
    depth: int
    width: int
    axis_name: str | None = None
    head: str = "linear"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = Conv(16, 3, 1, 1, use_bias=False, kernel_init=_KAIMING_FAN_OUT)(x)
        for group in range(3):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group and not block else 1
                x = _WideBlock(16 * 2**group * self.width, stride, self.axis_name)(x, train)
        x = nn.relu(batch_norm(train, self.axis_name)(x))
        return head(self.head, self.classes)(x.mean(axis=(1, 2)))


ResNet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), bottleneck=False)
ResNet50 = functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True)
WideResNet16x4 = functools.partial(WideResNet, depth=16, width=4)
WideResNet28x10 = functools.partial(WideResNet, depth=28, width=10)
WideResNet34x10 = functools.partial(WideResNet, depth=34, width=10)
