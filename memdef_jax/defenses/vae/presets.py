"""Named configurations of Defense-VAE and MAD-VAE.

"quick": minutes on a CPU; a part of the images, each attacked at one level, and few iterations of
CW. "paper": the paper's settings, for a GPU.
"""

from __future__ import annotations

import dataclasses

from memdef_jax.defenses.vae.defense_vae import DefenseVAEConfig
from memdef_jax.defenses.vae.mad_vae import MADVAEConfig


def _quick_defense_vae(image_shape: tuple[int, int, int], train_size: int) -> DefenseVAEConfig:
    paper, images = DefenseVAEConfig(), min(6000, train_size)
    mixture = dataclasses.replace(paper.mixture, rounds=1, images=images, cw_steps=10)
    return dataclasses.replace(
        paper,
        classifier=dataclasses.replace(paper.classifier, epochs=-(-60_000 // train_size)),
        mixture=mixture,
        vae=dataclasses.replace(
            paper.vae, epochs=-(-18_000 // images), batch_size=32, learning_rate=1e-3
        ),
        variants=("vae", "rec", "e2e"),
        end_to_end_epochs=-(-6000 // images),
    )


def _quick_mad_vae(image_shape: tuple[int, int, int], train_size: int) -> MADVAEConfig:
    paper, images = MADVAEConfig(), min(4000, train_size)
    mixture = dataclasses.replace(
        paper.mixture,
        rounds=1,
        images=images,
        cw_learning_rates=(0.1,),
        cw_steps=20,
        cw_search_steps=2,
        cw_initial_const=1.0,
    )
    epochs = -(-8000 // images)
    return dataclasses.replace(
        paper,
        classifier=dataclasses.replace(paper.classifier, epochs=-(-60_000 // train_size)),
        mixture=mixture,
        vae=dataclasses.replace(paper.vae, epochs=epochs, batch_size=32),
        classification_epochs=epochs,
    )


DEFENSE_VAE = {
    "quick": _quick_defense_vae,
    "paper": lambda image_shape, train_size: DefenseVAEConfig(),
}
MAD_VAE = {"quick": _quick_mad_vae, "paper": lambda image_shape, train_size: MADVAEConfig()}
