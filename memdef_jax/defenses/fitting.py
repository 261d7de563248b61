"""One way to train every defense: the type of the configuration says which."""

from __future__ import annotations

import pathlib
from typing import Any

from jax.sharding import Mesh

from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.defenses.classifier import classifier_training
from memdef_jax.defenses.denoiser import feature_denoiser, hgd
from memdef_jax.defenses.memory import memory_training
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
_SHARING = (memory_training.MemoryDefenseConfig, defense_vae.DefenseVAEConfig, mad_vae.MADVAEConfig)


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
      like: folder of a run of the same kind from which what would be trained alike is copied, see
        `sharing.take_over`; for Memory Defense, Defense-VAE and MAD-VAE.

    Returns:
      Defenses by name: of a Memory Defense its selectors, of the others their variants.

    Raises:
      InputError: before any work, when something does not fit or another process works in the
        folder; `TrainingDiverged` later.
    """
    train = _FITS[type(config)]
    more = {"like": like} if like else {}
    if like and type(config) not in _SHARING:
        raise InputError(f"nothing can be taken over from {like} by this training; leave it out.")
    with locked(folder, (reporter or Silent()).note):
        return train(config, dataset, folder, mesh=mesh, backend=backend, reporter=reporter, **more)
