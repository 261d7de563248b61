"""The figure of a defense's latent space: what is shown of which attack, drawn and told."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from memdef_jax.attacks import Attack, Overpowered, presets
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, subset
from memdef_jax.evaluation.beyond.latent_attack import LatentAttackConfig, choose
from memdef_jax.evaluation.papers import latent
from memdef_jax.evaluation.reports import figures
from memdef_jax.files import write_atomic

_SEARCH = "overpowered"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentFigureConfig:
    """What is shown.

    Attributes:
      attack: a preset's name, crafted on the undefended classifier, or "overpowered", the search in
        the latent space of the deployed pipeline.
      eps: Linf budget of a preset, in [0, 1] pixels.
      count: test images, see `data.subset`; None for all.
      method: of the projection, see `latent.projection`.
      rho, draws, steps: of the search, see `Overpowered`.
      seed: of attack and projection.
    """

    attack: str = "pgd"
    eps: float = 25 / 255
    count: int | None = 500
    method: str = "tsne"
    rho: float = 1.0
    draws: int = 100
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        latent.projection(self.method, self.seed)
        least = latent.LEAST // 2
        if self.count is not None and self.count < least:
            raise InputError(
                f"count {self.count} is too few images for a figure; use {least} or more."
            )
        self._search()
        self.crafted()

    @property
    def searched(self) -> bool:
        """Whether the attack is the search in latent space."""
        return self.attack == _SEARCH

    def crafted(self, kind: str = "memory_defense") -> Attack | Overpowered:
        """The attack, with the settings of a kind's paper."""
        if self.searched:
            return self._search().attack(self.rho)
        return presets.named(self.attack, self.eps, kind)

    def _search(self) -> LatentAttackConfig:
        return LatentAttackConfig(
            rhos=(self.rho,), draws=self.draws, steps=self.steps, seed=self.seed
        )

    def settings(self) -> dict[str, Any]:
        """What the points depend on, beside the defense, JSON-able."""
        own = {"rho": self.rho, **self._search().settings()} if self.searched else {"eps": self.eps}
        return {"attack": self.attack, "method": self.method, "seed": self.seed, **own}


def chosen(defenses: Mapping[str, Any], selector: str | None, config: LatentFigureConfig) -> str:
    """The name of the defense to show, by default the last.

    Raises:
      InputError: when there is no such defense, or none that can be searched.
    """
    name = selector or list(defenses)[-1]
    if name not in defenses:
        raise InputError(f"selector {name!r} is not in the run; use one of {', '.join(defenses)}.")
    if config.searched:
        choose(defenses, (name,))
    return name


def draw(
    folder: pathlib.Path, name: str, defense: Any, dataset: Dataset, config: LatentFigureConfig
) -> tuple[list[str], list[list[str]], pathlib.Path]:
    """Write the figure and its points, FOLDER/latent-NAME-ATTACK.png and .json.

    Returns:
      Header and lines of a table of `latent.alike`, in percent, and the figure's path.

    Raises:
      InputError: when the defense has no latent space, or there are too few images.
    """
    split = subset(dataset.test, config.count)
    latents = latent.collect(defense, split, config.crafted(defense.kind), config.seed)
    embedded = latent.embed(latents, latent.projection(config.method, config.seed))
    names = list(dataset.info.class_names)
    path = folder / f"latent-{name}-{config.attack}.png"
    content = {**embedded, "class_names": names, "selector": name, **config.settings()}
    write_atomic(path.with_suffix(".json"), json.dumps(content))
    spaces = {latent.SPACES[space]: points for space, points in embedded.items()}
    write_atomic(path, figures.scatter(spaces, names))
    shares = next(iter(embedded.values()))["alike"]
    lines = [
        [latent.SPACES[space], *(f"{100 * found['alike'][words]:.1f}" for words in shares)]
        for space, found in embedded.items()
    ]
    return ["space", *shares], lines, path
