"""One way to train every defense: the type of the configuration says which."""

from __future__ import annotations

import pathlib
from typing import Any

from jax.sharding import Mesh

from memdef_jax.data import Dataset
from memdef_jax.defenses.classifier import classifier_training
from memdef_jax.defenses.denoiser import feature_denoiser, hgd
from memdef_jax.defenses.memory import memory_training
from memdef_jax.defenses.sharing import take_over
from memdef_jax.defenses.vae import defense_vae, mad_vae
from memdef_jax.locks import locked
from memdef_jax.training import Reporter, Silent

Config = (
    memory_training.MemoryDefenseConfig
    | defense_vae.DefenseVAEConfig
    | mad_vae.MADVAEConfig
    | feature_denoiser.FeatureDenoiserConfig
    | hgd.HGDConfig
    | classifier_training.RobustClassifierConfig
)
_FITS: dict[type, Any] = {
    memory_training.MemoryDefenseConfig: memory_training.fit,
    defense_vae.DefenseVAEConfig: defense_vae.fit,
    mad_vae.MADVAEConfig: mad_vae.fit,
    feature_denoiser.FeatureDenoiserConfig: feature_denoiser.fit,
    hgd.HGDConfig: hgd.fit,
    classifier_training.RobustClassifierConfig: classifier_training.fit,
}


def fit(
    config: Config,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    reporter: Reporter | None = None,
    like: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Train, or go on training, and save the defenses under `folder/defenses/<name>`.

    Args:
      config: what to train, of a type in `Config`.
      dataset: only its training split is used.
      folder: the run's folder.
      mesh: devices, all of them by default.
      backend: "shard_map" or "pmap".
      reporter: told of progress.
      like: folder of a run from which parts that would be trained alike are copied, see
        `sharing.take_over`.

    Returns:
      Defenses by name: of a Memory Defense its selectors, of the others their variants.

    Raises:
      InputError: before any work, when something does not fit or another process works in the
        folder; `TrainingDiverged` later.
    """
    train, reporter = _FITS[type(config)], reporter or Silent()
    with locked(folder, reporter.note):
        if like:
            take_over(like, folder, config, dataset, reporter)
        return train(config, dataset, folder, mesh=mesh, backend=backend, reporter=reporter)
