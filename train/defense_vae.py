"""Train a Defense-VAE and its variants, or go on with them.

    python -m train.defense_vae --run runs/vae --dataset mnist --config.classifier.architecture a

Presets are quick (minutes on two CPU cores) and paper (its settings, for a GPU). Any setting of the
preset can be overridden (see --help); for a row of the paper's Table 2, which trains on two of the
attacks: --config.mixture.attacks fgsm rfgsm.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(lambda: command.main("defense_vae", defenses.DefenseVAEConfig), together=True)
