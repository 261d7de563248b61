"""Memory Defense in torch, with the library's weights: the same work for another library.

What a torch user would write: modules for encoder, decoder and classifier-B, the addressing as
matrix products, Equation 13 as the objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_models import SmallCNN, conv, linear, norm, transposed
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec, StackConfig
from memdef_jax.nn.autoencoder import architecture


class _Encoder(nn.Module):
    def __init__(self, params: Any, stats: Any, layers: Any) -> None:
        super().__init__()
        steps: list[Any] = []
        for i, (_, _, stride, padding) in enumerate(layers):
            name = f"BatchNorm_{i}"
            steps += [conv(params[f"Conv_{i}"], stride, padding), norm(params[name], stats[name])]
            steps.append(nn.Sigmoid() if i == len(layers) - 1 else nn.LeakyReLU(0.25))
        self.body = nn.Sequential(*steps)

    def forward(self, x: Any) -> Any:
        # Rows of the memory are the library's: rows, columns, channels.
        return self.body(x).permute(0, 2, 3, 1).flatten(1)


class _Decoder(nn.Module):
    def __init__(self, params: Any, stats: Any, layers: Any, latent: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent = latent
        steps: list[Any] = []
        for i, (_, output_padding) in enumerate(layers):
            steps.append(transposed(params[f"ConvTranspose_{i}"], 2, 1, output_padding))
            if i < len(layers) - 1:
                name = f"BatchNorm_{i}"
                steps += [norm(params[name], stats[name]), nn.LeakyReLU(0.25)]
        self.body = nn.Sequential(*steps)

    def forward(self, z: Any) -> Any:
        return self.body(z.view(-1, *self.latent).permute(0, 3, 1, 2))


class _ClassifierB(nn.Module):
    def __init__(self, params: Any, size: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(params["Conv_0"], 1, 0),
            nn.MaxPool2d(2),
            nn.ReLU(),
            conv(params["Conv_1"], 1, 0),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        side = ((size - 4) // 2 - 4) // 2
        first = np.asarray(params["Dense_0"]["kernel"])
        first = first.reshape(side, side, 16, -1).transpose(2, 0, 1, 3).reshape(first.shape)
        self.head = nn.Sequential(
            linear({**params["Dense_0"], "kernel": first}),
            nn.ReLU(),
            nn.Dropout(dropout),
            linear(params["Dense_1"]),
            nn.ReLU(),
            nn.Dropout(dropout),
            linear(params["Dense_2"]),
        )

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x).flatten(1))


class Stack(nn.Module):
    """Encoder, memory, decoder and classifier-B; `loss` is Equation 13 with cross-entropy."""

    def __init__(
        self, spec: MemoryDefenseSpec, variables: Mapping[str, Any], dropout: float = 0.5
    ) -> None:
        super().__init__()
        arch = architecture(spec.image_shape)
        params, stats = variables["params"], variables["batch_stats"]["autoencoder"]
        own = params["autoencoder"]
        self.encoder = _Encoder(own["encoder"], stats["encoder"], arch.encoder)
        self.decoder = _Decoder(own["decoder"], stats["decoder"], arch.decoder, arch.latent)
        self.reader = _ClassifierB(params["classifier_b"], spec.image_shape[0], dropout)
        self.memory: Any = None
        if spec.memory_rows:
            self.memory = nn.Parameter(torch.from_numpy(np.array(own["memory"])))
        self.spec = spec

    def weights(self, z: Any) -> Any:
        """Equations 8 and 9."""
        cosine = functional.normalize(z, dim=1) @ functional.normalize(self.memory, dim=1).T
        return torch.softmax(self.spec.softmax_scale * cosine, dim=1)

    def masked(self, weights: Any, mask: Any) -> Any:
        """Shrink, mask, renormalise (Equation 10)."""
        gap = weights - self.spec.shrink_threshold
        kept = torch.relu(gap) * weights / (gap.abs() + 1e-12) * mask
        return kept / (kept.sum(1, keepdim=True) + 1e-12)

    def mask(self, labels: Any) -> Any:
        """Ones on the rows of each label's class."""
        slots = self.spec.memory_rows // self.spec.classes
        return functional.one_hot(labels, self.spec.classes).float().repeat_interleave(slots, 1)

    def forward(self, x: Any, labels: Any) -> Any:
        """Logits of classifier-B for images [B, C, H, W] and the slots of labels."""
        z = self.encoder(x)
        if self.memory is not None:
            z = self.masked(self.weights(z), self.mask(labels)) @ self.memory
        return self.reader(self.decoder(z))

    def loss(self, x: Any, labels: Any, config: StackConfig) -> Any:
        """What `stack_loss` computes, for squared errors that are means."""
        weights = self.weights(self.encoder(x + config.noise_sigma * torch.randn_like(x)))
        mask = self.mask(labels)
        target, rest = self.masked(weights, mask), self.masked(weights, 1 - mask)
        rebuilt, other = self.decoder(target @ self.memory), self.decoder(rest @ self.memory)
        error = functional.mse_loss(rebuilt, x)
        non_target = functional.mse_loss(other, x) + config.alpha * _entropy(rest)
        bounded = config.beta * torch.sigmoid(non_target / (self.spec.classes - 1))
        named = functional.cross_entropy(self.reader(rebuilt), labels)
        penalty = config.alpha * _entropy(target) - bounded
        return error + penalty + config.cross_entropy_weight * named


def _entropy(weights: Any) -> Any:
    return -(weights * torch.log(weights + 1e-12)).sum()


class Pipeline(nn.Module):
    """The deployed defense, for a small classifier-A."""

    def __init__(self, defense: MemoryDefense, variables: Mapping[str, Any]) -> None:
        super().__init__()
        spec = defense.spec
        self.selector = SmallCNN(variables["selector"]["params"], spec.image_shape)
        self.stack = Stack(spec, variables["stack"])

    def forward(self, x: Any) -> Any:
        return self.stack(x, self.selector(x).argmax(1))
