"""Flax Linen modules and losses: pure functions of variables and arrays."""

from memdef_jax.nn.autoencoder import Decoder, Encoder, MemoryAutoencoder
from memdef_jax.nn.bound import Bound
from memdef_jax.nn.classifiers import (
    CLASSIFIERS,
    ClassifierB,
    ResNet18,
    ResNet50,
    SmallCNN,
    classifier,
)

__all__ = [
    "CLASSIFIERS",
    "Bound",
    "ClassifierB",
    "Decoder",
    "Encoder",
    "MemoryAutoencoder",
    "ResNet18",
    "ResNet50",
    "SmallCNN",
    "classifier",
]
