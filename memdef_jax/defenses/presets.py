"""Named configurations of every defense, for 28x28x1 and 32x32x3 images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.defenses.classifier.presets import CLASSIFIER
from memdef_jax.defenses.denoiser.presets import FEATURE_DENOISER, HGD
from memdef_jax.defenses.memory.presets import MEMORY_DEFENSE
from memdef_jax.defenses.vae.presets import DEFENSE_VAE, MAD_VAE

# By the kind of the defense and the name of the preset: from a dataset's image shape and number of
# training images to the configuration.
PRESETS: dict[str, Mapping[str, Callable[[tuple[int, int, int], int], Any]]] = {
    "memory_defense": MEMORY_DEFENSE,
    "defense_vae": DEFENSE_VAE,
    "mad_vae": MAD_VAE,
    "classifier": CLASSIFIER,
    "feature_denoiser": FEATURE_DENOISER,
    "hgd": HGD,
}


def preset(
    name: str,
    image_shape: tuple[int, int, int],
    train_size: int = 60_000,
    kind: str = "memory_defense",
) -> Any:
    """A configuration by name, for a dataset's image shape and number of training images.

    What each name stands for is said where it is made: in `presets.py` of the defense's folder.

    Raises:
      InputError: for another name or kind.
    """
    if kind not in PRESETS:
        raise InputError(f"defense {kind!r} is unknown; use one of {', '.join(PRESETS)}.")
    if name not in PRESETS[kind]:
        raise InputError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS[kind])}.")
    return PRESETS[kind][name](image_shape, train_size)
