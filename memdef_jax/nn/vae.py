"""The variational autoencoder of Defense-VAE (Table 6) and MAD-VAE (Table 4).

Defense-VAE is arXiv 1812.06570, MAD-VAE arXiv 2011.01755; both use this network.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn.layers import TORCH_UNIFORM, Conv, ConvTranspose, Dense, batch_norm

_KERNEL_INIT = nn.initializers.normal(0.02)


def _scale_init(key: jax.Array, shape: tuple[int, ...], dtype: type = jnp.float32) -> jax.Array:
    """N(1, 0.02), the scales of BatchNorm in the published code."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Layer sizes for one height and width; each layer is (features, kernel, stride, padding).

    Attributes:
      encoder: its convolutions.
      features: height, width, channels of what the last convolution gives.
      decoder: its transposed convolutions but the last, which has the image's channels.
      last: (kernel, stride, padding) of that one.
    """

    encoder: tuple[tuple[int, int, int, int], ...]
    features: tuple[int, int, int]
    decoder: tuple[tuple[int, int, int, int], ...]
    last: tuple[int, int, int] = (5, 1, 2)


# 28x28: Table 6, whose last row misprints the last layer: it has the image's channels and no
# BatchNorm, and a sigmoid follows. 32x32: the paper only says that it is one or two layers deeper.
ARCHITECTURES: dict[tuple[int, int], Architecture] = {
    (28, 28): Architecture(
        encoder=((64, 5, 1, 2), (64, 4, 2, 3), (128, 4, 2, 1), (256, 4, 2, 1)),
        features=(4, 4, 256),
        decoder=((128, 4, 2, 1), (64, 4, 2, 1), (64, 4, 2, 3)),
    ),
    (32, 32): Architecture(
        encoder=((64, 5, 1, 2), (64, 4, 2, 1), (128, 4, 2, 1), (256, 4, 2, 1), (512, 4, 2, 1)),
        features=(2, 2, 512),
        decoder=((256, 4, 2, 1), (128, 4, 2, 1), (64, 4, 2, 1), (64, 4, 2, 1)),
    ),
}


def architecture(image_shape: tuple[int, int, int]) -> Architecture:
    """The layer sizes for an image shape (height, width, channels), whatever the channels.

    Raises:
      InputError: for a height and width other than 28x28 and 32x32.
    """
    try:
        return ARCHITECTURES[tuple(image_shape[:2])]  # type: ignore[index]
    except KeyError:
        known = " or ".join("x".join(map(str, s)) for s in ARCHITECTURES)
        raise InputError(
            f"images of {'x'.join(map(str, image_shape))} have no variational autoencoder here; "
            f"resize the images to {known}."
        ) from None


def sample(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """Latent vectors [B, L] drawn from N(mean, exp(log_variance)), differentiable in both.

    Args:
      mean: [B, L].
      log_variance: [B, L], of a diagonal covariance.
      keys: typed keys [B], so that what is drawn for an image depends neither on its batch nor on
        the number of devices.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
    return mean + jnp.exp(0.5 * log_variance) * noise


class _Encoder(nn.Module):
    """Images [B, H, W, C] -> means and log-variances, each [B, L]."""

    arch: Architecture
    latent_size: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        for features, kernel, stride, padding in self.arch.encoder:
            x = Conv(features, kernel, stride, padding, kernel_init=_KERNEL_INIT)(x)
            x = nn.relu(batch_norm(train, self.axis_name, _scale_init)(x))
        x = x.reshape(x.shape[0], -1)
        mean = Dense(self.latent_size, kernel_init=TORCH_UNIFORM, name="mean")(x)
        return mean, Dense(self.latent_size, kernel_init=TORCH_UNIFORM, name="log_variance")(x)


class _Decoder(nn.Module):
    """Latent vectors [B, L] -> logits of the pixels [B, H, W, C]."""

    arch: Architecture
    channels: int
    axis_name: str | None

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        height, width, features = self.arch.features
        x = nn.relu(Dense(height * width * features, kernel_init=TORCH_UNIFORM)(z))
        x = x.reshape(-1, height, width, features)
        conv = functools.partial(ConvTranspose, kernel_init=_KERNEL_INIT)
        for features, kernel, stride, padding in self.arch.decoder:
            x = conv(features, kernel, stride, padding)(x)
            x = nn.relu(batch_norm(train, self.axis_name, _scale_init)(x))
        return conv(self.channels, *self.arch.last)(x).astype(jnp.float32)


class VAE(nn.Module):
    """Encoder to a diagonal Gaussian over latent vectors, and decoder back to images.

    With `train=True` BatchNorm uses the statistics of the batch (and updates the running ones, if
    "batch_stats" is mutable). The published evaluation does so, too; deployed it would let the
    images of a batch change one another's answers.

    Attributes:
      image_shape: (height, width, channels), of a height and width in `ARCHITECTURES`.
      latent_size: L.
      axis_name: mesh axis over which BatchNorm averages while training.
    """

    image_shape: tuple[int, int, int]
    latent_size: int = 128
    axis_name: str | None = None

    def setup(self) -> None:
        arch = architecture(self.image_shape)
        if self.latent_size < 1:
            raise InputError(f"latent size {self.latent_size} is below 1; use 1 or more.")
        self.encoder = _Encoder(arch, self.latent_size, self.axis_name)
        self.decoder = _Decoder(arch, self.image_shape[2], self.axis_name)

    def encode(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Means and log-variances of the latent vectors, each [B, L], of images [B, H, W, C].

        The published code of MAD-VAE calls the second output sigma and leaves open what it is.

        Raises:
          InputError: for images of another shape than `image_shape`.
        """
        if x.shape[1:] != tuple(self.image_shape):
            given, own = ("x".join(map(str, s)) for s in (x.shape[1:], self.image_shape))
            raise InputError(f"images of {given} do not fit a VAE for {own}; resize them to it.")
        return self.encoder(x, train)

    def decode_logits(self, z: jax.Array, train: bool = False) -> jax.Array:
        """What the sigmoid turns into pixels, [B, H, W, C], of latent vectors [B, L]."""
        return self.decoder(z, train)

    def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] in [0, 1] of latent vectors [B, L]."""
        return nn.sigmoid(self.decode_logits(z, train))

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """Deployed inference: images decoded from the means, with running statistics."""
        return self.decode(self.encode(x)[0])

    def __call__(
        self, x: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Reconstruction [B, H, W, C]; touches every parameter, so it serves to initialise.

        Args:
          x: images [B, H, W, C] in [0, 1].
          train: whether BatchNorm uses the statistics of the batch.
          key: one typed key to draw the latent vectors with (see `sample` for one an image);
            without it the means are decoded.
        """
        mean, log_variance = self.encode(x, train)
        if key is None:
            return self.decode(mean, train)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
        return self.decode(sample(mean, log_variance, keys), train)
