"""Networks that turn adversarial images into clean ones of the same size.

`DenoisingAutoencoder` is that of the feature-map denoising autoencoder (its section 4.2),
`DenoisingUNet` that of the high-level representation guided denoiser (HGD, arXiv 1712.02976).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.layers import Conv, ConvTranspose, batch_norm, max_pool

_KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def widened(features: int, width: float) -> int:
    """A number of features times a factor, rounded, at least one."""
    return max(1, round(features * width))


def check_autoencoder(image_shape: tuple[int, ...]) -> None:
    """Check that images (H, W, C) fit the denoising autoencoder.

    Raises:
      InputError: for other than 28x28x1.
    """
    if tuple(image_shape) != (28, 28, 1):
        raise InputError(
            f"images of {'x'.join(map(str, image_shape))} do not fit the denoising autoencoder, "
            "which is for 28x28x1; load them as gray images of that size "
            "(--gray --image-size 28)."
        )


def check_unet(image_shape: tuple[int, ...]) -> None:
    """Check that images (H, W, C) fit the U-Net.

    Raises:
      InputError: for a height or width that cannot be halved twice.
    """
    height, width, _ = image_shape
    if height % 4 or width % 4:
        raise InputError(
            f"images of {height}x{width} cannot be halved twice, as HGD's U-Net does; "
            "resize them to multiples of 4, for example 28 or 32."
        )


class DenoisingAutoencoder(nn.Module):
    """Images [B, 28, 28, 1] in [0, 1] -> denoised ones, through a code of 2x2x8 numbers.

    Sizes 28, 10, 5, 3, 2 and back 5, 15, 28. The paper ends in an "inverse tangent", read here as
    tanh, whose range is [-1, 1]: images are scaled to it on the way in, and back on the way out, so
    that what comes out lies in [0, 1].

    Attributes:
      width: factor of the number of features, 1 for the paper's 16 and 8.
    """

    width: float = 1.0

    def setup(self) -> None:
        wide, narrow = widened(16, self.width), widened(8, self.width)
        self.encoder_0 = Conv(wide, 3, stride=3, padding=1)
        self.encoder_1 = Conv(narrow, 3, stride=2, padding=1)
        self.decoder_0 = ConvTranspose(wide, 3, 2, 0)
        self.decoder_1 = ConvTranspose(narrow, 5, 3, 1)
        self.decoder_2 = ConvTranspose(1, 2, 2, 1)

    def encode(self, x: jax.Array) -> jax.Array:
        """Codes [B, 4 * narrow] of images, 2x2 of them after one another."""
        check_autoencoder(x.shape[1:])
        y = max_pool(nn.relu(self.encoder_0(2.0 * x - 1.0)))
        y = max_pool(nn.relu(self.encoder_1(y)), 2, stride=1)
        return y.reshape(y.shape[0], 4 * y.shape[-1])  # the batch may be symbolic

    def decode(self, z: jax.Array) -> jax.Array:
        """Images of codes."""
        y = nn.relu(self.decoder_0(z.reshape(z.shape[0], 2, 2, z.shape[1] // 4)))
        y = self.decoder_2(nn.relu(self.decoder_1(y)))
        return 0.5 * (jnp.tanh(y.astype(jnp.float32)) + 1.0)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.decode(self.encode(x))


class _Convolutions(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU; the first may halve the size."""

    features: int
    count: int
    stride: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for number in range(self.count):
            stride = 1 if number else self.stride
            x = Conv(self.features, 3, stride, 1, use_bias=False, kernel_init=_KAIMING)(x)
            x = nn.relu(batch_norm(train, self.axis_name)(x))
        return x


class DenoisingUNet(nn.Module):
    """Images [B, H, W, C] in [0, 1] -> x - dx, dx being what the U-Net takes for perturbation.

    HGD's network for 299 pixels halves the size four times; for the 28 or 32 here it is halved
    twice, with its two or three convolutions a scale and 64, 128 and 256 features. The way back
    doubles the size bilinearly and reads the maps of the way there beside it. dx is zero before
    training. As published the result is not clipped: it may leave [0, 1] a little, and no gradient
    of an attack is lost.

    Attributes:
      width: factor of the number of features.
      axis_name: mesh axis over which BatchNorm averages while training.
    """

    width: float = 1.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_unet(x.shape[1:])
        maps, y = [], x
        for scale, (features, count) in enumerate(((64, 2), (128, 3), (256, 3))):
            block = _Convolutions(
                widened(features, self.width), count, 2 if scale else 1, self.axis_name
            )
            y = block(y, train)
            maps.append(y)
        for beside, (features, count) in zip(maps[-2::-1], ((128, 3), (64, 2))):
            y = jax.image.resize(y, (*beside.shape[:3], y.shape[3]), "bilinear")
            y = jnp.concatenate([y, beside], axis=-1)
            y = _Convolutions(widened(features, self.width), count, 1, self.axis_name)(y, train)
        return x - Conv(x.shape[3], 1, kernel_init=nn.initializers.zeros_init(), name="noise")(y)
