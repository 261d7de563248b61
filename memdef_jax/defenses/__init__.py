"""Defenses: configuration, fit(), the pipeline and its attack surfaces; save and load."""

from memdef_jax.defenses.adversarial_training import AdversarialTraining
from memdef_jax.defenses.classifier.classifier_defense import ClassifierDefense, ClassifierSpec
from memdef_jax.defenses.classifier.classifier_training import RobustClassifierConfig
from memdef_jax.defenses.contract import Defense
from memdef_jax.defenses.denoiser.denoiser_defense import DenoiserDefense, DenoiserSpec
from memdef_jax.defenses.denoiser.denoiser_training import DenoiserConfig, ExamplesConfig
from memdef_jax.defenses.denoiser.feature_denoiser import FeatureDenoiserConfig
from memdef_jax.defenses.denoiser.hgd import HGDConfig
from memdef_jax.defenses.denoiser.loss_network import LossNetworkConfig
from memdef_jax.defenses.fitting import Config, fit
from memdef_jax.defenses.memory.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.memory.memory_training import MemoryDefenseConfig
from memdef_jax.defenses.memory.stack import StackConfig
from memdef_jax.defenses.plain import PlainDefense
from memdef_jax.defenses.presets import PRESETS, preset
from memdef_jax.defenses.selector import SelectorConfig
from memdef_jax.defenses.store import is_finished, load, load_run, save
from memdef_jax.defenses.target import ClassifierConfig
from memdef_jax.defenses.vae.defense_vae import DefenseVAEConfig
from memdef_jax.defenses.vae.mad_vae import MADVAEConfig
from memdef_jax.defenses.vae.pairs import Mixture
from memdef_jax.defenses.vae.vae_defense import VAEDefense, VAEDefenseSpec
from memdef_jax.defenses.vae.vae_losses import VAEConfig

__all__ = [
    "PRESETS",
    "AdversarialTraining",
    "ClassifierConfig",
    "ClassifierDefense",
    "ClassifierSpec",
    "Config",
    "Defense",
    "DefenseVAEConfig",
    "DenoiserConfig",
    "DenoiserDefense",
    "DenoiserSpec",
    "ExamplesConfig",
    "FeatureDenoiserConfig",
    "HGDConfig",
    "LossNetworkConfig",
    "MADVAEConfig",
    "MemoryDefense",
    "MemoryDefenseConfig",
    "MemoryDefenseSpec",
    "Mixture",
    "PlainDefense",
    "RobustClassifierConfig",
    "SelectorConfig",
    "StackConfig",
    "VAEConfig",
    "VAEDefense",
    "VAEDefenseSpec",
    "fit",
    "is_finished",
    "load",
    "load_run",
    "preset",
    "save",
]
