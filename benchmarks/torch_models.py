"""The library's classifiers in torch, with the same weights, so that peers attack the same model.

python -m benchmarks.torch_models [MODEL ...]    # compare the logits of both
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from benchmarks import models
from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.nn import Bound

TOLERANCE = 1e-4
Arrays = Mapping[str, Any]


class SmallCNN(nn.Module):
    """As `memdef_jax.nn.SmallCNN`."""

    def __init__(self, params: Arrays, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(params["Conv_0"], 2, 2), nn.ReLU(), conv(params["Conv_1"], 2, 2), nn.ReLU()
        )
        # The library flattens rows, columns, channels, torch channels, rows, columns.
        kernel = np.asarray(params["Dense_0"]["kernel"])
        channels = np.asarray(params["Conv_1"]["kernel"]).shape[3]
        rows, columns = (-(-n // 4) for n in image_shape[:2])
        kernel = kernel.reshape(rows, columns, channels, -1).transpose(2, 0, 1, 3)
        hidden = {**params["Dense_0"], "kernel": kernel.reshape(-1, kernel.shape[-1])}
        self.head = nn.Sequential(linear(hidden), nn.ReLU(), linear(params["Dense_1"]))

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x).flatten(1))


class _Block(nn.Module):
    """A residual block, plain or bottleneck by the convolutions that it finds."""

    def __init__(self, params: Arrays, stats: Arrays, stride: int, bottleneck: bool) -> None:
        super().__init__()
        # (stride, padding) of each; the stride of a bottleneck is on its 3x3 convolution.
        places = [(1, 0), (stride, 1), (1, 0)] if bottleneck else [(stride, 1), (1, 1)]
        layers: list[Any] = []
        for i, (step, padding) in enumerate(places):
            name = f"BatchNorm_{i}"
            layers += [conv(params[f"Conv_{i}"], step, padding), norm(params[name], stats[name])]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers[:-1])
        self.skip: Any = nn.Identity()
        last = len(places)
        if f"Conv_{last}" in params:
            name = f"BatchNorm_{last}"
            self.skip = nn.Sequential(
                conv(params[f"Conv_{last}"], stride, 0), norm(params[name], stats[name])
            )

    def forward(self, x: Any) -> Any:
        return torch.relu(self.skip(x) + self.body(x))


class ResNet(nn.Module):
    """As `memdef_jax.nn.ResNet`."""

    def __init__(self, variables: Arrays, stages: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        params, stats = variables["params"], variables["batch_stats"]
        layers: list[Any] = [
            conv(params["Conv_0"], 1, 1),
            norm(params["BatchNorm_0"], stats["BatchNorm_0"]),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        for stage, blocks in enumerate(stages):
            for block in range(blocks):
                name = f"_Block_{sum(stages[:stage]) + block}"
                stride = 2 if stage and not block else 1
                layers.append(_Block(params[name], stats[name], stride, bottleneck))
        self.body = nn.Sequential(*layers)
        self.head = linear(params["Dense_0"])

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def port(name: str, bound: Bound) -> Any:
    """The torch module, in evaluation mode, of a model of `models.RECIPES`."""
    settings = models.recipe(name)
    variables = jax.device_get(bound.variables)
    architecture = settings.selector.architecture
    if architecture == "small_cnn":
        module: Any = SmallCNN(variables["params"], settings.image_shape)
    else:
        # stages and bottleneck are the keywords of the partials ResNet18 and ResNet50
        found: Any = bound.module
        module = ResNet(variables, tuple(found.stages), found.bottleneck)
    return module.eval().requires_grad_(False)


def to_torch(images: np.ndarray, device: str = "cpu") -> Any:
    """[B, H, W, C] as a torch tensor [B, C, H, W]."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)


def to_numpy(images: Any) -> np.ndarray:
    """A torch tensor [B, C, H, W] as [B, H, W, C]."""
    return images.detach().cpu().numpy().transpose(0, 2, 3, 1)


def logits(module: Any, images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Logits [B, K] of images [B, H, W, C]."""
    with torch.no_grad():
        parts = [
            module(to_torch(part, device))
            for part in np.split(images, range(128, len(images), 128))
        ]
    return torch.cat(parts).float().cpu().numpy()


def check(
    bound: Bound,
    module: Any,
    images: np.ndarray,
    tolerance: float = TOLERANCE,
    device: str = "cpu",
) -> float:
    """Largest difference between the logits of both.

    Raises:
      InputError: when it is above the tolerance: the peers would attack another model.
    """
    ours = np.asarray(jax.jit(bound)(images))
    difference = float(np.abs(ours - logits(module, images, device)).max())
    if not difference <= tolerance:
        raise InputError(
            f"logits in JAX and torch differ by {difference:.2g}, more than {tolerance:g}; "
            "the port of the model is wrong."
        )
    return difference


def _tensor(array: Any) -> Any:
    return torch.from_numpy(np.array(array, np.float32))


def conv(params: Arrays, stride: int, padding: int) -> Any:
    """A convolution with the library's weights."""
    height, width, inputs, outputs = np.asarray(params["kernel"]).shape
    layer = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias="bias" in params)
    layer.weight.data = _tensor(np.asarray(params["kernel"]).transpose(3, 2, 0, 1))
    if "bias" in params:
        layer.bias.data = _tensor(params["bias"])
    return layer


def transposed(params: Arrays, stride: int, padding: int, output_padding: int = 0) -> Any:
    """A transposed convolution with the library's weights."""
    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    inputs, outputs, size, _ = kernel.shape
    layer = nn.ConvTranspose2d(inputs, outputs, size, stride, padding, output_padding)
    layer.weight.data, layer.bias.data = _tensor(kernel), _tensor(params["bias"])
    return layer


def norm(params: Arrays, stats: Arrays) -> Any:
    """A BatchNorm with the library's weights and statistics."""
    layer = nn.BatchNorm2d(len(params["scale"]), eps=1e-5)
    layer.weight.data, layer.bias.data = _tensor(params["scale"]), _tensor(params["bias"])
    layer.running_mean, layer.running_var = _tensor(stats["mean"]), _tensor(stats["var"])
    return layer


def linear(params: Arrays) -> Any:
    """A dense layer with the library's weights."""
    layer = nn.Linear(*np.asarray(params["kernel"]).shape)
    layer.weight.data = _tensor(np.asarray(params["kernel"]).T)
    layer.bias.data = _tensor(params["bias"])
    return layer


def main() -> None:
    for name in sys.argv[1:] or ("small_cnn_clean", "small_cnn_pgd", "resnet18"):
        bound = models.load(name)
        x, _ = models.test_images(name, 128)
        print(f"{name}: logits differ by at most {check(bound, port(name, bound), x):.2g}")


if __name__ == "__main__":
    console.run(main)
