"""Train a high-level representation guided denoiser (HGD), or go on with it.

    python -m train.hgd --run runs/hgd --dataset mnist

Presets are quick (minutes on two CPU cores) and paper (for a GPU). Any setting of the preset can be
overridden (see --help), for example --config.variants logits features.
"""

from __future__ import annotations

from memdef_jax import console, defenses
from train import command

if __name__ == "__main__":
    console.run(lambda: command.main("hgd", defenses.HGDConfig), together=True)
