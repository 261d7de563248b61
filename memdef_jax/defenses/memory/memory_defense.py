"""Memory Defense (arXiv 2202.02595): the deployed pipeline and its attack surfaces.

x -> classifier-A -> class c            (the selector)
x -> encoder -> memory rows of c only -> decoder -> x_hat -> classifier-B -> logits
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax.attacks.logits import Logits
from memdef_jax.attacks.objectives import margin
from memdef_jax.checks import InputError
from memdef_jax.nn import Bound, ClassifierB, MemoryAutoencoder, classifier
from memdef_jax.nn.autoencoder import architecture
from memdef_jax.nn.losses import reconstruction_error
from memdef_jax.nn.memory import EPSILON, rows_per_class


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryDefenseSpec:
    """What the networks are; with variables it is a defense.

    Attributes:
      image_shape: (28, 28, 1) or (32, 32, 3).
      classes: K.
      selector: architecture of classifier-A, one of `nn.CLASSIFIERS`.
      head: classifier-A's last layer, one of `nn.heads.HEADS`.
      memory_rows: N, divisible by K; 0 for the plain autoencoder.
      shrink_threshold: of the hard shrinkage, in [0, 1).
      shrink_order: "shrink_mask" (paper) or "mask_shrink" (published code).
      softmax_scale: inverse temperature of the addressing, 1 in the paper.
      epsilon: under every norm and sum of the addressing.
    """

    image_shape: tuple[int, int, int]
    classes: int
    selector: str = "small_cnn"
    head: str = "linear"
    memory_rows: int = 500
    shrink_threshold: float = 1e-12
    shrink_order: str = "shrink_mask"
    softmax_scale: float = 1.0
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        architecture(self.image_shape)
        if self.classes < 2:
            raise InputError(f"{self.classes} classes cannot be told apart; give 2 or more.")
        self.classifier_a()
        if self.memory_rows:
            rows_per_class(self.memory_rows, self.classes)
        if not 0.0 <= self.shrink_threshold < 1.0:
            raise InputError(
                f"shrink threshold {self.shrink_threshold:g} is outside [0, 1); "
                "weights are softmax probabilities, so use a value near 1/rows."
            )
        if self.shrink_order not in ("shrink_mask", "mask_shrink"):
            raise InputError(
                f"shrink order {self.shrink_order!r} is unknown; "
                "use 'shrink_mask' or 'mask_shrink'."
            )
        if not self.softmax_scale > 0.0:
            raise InputError(
                f"softmax scale {self.softmax_scale:g} must be above 0; use 1 or more."
            )

    def classifier_a(self, axis_name: str | None = None) -> nn.Module:
        """Classifier-A."""
        return classifier(self.selector, self.classes, axis_name, self.head)

    def autoencoder(self, axis_name: str | None = None) -> MemoryAutoencoder:
        """The memory-masking autoencoder."""
        return MemoryAutoencoder(
            image_shape=self.image_shape,
            classes=self.classes,
            rows=self.memory_rows,
            threshold=self.shrink_threshold,
            order=self.shrink_order,
            scale=self.softmax_scale,
            epsilon=self.epsilon,
            axis_name=axis_name,
        )

    def networks(self) -> dict[str, nn.Module]:
        """The networks, by their places in the variables."""
        return {
            "selector": self.classifier_a(),
            "stack.autoencoder": self.autoencoder(),
            "stack.classifier_b": ClassifierB(self.classes),
        }

    @functools.partial(jax.jit, static_argnames="self")  # op by op it takes twice as long
    def init_stack(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of autoencoder, memory and classifier-B."""
        keys = jax.random.split(key)
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        auto = self.autoencoder().init(keys[0], x, jnp.zeros((1,), jnp.int32))
        b = ClassifierB(self.classes).init(keys[1], x)
        return {
            "params": {"autoencoder": auto["params"], "classifier_b": b["params"]},
            "batch_stats": {"autoencoder": auto["batch_stats"]},
        }

    @functools.partial(jax.jit, static_argnames="self")
    def init_selector(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of classifier-A."""
        x = jnp.zeros((1, *self.image_shape), jnp.float32)
        variables = self.classifier_a().init(key, x)
        return {"batch_stats": {}, **variables}

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initial variables of all networks."""
        return {"selector": self.init_selector(key), "stack": self.init_stack(key)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MemoryDefense:
    """The trained pipeline, a pytree that predicts: `defense(x)` are classifier-B's logits.

    Attributes:
      spec: what the networks are (static).
      variables: {"selector": ..., "stack": ...}, each {"params": ..., "batch_stats": ...}.
    """

    spec: MemoryDefenseSpec = dataclasses.field(metadata={"static": True})
    variables: Any
    kind: ClassVar[str] = "memory_defense"

    @property
    def selector(self) -> Bound:
        """Classifier-A as a logits function."""
        return Bound(self.spec.classifier_a(), self.variables["selector"])

    def select(self, x: jax.Array) -> jax.Array:
        """Classifier-A's choice of slot, int32 [B]."""
        return _choice(self.selector, x)

    def _autoencoder(self, method: str, *args: Any, **kwargs: Any) -> Any:
        stack = self.variables["stack"]
        variables = {kind: stack[kind]["autoencoder"] for kind in ("params", "batch_stats")}
        return self.spec.autoencoder().apply(variables, *args, method=method, **kwargs)

    def reconstruct(
        self, x: jax.Array, labels: jax.Array | None = None, identity_gradient: bool = False
    ) -> jax.Array:
        """Images rebuilt from the slots of `labels`, or of classifier-A's choice.

        Args:
          x: images [B, H, W, C].
          labels: int [B], or class probabilities [B, K] for a soft mask.
          identity_gradient: let gradients pass the shrinkage, for attacks.

        Returns:
          [B, H, W, C], unbounded: the decoder is linear.
        """
        labels = self.select(x) if labels is None else labels
        return self._autoencoder("reconstruct", x, labels, identity_gradient=identity_gradient)

    @property
    def reader(self) -> Logits:
        """Classifier-B, which reads what is decoded."""
        return jax.tree_util.Partial(type(self).classify, self)

    def embed(self, x: jax.Array) -> jax.Array:
        """What the memory gives back for images [B, H, W, C] and the slots of classifier-A, [B, D].

        Without a memory, what the encoder gives.
        """
        return self._autoencoder("recalled", x, self.select(x))

    def decode(self, z: jax.Array) -> jax.Array:
        """Images [B, H, W, C], unbounded, of latent vectors [B, D]."""
        return self._autoencoder("decode", z)

    def decode_rows(self, rows: jax.Array) -> jax.Array:
        """What single memory rows look like, int [R] -> images [R, H, W, C]."""
        return self.decode(self.variables["stack"]["params"]["autoencoder"]["memory"][rows])

    def classify(self, reconstruction: jax.Array) -> jax.Array:
        """Classifier-B's logits [B, K] of reconstructions."""
        params = self.variables["stack"]["params"]["classifier_b"]
        return Bound(ClassifierB(self.spec.classes), {"params": params})(reconstruction)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K] of the deployed pipeline, hard choice of slot included."""
        return self.classify(self.reconstruct(x))

    def score(self, x: jax.Array) -> jax.Array:
        """Mean squared reconstruction error of each image [B], for detection."""
        return reconstruction_error(x, self.reconstruct(x))

    def surfaces(self, x: jax.Array, y: jax.Array) -> Mapping[str, Logits]:
        """What an attacker can differentiate, by name; each a logits function.

        Args:
          x: the clean images [B, H, W, C], whose slots the frozen masks are.
          y: their labels int [B].

        Returns:
          "selector": classifier-A alone, the defense unknown;
          "frozen_mask", "frozen_mask_true": autoencoder and classifier-B with the slot fixed to
          classifier-A's choice on the clean image, or to the label;
          "soft_mask": the whole pipeline with classifier-A's probabilities as the mask;
          "requeried": the deployed pipeline, its mask a constant that follows the image;
          "straight_through": the deployed pipeline, its mask with the probabilities' gradient;
          "joint": the same, and beside the gradient of classifier-B's logits that of
          classifier-A's own margin, which stays when its probabilities saturate.
        """
        return {
            "selector": self.selector,
            "frozen_mask": FrozenMask(self, self.select(x)),
            "frozen_mask_true": FrozenMask(self, y),
            "soft_mask": SelectedMask(self, "soft"),
            "requeried": SelectedMask(self, "constant"),
            "straight_through": SelectedMask(self, "straight_through"),
            "joint": JointMask(self, y),
        }


@jax.jit
def _choice(selector: Bound, x: jax.Array) -> jax.Array:
    return jnp.argmax(selector(x), axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FrozenMask:
    """Autoencoder and classifier-B with one fixed slot an image, labels int [B]."""

    defense: MemoryDefense
    labels: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.defense.classify(self.defense.reconstruct(x, self.labels, True))

    def take(self, indices: jax.Array) -> FrozenMask:
        """The same for a re-packed batch."""
        return FrozenMask(self.defense, self.labels[indices])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SelectedMask:
    """The whole pipeline with its mask from classifier-A, in one of three ways to differentiate it.

    Attributes:
      defense: the pipeline.
      how: "soft", "constant" or "straight_through", see `MemoryDefense.surfaces`. With all but
        "soft" the values are those of the deployed pipeline.
    """

    defense: MemoryDefense
    how: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return _through_choice(self.defense, self.defense.selector(x), x, self.how)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class JointMask:
    """The deployed pipeline for attacks on classifier-A and classifier-B at once.

    The label's logit carries the gradient of classifier-A's margin as well, so whatever lowers it
    against another also misleads the choice of slot. Labels int [B].
    """

    defense: MemoryDefense
    labels: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        chosen = self.defense.selector(x)
        logits = _through_choice(self.defense, chosen, x, "straight_through")
        label = jax.nn.one_hot(self.labels, logits.shape[-1])
        return logits - label * _gradient_only(margin(chosen, self.labels))[:, None]

    def take(self, indices: jax.Array) -> JointMask:
        """The same for a re-packed batch."""
        return JointMask(self.defense, self.labels[indices])


def _through_choice(defense: MemoryDefense, chosen: jax.Array, x: jax.Array, how: str) -> jax.Array:
    """Classifier-B's logits with the mask that classifier-A's logits `chosen` say."""
    mask = jax.nn.softmax(chosen, axis=-1)
    if how != "soft":
        hard = jax.nn.one_hot(jnp.argmax(chosen, axis=-1), chosen.shape[-1])
        mask = hard if how == "constant" else hard + _gradient_only(mask)
    return defense.classify(defense.reconstruct(x, mask, True))


def _gradient_only(value: jax.Array) -> jax.Array:
    """Exactly zero, with the gradient of the value."""
    return value - jax.lax.stop_gradient(value)
