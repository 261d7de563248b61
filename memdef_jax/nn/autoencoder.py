"""Encoder, decoder and memory-masking autoencoder of Memory Defense (Table 4, Figure 2)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError
from memdef_jax.nn import memory as mem
from memdef_jax.nn.layers import Conv, ConvTranspose, batch_norm


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Layer sizes for one image shape.

    Attributes:
      encoder: (features, kernel, stride, padding) of each convolution.
      latent: height, width, channels of the bottleneck.
      decoder: (features, output_padding) of each transposed convolution, kernel 3, stride 2,
        padding 1.
    """

    encoder: tuple[tuple[int, int, int, int], ...]
    latent: tuple[int, int, int]
    decoder: tuple[tuple[int, int], ...]


# Fashion-MNIST as in Table 4 (whose decoder column lists input channels) and the published code.
# The 1x1 stride-2 first layer is the paper's: it sees every other pixel only.
# CIFAR-10: Table 4's "64 x 2 x 1" read as filters x stride x padding with 3x3 kernels; read as
# kernel 2, stride 1 the latent vector would have 200,704 elements.
ARCHITECTURES: dict[tuple[int, int, int], Architecture] = {
    (28, 28, 1): Architecture(
        encoder=((16, 1, 2, 1), (32, 3, 2, 1), (64, 3, 2, 1)),
        latent=(4, 4, 64),
        decoder=((32, 0), (16, 1), (1, 1)),
    ),
    (32, 32, 3): Architecture(
        encoder=((64, 3, 2, 1), (128, 3, 2, 1), (128, 3, 2, 1), (256, 3, 2, 1)),
        latent=(2, 2, 256),
        decoder=((128, 1), (128, 1), (64, 1), (3, 1)),
    ),
}


def architecture(image_shape: tuple[int, int, int]) -> Architecture:
    """The layer sizes for an image shape (height, width, channels).

    Raises:
      InputError: for a shape other than 28x28x1 and 32x32x3.
    """
    try:
        return ARCHITECTURES[tuple(image_shape)]  # type: ignore[index]
    except KeyError:
        known = " or ".join("x".join(map(str, s)) for s in ARCHITECTURES)
        raise InputError(
            f"images of {'x'.join(map(str, image_shape))} have no autoencoder here; "
            f"resize the images to {known}."
        ) from None


class Encoder(nn.Module):
    """Images [B, H, W, C] -> latent vectors [B, 1024] in (0, 1) (Equation 7)."""

    arch: Architecture
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, (features, kernel, stride, padding) in enumerate(self.arch.encoder):
            x = Conv(features, kernel, stride, padding)(x)
            x = batch_norm(train, self.axis_name)(x)
            last = i == len(self.arch.encoder) - 1
            x = nn.sigmoid(x.astype(jnp.float32)) if last else nn.leaky_relu(x, 0.25)
        return x.reshape(x.shape[0], -1)


class Decoder(nn.Module):
    """Latent vectors [B, 1024] -> images [B, H, W, C], unbounded (Equation 12)."""

    arch: Architecture
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        x = z.reshape(z.shape[0], *self.arch.latent)
        for i, (features, output_padding) in enumerate(self.arch.decoder):
            x = ConvTranspose(features, output_padding=output_padding)(x)
            if i < len(self.arch.decoder) - 1:
                x = nn.leaky_relu(batch_norm(train, self.axis_name)(x), 0.25)
        return x.astype(jnp.float32)


class MemoryAutoencoder(nn.Module):
    """Encoder, class-slotted memory and decoder; with `rows=0` the plain autoencoder of Table 5.

    Attributes:
      image_shape: (28, 28, 1) or (32, 32, 3).
      classes: K.
      rows: memory rows N, divisible by K; 0 for no memory.
      threshold: of the hard shrinkage.
      order: "shrink_mask" (paper) or "mask_shrink" (published code).
      scale: inverse temperature of the addressing softmax.
      epsilon: under every norm and sum.
      axis_name: mesh axis over which BatchNorm averages while training.
    """

    image_shape: tuple[int, int, int]
    classes: int
    rows: int = 500
    threshold: float = 1e-12
    order: str = "shrink_mask"
    scale: float = 1.0
    epsilon: float = mem.EPSILON
    axis_name: str | None = None

    def setup(self) -> None:
        arch = architecture(self.image_shape)
        self.encoder = Encoder(arch, self.axis_name)
        self.decoder = Decoder(arch, self.axis_name)
        if self.rows:
            self.slots = mem.rows_per_class(self.rows, self.classes)
            size = arch.latent[0] * arch.latent[1] * arch.latent[2]
            # Kaiming-uniform over the row length: U(+-sqrt(6 / 1024)).
            init = nn.initializers.variance_scaling(2.0, "fan_in", "uniform", in_axis=1, out_axis=0)
            self.memory = self.param("memory", init, (self.rows, size), jnp.float32)

    def encode(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Latent vectors [B, D] (Equation 7)."""
        return self.encoder(x, train)

    def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] (Equation 12)."""
        return self.decoder(z, train)

    def address(self, z: jax.Array) -> jax.Array:
        """Softmax weights over all rows [B, N] (Equations 8 and 9)."""
        return mem.address(mem.cosine_logits(z, self.memory, self.epsilon), self.scale)

    def mask(
        self,
        weights: jax.Array,
        labels: jax.Array,
        complement: bool = False,
        identity_gradient: bool = False,
    ) -> jax.Array:
        """Shrunk, masked and renormalised weights [B, N] (Equation 10).

        `labels` are int [B] or class probabilities [B, K]; with `complement` the rows of all the
        other classes are kept instead.
        """
        mask = mem.class_mask(labels, self.classes, self.slots)
        return mem.masked_address(
            weights,
            1.0 - mask if complement else mask,
            self.threshold,
            order=self.order,
            epsilon=self.epsilon,
            identity_gradient=identity_gradient,
        )

    def recall(self, weights: jax.Array) -> jax.Array:
        """Latent vectors read from the memory [B, D] (Equation 11)."""
        return mem.read(weights, self.memory)

    def reconstruct(
        self, x: jax.Array, labels: jax.Array, identity_gradient: bool = False
    ) -> jax.Array:
        """Images rebuilt from the slots that `labels` choose, with running statistics."""
        return self.decode(self.recalled(x, labels, identity_gradient))

    def recalled(
        self, x: jax.Array, labels: jax.Array, identity_gradient: bool = False
    ) -> jax.Array:
        """Latent vectors [B, D] as those slots give them back; without a memory the encoder's."""
        z = self.encode(x)
        if self.rows and self._reads_own_slots(labels):
            z = mem.read_own_slots(z, self.memory, labels, self.classes, self.scale, self.epsilon)
        elif self.rows:
            weights = self.mask(self.address(z), labels, identity_gradient=identity_gradient)
            z = self.recall(weights)
        return z

    def _reads_own_slots(self, labels: jax.Array) -> bool:
        """Whether reading the images' own slots alone gives the same, and is faster."""
        return (
            jax.default_backend() == "cpu"
            and jax.device_count() == 1
            and jnp.issubdtype(labels.dtype, jnp.integer)
            # The size of an exported program's batch is no number.
            and isinstance(labels.shape[0], int)
            and not mem.FEW < labels.shape[0] < mem.MANY
            and mem.shrinks_nothing(self.threshold, self.scale, self.rows, self.epsilon)
        )

    def __call__(self, x: jax.Array, labels: jax.Array, train: bool = False) -> jax.Array:
        """Reconstruction [B, H, W, C]; touches every parameter, so it serves to initialise."""
        z = self.encode(x, train)
        if self.rows:
            z = self.recall(self.mask(self.address(z), labels))
        return self.decode(z, train)
