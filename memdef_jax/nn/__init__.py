"""Flax Linen modules and losses: pure functions of variables and arrays."""

from memdef_jax.nn.autoencoder import Decoder, Encoder, MemoryAutoencoder
from memdef_jax.nn.bound import Bound
from memdef_jax.nn.classifiers import (
    CLASSIFIERS,
    ClassifierB,
    DefenseGANModelA,
    DefenseGANModelB,
    DefenseGANModelC,
    DefenseGANModelD,
    DefenseGANModelE,
    MagNetClassifier,
    ResNet18,
    ResNet50,
    SmallCNN,
    classifier,
)
from memdef_jax.nn.vae import VAE

__all__ = [
    "CLASSIFIERS",
    "VAE",
    "Bound",
    "ClassifierB",
    "Decoder",
    "DefenseGANModelA",
    "DefenseGANModelB",
    "DefenseGANModelC",
    "DefenseGANModelD",
    "DefenseGANModelE",
    "Encoder",
    "MagNetClassifier",
    "MemoryAutoencoder",
    "ResNet18",
    "ResNet50",
    "SmallCNN",
    "classifier",
]
