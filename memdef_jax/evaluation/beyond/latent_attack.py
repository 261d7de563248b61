"""The Overpowered attack on every variant of a defense with a decoder; Table 3 of MAD-VAE.

Codes are searched from those of test images (arXiv 1712.09196), and the decoded images are judged
by the deployed pipeline, which purifies them once more. A proxy for people says which of the found
images are still of their class: the others are no adversarial examples (arXiv 2011.01755, 3.6).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from memdef_jax.attacks import Overpowered
from memdef_jax.attacks.attack import check_number
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset, Split, subset, to_float
from memdef_jax.evaluation.beyond.latent_report import as_document, found_grid
from memdef_jax.evaluation.beyond.latent_search import Target, search
from memdef_jax.evaluation.beyond.proxy import ARCHITECTURE, accuracy, answers, fit_proxy
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.files import read_json, write_atomic
from memdef_jax.locks import locked
from memdef_jax.training import Reporter, Silent

_SHOWN = 8  # found images in a picture
_NAMES = {"deployed": "overpowered", "classifier": "overpowered-classifier"}  # of the files


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentAttackConfig:
    """What is attacked, and how.

    Attributes:
      rhos: L2 lengths of the noise that a success must survive, in [0, 1] pixels; one search each.
      count: test images, see `data.subset`; None for all.
      draws: of noise, for each iteration and image.
      group: draws evaluated together, see `Overpowered`.
      steps: iterations of each search.
      target: what the search differentiates, see `latent_search.Target`.
      batch_size: images attacked at once.
      seed: of the noise; the same draws for every variant and rho.
    """

    rhos: tuple[float, ...] = (1.0, 2.5, 3.0, 3.5)
    count: int | None = 50
    draws: int = 100
    group: int | None = None
    steps: int = 1000
    target: Target = "deployed"
    batch_size: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rhos:
            raise InputError("no rho was given; use one or more, for example 1 2.5 3 3.5.")
        check_number("rho", self.rhos)
        if self.target not in _NAMES:
            raise InputError(f"target {self.target!r} is unknown; use deployed or classifier.")
        for name in ("count", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} is below 1; use 1 or more.")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; use 0 or more.")
        self.attack(self.rhos[0])

    def attack(self, rho: float) -> Overpowered:
        """The search for one length of noise."""
        return Overpowered(rho=rho, draws=self.draws, group=self.group, steps=self.steps)

    def settings(self) -> dict[str, Any]:
        """What changes the numbers of a cell, beside its rho and target, JSON-able."""
        numbers = dataclasses.asdict(self.attack(0.0))
        return {k: v for k, v in numbers.items() if k not in ("rho", "group")} | {"seed": self.seed}


def choose(defenses: Mapping[str, Any], variants: Sequence[str] = ()) -> dict[str, Any]:
    """The defenses to attack, all of them for no names.

    Raises:
      InputError: for a name that is not there, or a defense without a latent space to search.
    """
    for name, defense in defenses.items():
        decodes = hasattr(defense, "embed") and hasattr(defense, "decode")
        if not decodes or not getattr(defense, "has_codes", True):
            raise InputError(
                f"{name} is a {defense.kind}, which has no decoder of latent codes to search; give "
                "a run of train.defense_vae, mad_vae, memory_defense or feature_denoiser."
            )
    for name in variants:
        if name not in defenses:
            raise InputError(f"variant {name!r} is unknown; use some of {', '.join(defenses)}.")
    return {name: defenses[name] for name in variants or defenses}


def evaluate(
    folder: pathlib.Path,
    defenses: Mapping[str, Any],
    dataset: Dataset,
    config: LatentAttackConfig,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Any], pathlib.Path]:
    """Attack every variant at every rho, or go on, and write what was found.

    Files in `folder`: the result as JSON after every search, `pictures/` and `proxy/`. Cells that
    are there already, of other variants and rhos too, are kept, if all else is the same.

    Args:
      folder: the run's.
      defenses: by variant, callable pytrees to logits that have `embed(x)`, codes [B, D],
        `decode(z)`, images, and `reader`, the classifier that reads them; see `choose`.
      dataset: that they were trained on.
      config: what to attack.
      reporter: told of progress.

    Returns:
      The result, see `summarise`, and the path it is written to.

    Raises:
      InputError: before any work, when something does not fit or another program is in the folder.
    """
    reporter = reporter or Silent()
    split = subset(dataset.test, config.count)
    path = folder / f"{_NAMES[config.target]}.json"
    identity = {
        "dataset": dataset.info.name,
        "fingerprint": dataset.info.fingerprint,
        "kind": next(iter(defenses.values())).kind,
        "n": len(split),
        "target": config.target,
        "settings": config.settings(),
    }
    with locked(folder, reporter.note):
        cells = _known(path, identity)
        proxy = fit_proxy(dataset, folder / "proxy", architecture=ARCHITECTURE, reporter=reporter)
        described = {"architecture": ARCHITECTURE, "accuracy": accuracy(proxy, dataset.test)}
        rhos = [float(rho) for rho in dict.fromkeys(config.rhos)]
        plan = [(variant, rho) for variant in defenses for rho in rhos]
        done = sum(_key(*place) in cells for place in plan)
        reporter.start("overpowered", done, len(plan), 1)
        for variant, rho in plan:
            if _key(variant, rho) in cells:
                continue
            images, cell = _measure(defenses[variant], split, config, rho, proxy)
            earlier = [cells[_key(variant, other)] for other in rhos[: rhos.index(rho)]]
            found = np.flatnonzero(cell["found"])[:_SHOWN]
            if len(found) and not any(any(other["found"]) for other in earlier):
                title = f"{variant}, Overpowered, rho {rho:g}, target {config.target}"
                shown = split[found], images[found], dataset.info.class_names, title
                picture = f"{_NAMES[config.target]}-{variant}.png"
                write_atomic(
                    folder / "pictures" / picture, found_grid(defenses[variant], proxy, *shown)
                )
            cells[_key(variant, rho)] = cell
            write_atomic(path, json.dumps(_result(identity, rhos, described, cells), indent=1))
            done += 1
            reporter.update(done, {"accuracy": float(np.mean(cell["right"]))})
        result = _result(identity, rhos, described, cells)
        write_atomic(path, json.dumps(result, indent=1))
        write_atomic(path.with_suffix(".md"), as_document(result))
        return result, path


def _key(variant: str, rho: float) -> str:
    return f"{variant} {float(rho)}"


def _known(path: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The cells of an earlier measurement of the same."""
    if not path.exists():
        return {}
    stored = read_json(path, "delete it to measure again.")
    try:
        cells, there = dict(stored["cells"]), _flat({name: stored[name] for name in identity})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete it to measure again.") from error
    here = _flat(identity)
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise InputError(
                f"{path} holds another measurement: {name} was {there.get(name)!r} there and is "
                f"{here.get(name)!r} now; move it away, or give the same settings to continue."
            )
    return cells


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """With the settings beside the rest."""
    return {**{k: v for k, v in identity.items() if k != "settings"}, **identity["settings"]}


def _measure(
    defense: Any, split: Split, config: LatentAttackConfig, rho: float, proxy: Logits
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Attacked images [N, H, W, C], and what is said of each."""
    x, y = to_float(split.images), split.labels
    attacked, success, distance = search(
        defense,
        split,
        config.attack(rho),
        target=config.target,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    right = answers(defense, attacked) == y
    # Images that the proxy does not know to begin with tell nothing of a change.
    changed = (answers(proxy, x) == y) & (answers(proxy, attacked) != y)
    return attacked, {
        "clean": (answers(defense, x) == y).tolist(),
        "right": right.tolist(),
        "found": (success & ~right).tolist(),
        "changed": changed.tolist(),
        "distance": distance.astype(float).tolist(),
    }


def _result(
    identity: Mapping[str, Any],
    rhos: Sequence[float],
    proxy: Mapping[str, Any],
    cells: Mapping[str, Mapping[str, Sequence[Any]]],
) -> dict[str, Any]:
    """All of it, JSON-able; the variants are those whose every rho is measured."""
    variants = dict.fromkeys(key.rpartition(" ")[0] for key in cells)
    whole = [v for v in variants if all(_key(v, rho) in cells for rho in rhos)]
    summary = {v: summarise(cells[_key(v, rho)] for rho in rhos) for v in whole}
    return {
        **identity,
        "rhos": list(rhos),
        "proxy": dict(proxy),
        "variants": summary,
        "cells": dict(cells),
    }


def summarise(cells: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """What is counted over the searches on one variant, one a rho.

    Args:
      cells: with lists [n] over the same images: "clean", the original image is named rightly;
        "right", the attacked one is, by the deployed pipeline; "found", the search succeeded on its
        target within the budget, and the pipeline is wrong; "changed", the proxy names the original
        rightly and the attacked image not.

    Returns:
      Shares: "accuracy", right, all rhos pooled; "original_accuracy", of images that are right
      under every rho; "found"; "changed", of the found ones, None if there are none;
      "accuracy_kept", right, or found and changed; "clean". "interval" is Wilson's of the accuracy
      with n images, not n times the rhos: those of one image say nearly the same.
    """
    each = list(cells)
    right, found, changed = (
        np.array([cell[name] for cell in each], bool) for name in ("right", "found", "changed")
    )
    # Wilson's interval of r trials an image, widened to that of one.
    z = NormalDist().inv_cdf(0.975) * len(each) ** 0.5
    return {
        "accuracy": float(right.mean()),
        "original_accuracy": float(right.all(axis=0).mean()),
        "found": float(found.mean()),
        "changed": float(changed[found].mean()) if found.any() else None,
        "accuracy_kept": float((right | (found & changed)).mean()),
        "interval": list(wilson_interval(int(right.sum()), right.size, z)),
        "clean": float(np.mean(each[0]["clean"])),
    }
