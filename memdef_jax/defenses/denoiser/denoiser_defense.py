"""The pipeline of the denoisers: one turns the image clean, the classifier as it was reads it.

x -> denoiser -> x_hat -> classifier -> logits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks.attack import check_number
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.nn import Bound, classifier
from memdef_jax.nn.denoisers import (
    DenoisingAutoencoder,
    DenoisingUNet,
    check_autoencoder,
    check_unet,
)
from memdef_jax.nn.losses import reconstruction_error

KINDS = ("feature_denoiser", "hgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserSpec:
    """What the networks are; with variables it is a defense.

    Attributes:
      image_shape: (H, W, C); of a feature_denoiser (28, 28, 1), of an hgd multiples of 4.
      classes: K.
      classifier: architecture of the classifier, one of `nn.CLASSIFIERS`.
      width: factor of the denoiser's number of features.
      kind: one of `KINDS`: "feature_denoiser" has the autoencoder, "hgd" the U-Net.
    """

    image_shape: tuple[int, int, int]
    classes: int
    classifier: str = "lenet"
    width: float = 1.0
    kind: str = "feature_denoiser"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}.")
        (check_unet if self.kind == "hgd" else check_autoencoder)(self.image_shape)
        if self.classes < 2:
            raise InputError(f"{self.classes} classes cannot be told apart; give 2 or more.")
        check_number("width", self.width, above_zero=True)
        self.target()

    def denoiser(self, axis_name: str | None = None) -> Any:
        """The network that cleans images."""
        if self.kind == "hgd":
            return DenoisingUNet(self.width, axis_name)
        return DenoisingAutoencoder(self.width)

    def target(self, axis_name: str | None = None) -> Any:
        """The classifier."""
        return classifier(self.classifier, self.classes, axis_name)

    def networks(self) -> dict[str, Any]:
        """The networks, by their places in the variables."""
        return {"classifier": self.target(), "denoiser": self.denoiser()}

    def init_denoiser(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of the denoiser."""
        return self._init(self.denoiser(), key)

    def init_classifier(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of the classifier."""
        return self._init(self.target(), key)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of both networks."""
        return {"classifier": self.init_classifier(key), "denoiser": self.init_denoiser(key)}

    def _init(self, module: Any, key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        return {"batch_stats": {}, **jax.jit(module.init)(key, x)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DenoiserDefense:
    """The trained pipeline, a pytree that predicts.

    Attributes:
      spec: what the networks are (static).
      variables: {"classifier": of the classifier, trained on plain images and left so, "denoiser":
        of the denoiser}, each {"params": ..., "batch_stats": ...}.
    """

    spec: DenoiserSpec = dataclasses.field(metadata={"static": True})
    variables: Any

    @property
    def kind(self) -> str:
        """Names the defense in records."""
        return self.spec.kind

    @property
    def undefended(self) -> Bound:
        """The classifier, which the pipeline deploys behind the denoiser."""
        return Bound(self.spec.target(), self.variables["classifier"])

    @property
    def has_codes(self) -> bool:
        """Whether the denoiser is an autoencoder; HGD's U-Net has no code that all goes through."""
        return self.kind == "feature_denoiser"

    @property
    def reader(self) -> Bound:
        """The classifier, which reads what is decoded."""
        return self.undefended

    def embed(self, x: jax.Array) -> jax.Array:
        """Codes [B, D] of images [B, H, W, C], of a denoiser that has them."""
        return self._denoiser("encode", x)

    def decode(self, z: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of codes [B, D], of a denoiser that has them."""
        return self._denoiser("decode", z)

    def _denoiser(self, method: str, x: jax.Array) -> jax.Array:
        return self.spec.denoiser().apply(self.variables["denoiser"], x, method=method)

    def denoise(self, x: jax.Array) -> jax.Array:
        """What the classifier is shown of images [B, H, W, C]; an hgd's may leave [0, 1]."""
        return self._denoiser("__call__", x)

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The denoised images as such, [B, H, W, C] in [0, 1]."""
        return jnp.clip(self.denoise(x), 0.0, 1.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] of the deployed pipeline."""
        return self.undefended(self.denoise(x))

    def select(self, x: jax.Array) -> jax.Array:
        """The class that the classifier names without the denoiser, int32 [B]."""
        return jnp.argmax(self.undefended(x), axis=-1).astype(jnp.int32)

    def score(self, x: jax.Array) -> jax.Array:
        """Mean squared difference of each image and its denoised one [B], for detection."""
        return reconstruction_error(x, self.denoise(x))

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """What an attacker can differentiate: "selector", the classifier alone, which is all that
        the papers attack; and "deployed", denoiser and classifier, which has a gradient throughout.
        """
        return {"selector": self.undefended, "deployed": self}
