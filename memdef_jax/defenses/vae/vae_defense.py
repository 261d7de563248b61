"""The pipeline of Defense-VAE and MAD-VAE: a VAE purifies the image, a classifier reads the result.

x -> encoder -> mean of z -> decoder -> x_hat -> classifier -> logits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.nn import VAE, Bound, classifier
from memdef_jax.nn.losses import reconstruction_error
from memdef_jax.nn.vae import architecture

KINDS = ("defense_vae", "mad_vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEDefenseSpec:
    """What the networks are; with variables it is a defense.

    Attributes:
      image_shape: (28, 28, C) or (32, 32, C).
      classes: K.
      classifier: architecture that reads the purified image, one of `nn.CLASSIFIERS`.
      latent_size: of z.
      statistics: BatchNorm's when deployed: "running", or "batch", those of the images judged
        together, which is how Defense-VAE was published: then an answer depends on the others.
      kind: one of `KINDS`.
    """

    image_shape: tuple[int, int, int]
    classes: int
    classifier: str = "a"
    latent_size: int = 128
    statistics: str = "running"
    kind: str = "defense_vae"

    def __post_init__(self) -> None:
        architecture(self.image_shape)
        if self.latent_size < 1:
            raise InputError(f"latent size {self.latent_size} is below 1; use 1 or more.")
        if self.classes < 2:
            raise InputError(f"{self.classes} classes cannot be told apart; give 2 or more.")
        self.reader()
        if self.statistics not in ("running", "batch"):
            raise InputError(
                f"statistics {self.statistics!r} are unknown; use 'running' or 'batch'."
            )
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}.")

    def vae(self, axis_name: str | None = None) -> VAE:
        """The purifier."""
        return VAE(self.image_shape, self.latent_size, axis_name)

    def reader(self, axis_name: str | None = None) -> Any:
        """The classifier."""
        return classifier(self.classifier, self.classes, axis_name)

    def networks(self) -> dict[str, Any]:
        """The networks, by their places in the variables."""
        return {"undefended": self.reader(), "vae": self.vae(), "classifier": self.reader()}

    def init_vae(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of the purifier."""
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        return dict(jax.jit(self.vae().init)(key, x))

    def init_classifier(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of the classifier."""
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        return {"batch_stats": {}, **jax.jit(self.reader().init)(key, x)}

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of all networks."""
        undefended = self.init_classifier(key)
        return {"undefended": undefended, "vae": self.init_vae(key), "classifier": undefended}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class VAEDefense:
    """The trained pipeline, a pytree that predicts.

    Attributes:
      spec: what the networks are (static).
      variables: {"undefended": of the classifier trained on plain images, "vae": of the purifier,
        "classifier": of the deployed one}, each {"params": ..., "batch_stats": ...}.
    """

    spec: VAEDefenseSpec = dataclasses.field(metadata={"static": True})
    variables: Any

    @property
    def kind(self) -> str:
        """Names the defense in records."""
        return self.spec.kind

    @property
    def undefended(self) -> Bound:
        """The classifier without its defense, as trained on plain images."""
        return Bound(self.spec.reader(), self.variables["undefended"])

    @property
    def reader(self) -> Bound:
        """The deployed classifier, which reads purified images."""
        return Bound(self.spec.reader(), self.variables["classifier"])

    def _vae(self, method: str, x: jax.Array) -> Any:
        module, variables = self.spec.vae(), self.variables["vae"]
        if self.spec.statistics == "running":
            return module.apply(variables, x, method=method)
        found, _ = module.apply(variables, x, method=method, train=True, mutable=["batch_stats"])
        return found

    def embed(self, x: jax.Array) -> jax.Array:
        """Where images [B, H, W, C] lie in latent space: the mean of z, [B, L]."""
        return self._vae("encode", x)[0]

    def decode(self, z: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [0, 1] of latent vectors [B, L]."""
        return self._vae("decode", z)

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """Purified images [B, H, W, C], from the mean of z."""
        return self.decode(self.embed(x))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] of the deployed pipeline."""
        return self.reader(self.reconstruct(x))

    def select(self, x: jax.Array) -> jax.Array:
        """The class that the undefended classifier names, int32 [B]."""
        return jnp.argmax(self.undefended(x), axis=-1).astype(jnp.int32)

    def score(self, x: jax.Array) -> jax.Array:
        """Mean squared difference of each image and its purified one [B], for detection."""
        return reconstruction_error(x, self.reconstruct(x))

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """What an attacker can differentiate: "selector", the undefended classifier, which is all
        that the papers attack; and "deployed", the whole pipeline, which is smooth.
        """
        return {"selector": self.undefended, "deployed": self}


def with_batch_statistics(defenses: Mapping[str, Any]) -> dict[str, Any]:
    """The same defenses, and each as Defense-VAE was published: see `VAEDefenseSpec.statistics`.

    Args:
      defenses: by name.

    Returns:
      Beside each one of the same name with "_batch_statistics" behind it.

    Raises:
      InputError: when one has no such statistics.
    """
    found = dict(defenses)
    for name, defense in defenses.items():
        if not isinstance(defense, VAEDefense):
            raise InputError(
                f"defense {name!r} is a {defense.kind}, which has no batch statistics; "
                "leave them out, or give a run of a VAE defense."
            )
        spec = dataclasses.replace(defense.spec, statistics="batch")
        found[f"{name}_batch_statistics"] = VAEDefense(spec, defense.variables)
    return found
