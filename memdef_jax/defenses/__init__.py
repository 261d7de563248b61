"""Defenses: configuration, fit(), the pipeline and its attack surfaces; save and load."""

from memdef_jax.defenses.contract import Defense
from memdef_jax.defenses.memory_defense import MemoryDefense, MemoryDefenseSpec
from memdef_jax.defenses.memory_training import MemoryDefenseConfig, fit, load_run
from memdef_jax.defenses.plain import PlainDefense
from memdef_jax.defenses.presets import PRESETS, preset
from memdef_jax.defenses.selector import SelectorConfig
from memdef_jax.defenses.stack import StackConfig
from memdef_jax.defenses.store import load, save

__all__ = [
    "PRESETS",
    "Defense",
    "MemoryDefense",
    "MemoryDefenseConfig",
    "MemoryDefenseSpec",
    "PlainDefense",
    "SelectorConfig",
    "StackConfig",
    "fit",
    "load",
    "load_run",
    "preset",
    "save",
]
