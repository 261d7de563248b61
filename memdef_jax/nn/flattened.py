"""Which layers of the networks here read, or make, flattened feature maps.

Their order is rows, columns, channels; torch's is channels, rows, columns (see `nn.torch_layout`).
"""

from __future__ import annotations

import flax.linen as nn

from memdef_jax.checks import InputError
from memdef_jax.nn import autoencoder, classifiers, vae
from memdef_jax.nn.denoisers import DenoisingAutoencoder, DenoisingUNet
from memdef_jax.nn.residual import ResNet, WideResNet
from memdef_jax.nn.torch_layout import Flattened

# Channels of what the first dense layer reads; None for the image itself.
_FIRST_DENSE: dict[type[nn.Module], int | None] = {
    classifiers.ClassifierB: 16,
    classifiers.SmallCNN: 32,
    classifiers.DefenseGANConvolutional: 64,
    classifiers.DefenseGANDense: None,
    classifiers.MagNetClassifier: 64,
    classifiers.LeNet: 50,
}
_NEVER = (ResNet, WideResNet, DenoisingAutoencoder, DenoisingUNet)
_IN, _OUT = 1, 0  # axes of a dense layer's weight in torch


def flattened(module: nn.Module, image_shape: tuple[int, int, int]) -> Flattened:
    """By torch's name of an array, its axis of flattened features there, and their channels.

    Args:
      module: a network of `nn`, for the variables of which the names are.
      image_shape: (H, W, C) of what it is given.

    Raises:
      InputError: for a network that this module knows nothing of.
    """
    if isinstance(module, _NEVER):
        return {}
    if isinstance(module, autoencoder.MemoryAutoencoder):
        channels = autoencoder.architecture(image_shape).latent[2]
        return {"memory": (_IN, channels)} if module.rows else {}
    if isinstance(module, vae.VAE):
        channels = vae.architecture(image_shape).features[2]
        read = ("encoder.mean.weight", "encoder.log_variance.weight")
        made = ("decoder.Dense_0.weight", "decoder.Dense_0.bias")
        return dict.fromkeys(read, (_IN, channels)) | dict.fromkeys(made, (_OUT, channels))
    if isinstance(module, classifiers.DefenseGANModelB):  # no layer between the maps and the head
        memory = module.head == "memory"
        return {"MemoryHead_0.memory" if memory else "Dense_0.weight": (_IN, 128)}
    if type(module) in _FIRST_DENSE:
        return {"Dense_0.weight": (_IN, _FIRST_DENSE[type(module)] or image_shape[2])}
    raise InputError(
        f"{type(module).__name__} is not known to nn.flattened, so its weights cannot be brought "
        "into torch's layout; say there which of its layers read flattened features."
    )
