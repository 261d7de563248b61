"""Training of Memory Defense's stack: encoder, memory, decoder and classifier-B (Equation 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.data import Augmentation, gaussian_noise, to_float
from memdef_jax.defenses.memory.memory_defense import MemoryDefenseSpec
from memdef_jax.nn import ClassifierB, losses, memory
from memdef_jax.training import AXIS, LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The memory-masking autoencoder, classifier-B and their joint objective.

    The paper leaves open what `alpha` is, whether the noise 0.0001 is a standard deviation, how
    much weight classifier-B's cross-entropy has (Equation 13 has none), and epochs and batch size.

    Attributes:
      memory_rows: N; 0 for the plain autoencoder of Table 5.
      shrink_threshold: of the hard shrinkage.
      shrink_order: "shrink_mask" (paper) or "mask_shrink" (published code).
      softmax_scale: inverse temperature of the addressing, 1 in the paper.
      mse_reduction: "mean" over pixels, or "sum".
      alpha: weight of the entropies.
      entropy_reduction: "sum" over the batch as Equations 13a and 13b print it, or "mean".
      beta: weight of the bounded non-target term; 0 leaves its branch out.
      cross_entropy_weight: of classifier-B's loss.
      noise: Gaussian noise on the input, the target stays clean.
      noise_is_variance: read `noise` as a variance, not a standard deviation.
      random_mask_share: share of training images masked to a random class instead of their own;
        0 in the paper, where classifier-B can read the label off the slot.
      dropout_rate: of classifier-B.
      augmentation: of the images, before the noise.
      epochs: over the training split.
      batch_size: global.
      learning_rate: of Adam.
      cosine: decay the rate to zero; constant otherwise, as in the paper.
      weight_decay: L2 regularisation added to the gradient (the paper has it for CIFAR-10).
    """

    memory_rows: int = 500
    shrink_threshold: float = 1e-12
    shrink_order: Literal["shrink_mask", "mask_shrink"] = "shrink_mask"
    softmax_scale: float = 1.0
    mse_reduction: Literal["mean", "sum"] = "mean"
    alpha: float = 2e-4
    entropy_reduction: Literal["sum", "mean"] = "sum"
    beta: float = 1e-4
    cross_entropy_weight: float = 1.0
    noise: float = 1e-4
    noise_is_variance: bool = False
    random_mask_share: float = 0.0
    dropout_rate: float = 0.5
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 1e-4
    cosine: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")
        for name in ("alpha", "beta", "cross_entropy_weight", "noise", "weight_decay"):
            check_number(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate, above_zero=True)
        if not 0.0 <= self.random_mask_share <= 1.0:
            raise InputError(f"random mask share {self.random_mask_share:g} is outside [0, 1].")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise InputError(f"dropout rate {self.dropout_rate:g} is outside [0, 1).")
        for name in ("mse_reduction", "entropy_reduction"):
            if getattr(self, name) not in ("sum", "mean"):
                raise InputError(f"{name} {getattr(self, name)!r} is unknown; use 'sum' or 'mean'.")

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the input noise."""
        return self.noise**0.5 if self.noise_is_variance else self.noise


def stack_loss(spec: MemoryDefenseSpec, config: StackConfig) -> LossFn:
    """Equation 13 with classifier-B's cross-entropy, see `training.LossFn`.

    The memory is masked by the true label. Metrics: "target_mse", "non_target_mse",
    "target_entropy", "non_target_entropy", "bounded_term" (what is subtracted), "cross_entropy",
    "loss", "accuracy", "active_rows" (mean over images of the rows left in their class's slot),
    "active_rows_min", and "largest_safe_threshold" (shrink thresholds below it leave every image
    of the batch a row).
    """
    auto = spec.autoencoder(AXIS)
    classifier_b = ClassifierB(spec.classes, config.dropout_rate)

    def mean(values: jax.Array) -> jax.Array:
        return lax.pmean(values.mean(), AXIS)

    def entropy(weights: jax.Array) -> jax.Array:
        values = losses.entropy(weights, spec.epsilon)
        total = config.entropy_reduction == "sum"
        return mean(values) * (values.shape[0] * lax.axis_size(AXIS) if total else 1)

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        fold = jax.vmap(jax.random.fold_in, (0, None))
        x, labels = to_float(batch["image"]), batch["label"]
        x = config.augmentation.apply(fold(keys, 0), x)
        noisy = gaussian_noise(fold(keys, 1), x, config.noise_sigma) if config.noise else x

        def run(method: str, stats: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            variables = {"params": params["autoencoder"], "batch_stats": stats}
            out, updated = auto.apply(
                variables, *args, method=method, mutable=["batch_stats"], **kwargs
            )
            return out, updated["batch_stats"]

        stats = batch_stats["autoencoder"]
        z, stats = run("encode", stats, noisy, train=True)
        metrics: dict[str, jax.Array] = {}
        penalty = jnp.zeros(())
        if spec.memory_rows:
            shown = _masked_labels(fold(keys, 2), labels, spec.classes, config.random_mask_share)
            weights, _ = run("address", stats, z)
            target, _ = run("mask", stats, weights, shown)
            metrics |= _row_metrics(spec, weights, target, shown)
            metrics["target_entropy"] = entropy(target)
            penalty = config.alpha * metrics["target_entropy"]
            if config.beta:
                # The running statistics come from the target branch only: these are dropped.
                rest, _ = run("mask", stats, weights, shown, complement=True)
                other, _ = run("decode", stats, run("recall", stats, rest)[0], train=True)
                error = mean(losses.reconstruction_error(x, other, config.mse_reduction))
                metrics |= {"non_target_mse": error, "non_target_entropy": entropy(rest)}
                non_target = error + config.alpha * metrics["non_target_entropy"]
                bounded = losses.bounded_penalty(non_target, spec.classes, config.beta)
                metrics["bounded_term"] = bounded
                penalty = penalty - bounded
            z, _ = run("recall", stats, target)
        reconstruction, stats = run("decode", stats, z, train=True)
        logits: Any = classifier_b.apply(
            {"params": params["classifier_b"]}, reconstruction, True, fold(keys, 3)
        )
        metrics |= {
            "target_mse": mean(
                losses.reconstruction_error(x, reconstruction, config.mse_reduction)
            ),
            "cross_entropy": mean(losses.cross_entropy(logits, labels)),
            "accuracy": mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)),
        }
        loss = metrics["target_mse"] + penalty
        loss = loss + config.cross_entropy_weight * metrics["cross_entropy"]
        return loss, ({"autoencoder": stats}, metrics | {"loss": loss})

    return loss_fn


def _masked_labels(
    keys: jax.Array, labels: jax.Array, classes: int, random_share: float
) -> jax.Array:
    """The labels, a share of them replaced by a class drawn uniformly from all."""
    if not random_share:
        return labels

    def draw(key: jax.Array, label: jax.Array) -> jax.Array:
        which, what = jax.random.split(key)
        other = jax.random.randint(what, (), 0, classes, dtype=label.dtype)
        return jnp.where(jax.random.bernoulli(which, random_share), other, label)

    return jax.vmap(draw)(keys, labels)


def _row_metrics(
    spec: MemoryDefenseSpec, weights: jax.Array, target: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    active = memory.active_rows(target).astype(jnp.float32)
    slots = spec.memory_rows // spec.classes
    own = weights * memory.class_mask(labels, spec.classes, slots)
    return {
        "active_rows": lax.pmean(active.mean(), AXIS),
        "active_rows_min": lax.pmin(active.min(), AXIS),
        "largest_safe_threshold": lax.pmin(lax.stop_gradient(own).max(axis=-1).min(), AXIS),
    }


def empty_slot(threshold: float) -> Any:
    """A guard for `training.Stage`: a sentence once some image has no memory row left."""

    def guard(metrics: Mapping[str, float]) -> str | None:
        if metrics.get("active_rows_min", 1.0) > 0:
            return None
        safe = 0.99 * metrics["largest_safe_threshold"]  # so that rounding cannot lift it too far
        return (
            f"shrink threshold {threshold:g} leaves an image without any memory row of its class; "
            f"{safe:.3g} or less would have kept one for each image of this batch."
        )

    return guard
