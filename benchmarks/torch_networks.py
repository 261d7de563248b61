"""The library's classifiers in torch, their parts called as in an exported file (docs/weights.md).

So that `load_state_dict` takes the file as it is. Sizes that the weights say are left to lazy
modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_STAGES = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}
_WIDE = {"wide_resnet16_4": (2, 4), "wide_resnet28_10": (4, 10), "wide_resnet34_10": (5, 10)}


class Parts(nn.Module):
    """Modules called by type and number: `add("Conv", layer)` makes Conv_0, then Conv_1.

    Subclasses keep them in tuples and lists too, which torch does not name.
    """

    def add(self, name: str, layer: Any) -> Any:
        number = sum(other.startswith(f"{name}_") for other in self._modules)
        self.add_module(f"{name}_{number}", layer)
        return layer

    def conv(
        self, features: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> Any:
        return self.add("Conv", nn.LazyConv2d(features, size, stride, padding, bias=bias))

    def up(
        self, features: int, size: int, stride: int, padding: int, output_padding: int = 0
    ) -> Any:
        layer = nn.LazyConvTranspose2d(features, size, stride, padding, output_padding)
        return self.add("ConvTranspose", layer)

    def norm(self) -> Any:
        return self.add("BatchNorm", nn.LazyBatchNorm2d())

    def dense(self, features: int) -> Any:
        return self.add("Dense", nn.LazyLinear(features))

    def head(self, name: str, classes: int) -> Any:
        if name == "linear":
            return self.dense(classes)
        return self.add("MemoryHead", _MemoryHead(classes))


class _MemoryHead(nn.modules.lazy.LazyModuleMixin, nn.Module):
    def __init__(self, classes: int, rows: int = 5, scale: float = 15.0) -> None:
        super().__init__()
        self.classes, self.rows, self.scale = classes, rows, scale
        self.memory = nn.UninitializedParameter()

    def initialize_parameters(self, z: Any) -> None:
        if self.has_uninitialized_params():
            self.memory.materialize((self.classes * self.rows, z.shape[1]))
            nn.init.normal_(self.memory)

    def forward(self, z: Any) -> Any:
        cosine = functional.normalize(z, dim=1) @ functional.normalize(self.memory, dim=1).T
        mean = (self.scale * cosine).exp().unflatten(1, (self.classes, self.rows)).mean(2)
        return mean.log()


class _Plain(Parts):
    """A classifier of layers in a row, one of `_LAYERS`."""

    def __init__(self, layers: Sequence[Any], classes: int, head: str) -> None:
        super().__init__()
        self.steps: list[Any] = []
        for layer in layers:
            if isinstance(layer, tuple):
                self.steps.append(self.conv(*layer))
            elif isinstance(layer, int):
                self.steps.append(self.dense(layer))
            else:
                self.steps.append(layer)
        self.steps.append(self.head(head, classes))

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


def pool(x: Any) -> Any:
    return functional.max_pool2d(x, 2)


def _flat(x: Any) -> Any:
    return x.flatten(1)


_RELU = torch.relu
# Convolutions are (features, size, stride, padding), numbers are dense layers.
_LAYERS: dict[str, Sequence[Any]] = {
    "small_cnn": ((16, 5, 2, 2), _RELU, (32, 5, 2, 2), _RELU, _flat, 100, _RELU),
    "a": ((64, 5, 1, 2), _RELU, (64, 5, 2), _RELU, _flat, 128, _RELU),
    "b": ((64, 8, 2, 3), _RELU, (128, 6, 2), _RELU, (128, 5), _RELU, _flat),
    "c": ((128, 3, 1, 1), _RELU, (64, 5, 2), _RELU, _flat, 128, _RELU),
    "d": (_flat, 200, _RELU, 200, _RELU),
    "e": (_flat, 200, _RELU, 200, _RELU),
    "magnet": (
        *((32, 3), _RELU, (32, 3), _RELU, pool, (64, 3), _RELU, (64, 3), _RELU, pool),
        *(_flat, 200, _RELU, 200, _RELU),
    ),
    "lenet": ((20, 5), _RELU, pool, (50, 5), _RELU, pool, _flat, 500, _RELU),
    "classifier_b": (
        *((6, 5), pool, _RELU, (16, 5), pool, _RELU),
        *(_flat, 256, _RELU, 128, _RELU),
    ),
}


class _Block(Parts):
    def __init__(self, features: int, stride: int, bottleneck: bool, shortcut: bool) -> None:
        super().__init__()
        plan = [(3, stride, 1), (3, 1, 1)]
        if bottleneck:
            plan = [(1, 1, 0), (3, stride, 1), (1, 1, 0)]
        wide = features * (4 if bottleneck else 1)
        widths = [features] * (len(plan) - 1) + [wide]
        self.body = [(self.conv(w, *how, bias=False), self.norm()) for w, how in zip(widths, plan)]
        self.skip = None
        if shortcut:
            self.skip = (self.conv(wide, 1, stride, bias=False), self.norm())

    def forward(self, x: Any) -> Any:
        y = x
        for place, (conv, norm) in enumerate(self.body):
            y = norm(conv(y))
            y = torch.relu(y) if place < len(self.body) - 1 else y
        if self.skip:
            x = self.skip[1](self.skip[0](x))
        return torch.relu(x + y)


class _ResNet(Parts):
    def __init__(self, stages: Sequence[int], bottleneck: bool, classes: int, head: str) -> None:
        super().__init__()
        self.stem = (self.conv(64, 3, 1, 1, bias=False), self.norm())
        self.blocks = []
        for stage, count in enumerate(stages):
            for number in range(count):
                stride = 2 if stage and not number else 1
                shortcut = not number and (stage > 0 or bottleneck)
                block = _Block(64 * 2**stage, stride, bottleneck, shortcut)
                self.blocks.append(self.add("_Block", block))
        self.last = (self.head(head, classes),)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem[1](self.stem[0](x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.last[0](x.mean((2, 3)))


class _WideBlock(Parts):
    def __init__(self, features: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.norms = (self.norm(), self.norm())
        self.convs = (
            self.conv(features, 3, stride, 1, bias=False),
            self.conv(features, 3, 1, 1, bias=False),
        )
        self.skip = (self.conv(features, 1, stride, bias=False),) if shortcut else None

    def forward(self, x: Any) -> Any:
        active = torch.relu(self.norms[0](x))
        y = self.convs[1](torch.relu(self.norms[1](self.convs[0](active))))
        return y + (self.skip[0](active) if self.skip else x)


class _WideResNet(Parts):
    def __init__(self, blocks: int, width: int, classes: int, head: str) -> None:
        super().__init__()
        self.steps = [self.conv(16, 3, 1, 1, bias=False)]
        self.steps += [
            self.add(
                "_WideBlock",
                _WideBlock(16 * 2**group * width, 2 if group and not n else 1, not n),
            )
            for group in range(3)
            for n in range(blocks)
        ]
        self.last = (self.norm(), self.head(head, classes))

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        norm, head = self.last
        return head(torch.relu(norm(x)).mean((2, 3)))


def classifier(name: str, classes: int, head: str = "linear") -> Any:
    if name in _STAGES:
        return _ResNet(*_STAGES[name], classes, head)
    if name in _WIDE:
        return _WideResNet(*_WIDE[name], classes, head)
    return _Plain(_LAYERS[name], classes, head)
