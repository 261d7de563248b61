"""VGG-16 for small images: a classifier, and the feature maps that a perceptual loss compares.

Configuration D of arXiv 1409.1556: thirteen padded 3x3 convolutions in five blocks, each ended
by a pooling. Parameters are named and ordered as torchvision's, "features.0" to "features.28", so
that its ImageNet weights fit (see `nn.torch_layout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.layers import Conv, Dense, max_pool

SIZE = 32  # pixels that images are brought to; the five poolings leave one
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # features and convolutions of each
# Of ImageNet's colours in [0, 1]: what torchvision's weights expect to be normalised by.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _plan() -> Iterator[tuple[str, int, int]]:
    """Of each feature map its name, torchvision's place of its layer, and features (0: a pool)."""
    place = 0
    for block, (features, count) in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            yield f"relu{block}_{number}", place, features
            place += 2  # convolution and ReLU
        yield f"pool{block}", place, 0
        place += 1


LAYERS = tuple(name for name, _, _ in _plan())


def check_layers(layers: Sequence[str]) -> None:
    """Check names of feature maps.

    Raises:
      InputError: when one is unknown or none is given.
    """
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise InputError(
            f"VGG-16 has no feature map {unknown[0] if unknown else 'without a name'!r}; "
            f"use some of {', '.join(LAYERS)}."
        )


def normalised(x: jax.Array) -> jax.Array:
    """Images [B, H, W, 1 or 3] in [0, 1] as VGG-16 reads them, [B, 32, 32, 3].

    Other sizes are resized bilinearly, gray is repeated for the three colours, and ImageNet's mean
    and standard deviation of each colour are taken out.

    Raises:
      InputError: for another number of channels.
    """
    batch, height, width, channels = x.shape
    if channels not in (1, 3):
        raise InputError(f"images of {channels} channels cannot be read by VGG-16; give 1 or 3.")
    if (height, width) != (SIZE, SIZE):
        x = jax.image.resize(x, (batch, SIZE, SIZE, channels), "bilinear")
    return (x - jnp.asarray(MEAN, x.dtype)) / jnp.asarray(DEVIATION, x.dtype)


class VGG16Features(nn.Module):
    """The convolutions: images [B, H, W, 1 or 3] in [0, 1] -> feature maps by name.

    At 32x32 pixels relu5_3 is 2x2x512, pool3 4x4x256 and pool2 8x8x128.

    Attributes:
      width: factor of the number of features, 1 for VGG-16's own.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, layers: Sequence[str] = ("relu5_3",)) -> dict[str, jax.Array]:
        """The named maps, after ReLU or pooling; what lies behind the last of them is not computed.

        Raises:
          InputError: for an unknown name, none, or images of other channels.
        """
        check_layers(layers)
        x = normalised(x)
        found: dict[str, jax.Array] = {}
        for name, place, features in _plan():
            if features:
                own = max(1, round(features * self.width))
                x = Conv(own, 3, padding=1, kernel_init=_KERNEL_INIT, name=str(place))(x)
                x = nn.relu(x)
            else:
                x = max_pool(x)
            if name in layers:
                found[name] = x
            if len(found) == len(set(layers)):
                break
        return found


class VGG16(nn.Module):
    """The convolutions with a head for small images: the mean of relu5_3, and one dense layer.

    In place of ImageNet's three dense layers, which 32x32 pixels have no use for. The signature is
    that of `nn.classifiers`; there is no BatchNorm and no dropout.
    """

    classes: int
    width: float = 1.0
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        maps = VGG16Features(self.width, name="features")(x)
        return Dense(self.classes, name="head")(maps["relu5_3"].mean(axis=(1, 2)))
