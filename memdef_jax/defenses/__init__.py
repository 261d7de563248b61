"""Defenses: configuration, fit(), the pipeline and its attack surfaces; save and load."""

from memdef_jax.defenses.contract import Defense
from memdef_jax.defenses.fitting import Config, fit
from memdef_jax.defenses.memory.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.memory.memory_training import MemoryDefenseConfig
from memdef_jax.defenses.memory.stack import StackConfig
from memdef_jax.defenses.plain import PlainDefense
from memdef_jax.defenses.presets import PRESETS, preset
from memdef_jax.defenses.selector import SelectorConfig
from memdef_jax.defenses.store import load, load_run, save
from memdef_jax.defenses.vae.defense_vae import DefenseVAEConfig
from memdef_jax.defenses.vae.mad_vae import MADVAEConfig
from memdef_jax.defenses.vae.pairs import Mixture
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.defenses.vae.vae_losses import VAEConfig
from memdef_jax.defenses.vae.vae_training import ClassifierConfig

__all__ = [
    "PRESETS",
    "ClassifierConfig",
    "Config",
    "Defense",
    "DefenseVAEConfig",
    "MADVAEConfig",
    "MemoryDefense",
    "MemoryDefenseConfig",
    "MemoryDefenseSpec",
    "Mixture",
    "PlainDefense",
    "SelectorConfig",
    "StackConfig",
    "VAEConfig",
    "VAEDefense",
    "VAEDefenseSpec",
    "fit",
    "load",
    "load_run",
    "preset",
    "save",
]
