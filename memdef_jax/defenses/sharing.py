"""What a new run need not train again, because another has trained it with the same settings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memdef_jax import processes
from memdef_jax.checks import InputError
from memdef_jax.data import Dataset
from memdef_jax.files import cannot_write
from memdef_jax.locks import locked
from memdef_jax.training import Reporter
from memdef_jax.training.run import open_run, read_run

SELECTORS = ("selector_*", "examples")  # of a Memory Defense, what does not depend on its stack
_COMMON = ("seed", "train_size", "compute_dtype")

Settings = Mapping[str, Any]


def take_over(
    like: pathlib.Path, folder: pathlib.Path, config: Any, dataset: Dataset, reporter: Reporter
) -> None:
    """Open a run with copies of what another has that the same training would give.

    Of a Memory Defense these are classifiers-A and their examples, for another stack; of
    Defense-VAE and MAD-VAE the defended classifier, and the examples of attacks that both mix.
    What is there already stays.

    Args:
      like: a run of the same kind.
      folder: the new run's.
      config: the new run's.
      dataset: that it is trained on.
      reporter: told what was copied.

    Raises:
      InputError: when the other run is of another kind or dataset, or in use, or the folder holds
        another run or cannot be written.
    """
    theirs, ours = read_run(like), json.loads(json.dumps(dataclasses.asdict(config)))
    rule, had = _RULES.get(str(theirs.get("kind"))), theirs.get("config")
    if rule is None or not isinstance(had, dict) or had.keys() != ours.keys():
        raise InputError(
            f"{like} is a run of {theirs.get('kind')!r}, of which nothing can be taken over here; "
            f"give one of the same program, which can be {', '.join(_RULES)}."
        )
    if theirs.get("fingerprint") != dataset.info.fingerprint:
        raise InputError(
            f"{like} was trained on other images than those of {dataset.info.name}; "
            "give a run on the same dataset."
        )
    names = list(getattr(config, "variants", theirs.get("defenses", ())))
    open_run(folder, {**theirs, "config": ours, "defenses": names})
    with locked(like, reporter.note):
        copied = copy_parts(like, folder, rule(had, ours))
    reporter.note(f"copied from {like}: {', '.join(copied) or 'nothing, the settings differ'}")


def copy_parts(trained: pathlib.Path, folder: pathlib.Path, patterns: Iterable[str]) -> list[str]:
    """Copy what another run has and this one has not; the first of several processes does.

    Args:
      trained: the other run's folder.
      folder: this run's.
      patterns: of paths below the folder.

    Returns:
      What was copied.

    Raises:
      InputError: when the folder cannot be written.
    """

    def copy() -> list[str]:
        found = [p for pattern in patterns for p in sorted(trained.glob(pattern)) if p.is_dir()]
        missing = [p for p in found if not (folder / p.relative_to(trained)).exists()]
        for part in missing:
            target = folder / part.relative_to(trained)
            unfinished = target.with_name(f".copying-{part.name}")
            try:
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(part, unfinished, ignore=shutil.ignore_patterns("tensorboard"))
                unfinished.rename(target)
            except OSError as error:
                raise cannot_write(target, error) from error
        return [str(part.relative_to(trained)) for part in missing]

    return processes.by_one(copy)


def _of_memory(theirs: Settings, ours: Settings) -> tuple[str, ...]:
    return SELECTORS if _same(theirs, ours, (*_COMMON, "selector")) else ()


def _of_vae(theirs: Settings, ours: Settings) -> tuple[str, ...]:
    if not _same(theirs, ours, (*_COMMON, "classifier")):
        return ()
    mixture, other = ours["mixture"], theirs.get("mixture")
    settings = [name for name in mixture if name not in ("attacks", "rounds")]
    if not isinstance(other, dict) or not _same(other, mixture, settings):
        return ("classifier",)
    return ("classifier", *(f"examples/{name}_*" for name in mixture["attacks"]))


def _same(theirs: Settings, ours: Settings, names: Iterable[str]) -> bool:
    return all(theirs.get(name) == ours[name] for name in names)


_RULES: dict[str, Callable[[Settings, Settings], tuple[str, ...]]] = {
    "memory_defense": _of_memory,
    "defense_vae": _of_vae,
    "mad_vae": _of_vae,
}
