"""The library's defenses in torch, their parts called as in an exported file (docs/weights.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_networks import Parts, classifier, pool
from memdef_jax.defenses import (
    ClassifierSpec,
    DenoiserSpec,
    MemoryDefenseSpec,
    VAEDefenseSpec,
)
from memdef_jax.nn import autoencoder, vae


def defense(spec: Any) -> Any:
    """The deployed pipeline of a defense, images [B, C, H, W] to logits [B, K], in evaluation mode.

    Its weights are drawn when it is called first, unless they were loaded before.
    """
    if isinstance(spec, ClassifierSpec):
        found: Any = classifier(spec.architecture, spec.classes, spec.head)
    elif isinstance(spec, MemoryDefenseSpec):
        found = _MemoryDefense(spec)
    elif isinstance(spec, VAEDefenseSpec):
        found = _VAEDefense(spec)
    else:
        found = _DenoiserDefense(spec)
    return found.eval()


class _Chain(Parts):
    """Convolutions, or transposed ones, each but perhaps the last with BatchNorm."""

    def __init__(self, layers: Sequence[Any], active: Any, last: Any, up: bool = False) -> None:
        super().__init__()
        make = self.up if up else self.conv
        self.steps: list[Any] = []
        for place, layer in enumerate(layers):
            final = place == len(layers) - 1
            self.steps.append(make(*layer))
            if not final or not up:
                self.steps += [self.norm(), last if final and last else active]

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


def _leaky(x: Any) -> Any:
    return functional.leaky_relu(x, 0.25)


class _Autoencoder(nn.Module):
    def __init__(self, spec: MemoryDefenseSpec) -> None:
        super().__init__()
        arch = autoencoder.architecture(spec.image_shape)
        self.encoder = _Chain(arch.encoder, _leaky, torch.sigmoid)
        plan = [(features, 3, 2, 1, more) for features, more in arch.decoder]
        self.decoder = _Chain(plan, _leaky, None, up=True)
        height, width, channels = arch.latent
        self.latent = (channels, height, width)
        self.memory: Any = None
        if spec.memory_rows:
            rows = torch.rand(spec.memory_rows, height * width * channels) - 0.5
            self.memory = nn.Parameter(rows)
        self.spec = spec

    def forward(self, x: Any, labels: Any) -> Any:
        z = self.encoder(x).flatten(1)
        if self.memory is not None:
            spec = self.spec
            rows = functional.normalize(self.memory, dim=1)
            weights = torch.softmax(spec.softmax_scale * functional.normalize(z, dim=1) @ rows.T, 1)
            mask = functional.one_hot(labels, spec.classes).float()
            mask = mask.repeat_interleave(spec.memory_rows // spec.classes, 1)
            kept = functional.threshold(weights, spec.shrink_threshold, 0.0) * mask
            z = kept / kept.sum(1, keepdim=True) @ self.memory
        return self.decoder(z.unflatten(1, self.latent))


class _MemoryDefense(nn.Module):
    def __init__(self, spec: MemoryDefenseSpec) -> None:
        super().__init__()
        self.selector = classifier(spec.selector, spec.classes, spec.head)
        self.stack = nn.Module()
        self.stack.autoencoder = _Autoencoder(spec)
        self.stack.classifier_b = classifier("classifier_b", spec.classes)

    def forward(self, x: Any) -> Any:
        labels = self.selector(x).argmax(1)
        return self.stack.classifier_b(self.stack.autoencoder(x, labels))


class _VAEEncoder(_Chain):
    def __init__(self, layers: Sequence[Any], latent: int) -> None:
        super().__init__(layers, torch.relu, None)
        self.mean, self.log_variance = nn.LazyLinear(latent), nn.LazyLinear(latent)

    def forward(self, x: Any) -> Any:
        features = super().forward(x).flatten(1)
        return self.mean(features), self.log_variance(features)


class _VAEDecoder(_Chain):
    def __init__(self, layers: Sequence[Any], shape: tuple[int, int, int]) -> None:
        super().__init__(layers, torch.relu, None, up=True)
        self.shape = (shape[2], shape[0], shape[1])
        self.first = (self.dense(shape[0] * shape[1] * shape[2]),)

    def forward(self, z: Any) -> Any:
        return super().forward(torch.relu(self.first[0](z)).unflatten(1, self.shape))


class _VAEDefense(nn.Module):
    def __init__(self, spec: VAEDefenseSpec) -> None:
        super().__init__()
        arch = vae.architecture(spec.image_shape)
        self.undefended = classifier(spec.classifier, spec.classes)
        self.vae = nn.Module()
        self.vae.encoder = _VAEEncoder(arch.encoder, spec.latent_size)
        layers = [*arch.decoder, (spec.image_shape[2], *arch.last)]
        self.vae.decoder = _VAEDecoder(layers, arch.features)
        self.classifier = classifier(spec.classifier, spec.classes)

    def forward(self, x: Any) -> Any:
        self.undefended(x)  # so that its weights are drawn
        mean, _ = self.vae.encoder(x)
        return self.classifier(torch.sigmoid(self.vae.decoder(mean)))


class _DenoisingAutoencoder(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        wide, narrow = (max(1, round(n * width)) for n in (16, 8))
        self.encoder_0 = nn.LazyConv2d(wide, 3, 3, 1)
        self.encoder_1 = nn.LazyConv2d(narrow, 3, 2, 1)
        self.decoder_0 = nn.LazyConvTranspose2d(wide, 3, 2, 0)
        self.decoder_1 = nn.LazyConvTranspose2d(narrow, 5, 3, 1)
        self.decoder_2 = nn.LazyConvTranspose2d(1, 2, 2, 1)

    def forward(self, x: Any) -> Any:
        y = pool(torch.relu(self.encoder_0(2 * x - 1)))
        y = functional.max_pool2d(torch.relu(self.encoder_1(y)), 2, 1)
        y = torch.relu(self.decoder_1(torch.relu(self.decoder_0(y))))
        return 0.5 * (torch.tanh(self.decoder_2(y)) + 1)


class _Convolutions(Parts):
    def __init__(self, features: int, count: int, stride: int) -> None:
        super().__init__()
        self.layers = [
            (self.conv(features, 3, 1 if n else stride, 1, bias=False), self.norm())
            for n in range(count)
        ]

    def forward(self, x: Any) -> Any:
        for conv, norm in self.layers:
            x = torch.relu(norm(conv(x)))
        return x


class _UNet(Parts):
    def __init__(self, width: float, channels: int) -> None:
        super().__init__()
        plan = ((64, 2, 1), (128, 3, 2), (256, 3, 2), (128, 3, 1), (64, 2, 1))
        self.blocks = [
            self.add("_Convolutions", _Convolutions(max(1, round(n * width)), count, stride))
            for n, count, stride in plan
        ]
        self.noise = nn.LazyConv2d(channels, 1)

    def forward(self, x: Any) -> Any:
        first, second, third, back, last = self.blocks
        whole = first(x)
        half = second(whole)
        y = third(half)
        for beside, block in ((half, back), (whole, last)):
            y = functional.interpolate(y, scale_factor=2, mode="bilinear")
            y = block(torch.cat([y, beside], 1))
        return x - self.noise(y)


class _DenoiserDefense(nn.Module):
    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        self.classifier = classifier(spec.classifier, spec.classes)
        if spec.kind == "hgd":
            self.denoiser: Any = _UNet(spec.width, spec.image_shape[2])
        else:
            self.denoiser = _DenoisingAutoencoder(spec.width)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.denoiser(x))
