"""Train robust classifiers side by side, or go on with them.

    python -m train.classifier --run runs/at/seed0 --dataset fashion_mnist

Presets are quick (a few minutes a variant on two CPU cores), fast (FGSM with a random start),
trades, and paper (ResNet-18, for a GPU). Any setting of the preset can be overridden (see --help),
for example --config.variants memory linear_margin --config.seed 1.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(lambda: command.main("classifier", defenses.RobustClassifierConfig), together=True)
