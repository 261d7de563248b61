"""Train a whole Memory Defense, or go on with one that was stopped.

    python -m train.memory_defense --run runs/mine --dataset fashion_mnist --preset quick

Presets are quick (about three minutes on two CPU cores), paper (its settings, ResNet-50) and robust
(for a GPU). Any setting of the preset can be overridden (see --help), for example
--config.stack.memory-rows 100, or for a classifier-A that train.classifier has trained
--config.selector.recipe trained --config.selector.trained runs/at/seed0/defenses/memory.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(lambda: command.main("memory_defense", defenses.MemoryDefenseConfig), together=True)
