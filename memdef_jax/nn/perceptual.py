"""What denoisers are trained by: distances of feature maps, and of a classifier's answers.

The perceptual loss of the feature-map denoising autoencoder (its Equation 4, after arXiv
1603.08155) and the guidance of the high-level representation guided denoiser (HGD, arXiv
1712.02976). Terms are per example; the caller averages and adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.bound import Bound
from memdef_jax.nn.losses import reconstruction_error
from memdef_jax.nn.vgg import VGG16Features, check_layers

# Layers 3, 7 and 10 "from the back" of VGG-16, by the sizes that are printed: 2x2x512, 4x4x256 and
# 8x8x128.
LAYERS = ("relu5_3", "pool3", "pool2")
Features = Callable[[jax.Array], Mapping[str, jax.Array]]


def no_features(x: jax.Array) -> Mapping[str, jax.Array]:
    """No feature maps: with them the perceptual loss is that of the pixels alone."""
    return {}


def vgg_features(params: Any, width: float = 1.0, layers: Sequence[str] = LAYERS) -> Features:
    """The feature maps of a trained VGG-16, frozen.

    Args:
      params: of `nn.vgg.VGG16Features`.
      width: of the network.
      layers: names of the maps, see `nn.vgg.LAYERS`.

    Raises:
      InputError: for an unknown layer.
    """
    check_layers(layers)
    module = VGG16Features(width)
    return lambda x: module.apply({"params": params}, x, tuple(layers))  # type: ignore[return-value]


def perceptual_terms(features: Features, x: jax.Array, denoised: jax.Array) -> dict[str, jax.Array]:
    """The terms of Equation 4, each [B]: mean squared errors of each feature map and of the pixels.

    The printed weights .00048, .00024, .00012 and .0013 are one over the number of elements of the
    maps and of 28x28 pixels, which makes each term a plain mean; so do other maps and sizes here.
    The gradient goes through the network of the features into the denoised images.

    Args:
      features: of the loss network, see `vgg_features`.
      x: clean images [B, H, W, C] in [0, 1].
      denoised: what the denoiser made of their adversarial versions.

    Returns:
      By name of the map, and "pixels".
    """
    clean, seen = jax.lax.stop_gradient(features(x)), features(denoised)
    terms = {name: reconstruction_error(clean[name], seen[name]) for name in clean}
    return {**terms, "pixels": reconstruction_error(x, denoised)}


def logits_and_hidden(target: Bound, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A classifier's logits [B, K], and what its last dense layer reads [B, F].

    Raises:
      InputError: when it has no dense layer.
    """
    read: list[jax.Array] = []

    def notice(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            read.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(notice):
        logits = target(x)
    if not read:
        name = type(target.module).__name__
        raise InputError(f"{name} has no dense layer, so no last hidden one; guide by its logits.")
    return logits, read[-1].reshape(x.shape[0], -1)


def guidance(target: Bound, level: str, x: jax.Array, denoised: jax.Array) -> jax.Array:
    """Mean absolute difference of what a classifier makes of clean and denoised images, [B].

    HGD's loss is their L1 distance; here it is divided by the number of features.

    Args:
      target: the classifier that is defended, frozen.
      level: "logits" (LGD), or "features" (FGD), here what the last dense layer reads.
      x: clean images [B, H, W, C] in [0, 1].
      denoised: what the denoiser made of their adversarial versions.

    Raises:
      InputError: for another level.
    """
    if level not in ("logits", "features"):
        raise InputError(f"guidance by {level!r} is unknown; use 'logits' or 'features'.")
    which = ("logits", "features").index(level)
    clean = jax.lax.stop_gradient(logits_and_hidden(target, x)[which])
    return jnp.abs(logits_and_hidden(target, denoised)[which] - clean).mean(axis=-1)
