"""Train a feature-map denoising autoencoder and its variants, or go on with them.

    python -m train.feature_denoiser --run runs/denoiser --dataset mnist

Presets are quick (minutes on two CPU cores) and paper (its settings, for a GPU). The loss network
is a VGG-16 trained on the dataset, or ImageNet's from a file of torchvision's weights:
--config.loss-network.weights vgg16.safetensors --config.loss-network.width 1. The autoencoder is
for 28x28 gray images: for others, --gray --image-size 28. Any setting of the preset can be
overridden (see --help), for example --config.variants perceptual pixel wide.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(
        lambda: command.main("feature_denoiser", defenses.FeatureDenoiserConfig), together=True
    )
