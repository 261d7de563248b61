"""Objectives and the optimiser of Defense-VAE and MAD-VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from memdef_jax.attacks.attack import check_number
from memdef_jax.checks import InputError
from memdef_jax.data import to_float
from memdef_jax.defenses.selector import SelectorConfig, selector_loss
from memdef_jax.defenses.vae.pairs import Mixture, attacked_batch
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.nn import Bound, losses
from memdef_jax.nn.vae import sample
from memdef_jax.training import AXIS, LossFn, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The purifier and its optimiser.

    Attributes:
      latent_size: of z.
      reduction: "sum" over pixels and latent coordinates, the evidence lower bound as printed;
        "mean" over them, as MAD-VAE's code has it.
      kl_weight: of the divergence from the prior. Defense-VAE prints 1, its code has 0; MAD-VAE has
        0.1.
      epochs: over all pairs.
      batch_size: global, in pairs.
      learning_rate: of Adam.
      decay: the rate's factor from one epoch to the next,
      lowest_rate: down to this.
      clip: largest norm of the gradient, None for any.
    """

    latent_size: int = 128
    reduction: Literal["sum", "mean"] = "sum"
    kl_weight: float = 1.0
    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 5e-4
    decay: float = 1.0
    lowest_rate: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("latent_size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1; use 1 or more.")
        for name in ("learning_rate", "decay"):
            check_number(name, getattr(self, name), above_zero=True)
        for name in ("kl_weight", "lowest_rate"):
            check_number(name, getattr(self, name))
        if self.clip is not None:
            check_number("clip", self.clip, above_zero=True)
        if self.reduction not in ("sum", "mean"):
            raise InputError(f"reduction {self.reduction!r} is unknown; use 'sum' or 'mean'.")

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Adam with its rate and clipping."""

        def rate(step: jax.Array) -> jax.Array:
            decayed = self.learning_rate * self.decay ** (step // steps_per_epoch)
            return jnp.maximum(decayed, self.lowest_rate)

        limit = optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip)
        return optax.chain(limit, optax.adam(rate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """What a purifier's objective has beside reconstruction and divergence.

    Attributes:
      classification: weight of the cross-entropy of the classifier on the purified image.
      trained: the classifier is trained with the purifier (parameters "classifier"), not frozen.
      proximity: weight of the distance of z to its class's centre (parameters "centres").
      distance: weight, subtracted, of the mean distance to the other centres.
      between_centres: that also counts how far the centres are from each other.
      identity: purify clean images, not attacked ones.
    """

    classification: float = 0.0
    trained: bool = False
    proximity: float = 0.0
    distance: float = 0.0
    between_centres: bool = True
    identity: bool = False


def vae_loss(
    spec: VAEDefenseSpec, config: VAEConfig, terms: Terms, mixture: Mixture, undefended: Any
) -> LossFn:
    """The evidence lower bound of clean images given attacked ones, and more, per `Terms`.

    Equations 4 and 5 of Defense-VAE (arXiv 1812.06570), section 2.2 of MAD-VAE (arXiv 2011.01755).
    z is drawn. Parameters are {"vae"}, and "classifier" and "centres" where terms need them.

    Args:
      spec: the networks.
      config: of the purifier.
      terms: what else is minimised.
      mixture: what makes a batch's adversarial images where it brings none.
      undefended: variables of the classifier that they are crafted on, and that reads purified
        images unless one is trained; on the host.

    Returns:
      See `training.LossFn`. Metrics: "loss", "reconstruction" and "divergence" (nats an image, or
      means), and "cross_entropy", "accuracy", "proximity", "distance" where they are terms.
    """
    vae, reader = spec.vae(AXIS), spec.reader(AXIS)
    plain = Bound(spec.reader(), undefended)
    fold = jax.vmap(jax.random.fold_in, (0, None))

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        x, y = to_float(batch["image"]), batch["label"]
        seen = x if terms.identity else attacked_batch(mixture, plain, batch, fold(keys, 1))

        def purify(module: Any, seen: jax.Array) -> tuple[jax.Array, ...]:
            mean, log_variance = module.encode(seen, train=True)
            z = sample(mean, log_variance, fold(keys, 2))
            return mean, log_variance, z, module.decode_logits(z, train=True)

        variables = {"params": params["vae"], "batch_stats": batch_stats["vae"]}
        (mean, log_variance, z, decoded), updated = vae.apply(
            variables, seen, method=purify, mutable=["batch_stats"]
        )
        stats = {**batch_stats, "vae": updated["batch_stats"]}
        whole = config.reduction == "sum"
        nll = losses.bernoulli_nll(x, decoded) / (1 if whole else x[0].size)
        kl = losses.kl_divergence(mean, log_variance) / (1 if whole else z.shape[-1])
        metrics = {"reconstruction": nll.mean(), "divergence": kl.mean()}
        loss = metrics["reconstruction"] + config.kl_weight * metrics["divergence"]
        if terms.classification:
            logits, own = _read(
                reader, params, batch_stats, undefended, terms, decoded, fold(keys, 3)
            )
            stats |= own
            metrics["cross_entropy"] = losses.cross_entropy(logits, y).mean()
            metrics["accuracy"] = (jnp.argmax(logits, -1) == y).mean(dtype=jnp.float32)
            loss += terms.classification * metrics["cross_entropy"]
        if terms.proximity or terms.distance:
            centres = params["centres"]
            metrics["proximity"] = losses.proximity(z, y, centres).mean()
            metrics["distance"] = losses.distance(z, y, centres, terms.between_centres).mean()
            loss += terms.proximity * metrics["proximity"] - terms.distance * metrics["distance"]
        return loss, (stats, {**metrics, "loss": loss})

    return loss_fn


def _read(
    reader: Any,
    params: Any,
    batch_stats: Any,
    undefended: Any,
    terms: Terms,
    decoded: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """The classifier's logits of what was decoded, and its statistics if it is trained."""
    image = jax.nn.sigmoid(decoded)
    if not terms.trained:
        return reader.apply(undefended, image), {}
    variables = {"params": params["classifier"], "batch_stats": batch_stats["classifier"]}
    logits, updated = reader.apply(
        variables, image, train=True, dropout_keys=keys, mutable=["batch_stats"]
    )
    return logits, {"classifier": updated.get("batch_stats", batch_stats["classifier"])}


def reading_loss(spec: VAEDefenseSpec, mixture: Mixture, undefended: Any, vae: Any) -> LossFn:
    """Cross-entropy of a classifier on images that a trained purifier made of attacked ones.

    Args:
      spec: the networks.
      mixture: as for `vae_loss`.
      undefended: variables of the classifier that was attacked; on the host.
      vae: variables of the purifier; on the host.
    """
    inner = selector_loss(spec.reader(AXIS), SelectorConfig(), in_loop=False)
    purifier = VAEDefense(spec, {"vae": vae})
    plain = Bound(spec.reader(), undefended)

    def loss_fn(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        seen = attacked_batch(
            mixture, plain, batch, jax.vmap(jax.random.fold_in, (0, None))(keys, 9)
        )
        shown = {"image": purifier.reconstruct(seen), "label": batch["label"]}
        return inner(params, batch_stats, shown, keys)

    return loss_fn
