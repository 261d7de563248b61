"""Train a MAD-VAE with all its objectives, or go on with it.

    python -m train.mad_vae --run runs/mad --dataset mnist

Presets are quick (minutes on two CPU cores) and paper (its settings, for a GPU). Any setting of the
preset can be overridden (see --help), for example --config.variants vanilla combined.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(lambda: command.main("mad_vae", defenses.MADVAEConfig), together=True)
