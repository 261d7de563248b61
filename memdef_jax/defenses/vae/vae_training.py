"""The stages in which Defense-VAE and MAD-VAE are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from memdef_jax import data
from memdef_jax.defenses.examples import paired_batches
from memdef_jax.defenses.target import ClassifierConfig, train_plain
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.defenses.vae.pairs import Mixture, stored_pairs
from memdef_jax.defenses.vae.vae_defense import VAEDefenseSpec
from memdef_jax.defenses.vae.vae_losses import Terms, VAEConfig, vae_loss
from memdef_jax.nn import Bound
from memdef_jax.training import AXIS

Batches = Callable[[int], Mapping[str, Any]]
# From a batch size to batches of pairs by global step, and steps an epoch.
Pairs = Callable[[int], tuple[Batches, int]]


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of both defenses.

    Attributes:
      spec: the networks.
      trainer: of the run.
      classifier: how the defended classifier is trained.
      vae: how purifiers are.
      mixture: what they learn from.
    """

    spec: VAEDefenseSpec
    trainer: Trainer
    classifier: ClassifierConfig
    vae: VAEConfig
    mixture: Mixture

    def undefended(self) -> dict[str, Any]:
        """The classifier on plain images; variables on the host."""
        start = self.spec.init_classifier(self.trainer.key(101))
        module = self.spec.reader(AXIS)
        return train_plain(self.trainer, "classifier", 1, module, start, self.classifier)

    def pairs(self, undefended: Any) -> Pairs:
        """The pairs against the classifier, made or read once for all stages."""
        trainer = self.trainer
        if self.mixture.streamed:
            return lambda size: (
                trainer.benign_batches(size, 3),
                data.steps_per_epoch(len(trainer.split), size),
            )
        split = data.subset(trainer.split, self.mixture.images)
        made = stored_pairs(
            self.mixture,
            Bound(self.spec.reader(), undefended),
            split,
            trainer.key(2),
            trainer.folder / "examples",
            trainer.reporter,
        )
        return lambda size: (
            paired_batches(made, split, size, trainer.seed * 10 + 3, trainer.rows(size)),
            data.steps_per_epoch(len(made), size),
        )

    def purifier(
        self,
        name: str,
        purpose: int,
        terms: Terms,
        undefended: Any,
        pairs: Pairs,
        start: Mapping[str, Any] | None = None,
        centres_rate: float = 0.5,
        epochs: int | None = None,
    ) -> dict[str, Any]:
        """Train a purifier, and what its terms train with it.

        Args:
          name: of the stage.
          purpose: of its random numbers.
          terms: of its objective.
          undefended: variables of the defended classifier.
          pairs: what it learns from, see `Stages.pairs`.
          start: initial variables by part ("vae", "classifier"); fresh ones where there are none.
          centres_rate: of the centres' gradient descent, a tenth of it in every further epoch.
          epochs: the configuration's for None.

        Returns:
          Variables by part, on the host.
        """
        trainer, config = self.trainer, self.vae
        batch, per_epoch = pairs(config.batch_size)
        parts = {"vae": self.spec.init_vae(trainer.key(purpose + 100))}
        if terms.trained:
            parts["classifier"] = self.spec.init_classifier(trainer.key(purpose + 200))
        parts |= start or {}
        variables = {
            kind: {part: v.get(kind, {}) for part, v in parts.items()}
            for kind in ("params", "batch_stats")
        }
        adam = config.optimizer(per_epoch)
        if terms.proximity or terms.distance:
            shape = (self.spec.classes, self.spec.latent_size)
            variables["params"]["centres"] = jax.random.normal(trainer.key(purpose + 300), shape)
            rate = optax.exponential_decay(centres_rate, per_epoch, 0.1, staircase=True)
            labels = dict.fromkeys(parts, "adam") | {"centres": "sgd"}
            adam = optax.multi_transform({"adam": adam, "sgd": optax.sgd(rate)}, labels)
        found = trainer.run(
            name,
            purpose,
            vae_loss(self.spec, config, terms, self.mixture, undefended),
            variables,
            adam,
            batch,
            (epochs or config.epochs) * per_epoch,
            config.batch_size,
        )
        host = jax.device_get(found)
        return {
            part: {kind: host[kind][part] for kind in ("params", "batch_stats")} for part in parts
        }
