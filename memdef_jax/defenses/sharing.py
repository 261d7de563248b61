"""What a new run need not train again, because another has trained it with the same settings."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memdef_jax import processes
from memdef_jax.checks import InputError
from memdef_jax.files import cannot_write, check_writable, write_atomic
from memdef_jax.locks import locked
from memdef_jax.training import Reporter
from memdef_jax.training.run import read_run

SELECTORS = ("selector_*", "examples")  # of a Memory Defense, what does not depend on its stack
_COMMON = ("seed", "train_size", "compute_dtype")
_DONE = ".taken-over"

Settings = Mapping[str, Any]


def take_over(like: pathlib.Path, folder: pathlib.Path, reporter: Reporter) -> None:
    """Copy into a new run what another has that the same training would give, once.

    Of a Memory Defense these are classifiers-A and their examples, for another stack; of
    Defense-VAE and MAD-VAE the defended classifier, and the examples of attacks that both mix.
    What is there already stays. The first of several processes does it.

    Args:
      like: a run of the same kind.
      folder: the new run's, which was opened.
      reporter: told what was copied.

    Raises:
      InputError: when the other run is of another kind or dataset, or in use, or the folder cannot
        be written.
    """

    def work() -> list[str] | None:
        if (folder / _DONE).exists():
            return None
        theirs, ours = read_run(like), read_run(folder)
        rule, had = _RULES.get(str(ours["kind"])), theirs.get("config")
        if rule is None or theirs.get("kind") != ours["kind"] or not isinstance(had, dict):
            raise InputError(
                f"{like} is a run of {theirs.get('kind')!r}, of which {ours['kind']} takes nothing "
                f"over; leave it out, or give a run of the same program ({', '.join(_RULES)})."
            )
        if theirs.get("fingerprint") != ours["fingerprint"]:
            raise InputError(
                f"{like} was trained on other images than those of {ours['dataset']}; "
                "give a run on the same dataset."
            )
        with locked(like, reporter.note):
            copied = copy_parts(like, folder, rule(had, ours["config"]))
        write_atomic(folder / _DONE, "\n".join(copied))
        return copied

    copied = processes.by_one(work)
    if copied is not None:
        reporter.note(f"copied from {like}: {', '.join(copied) or 'nothing, the settings differ'}")


def copy_parts(trained: pathlib.Path, folder: pathlib.Path, patterns: Iterable[str]) -> list[str]:
    """Copy what another run has and this one has not.

    Args:
      trained: the other run's folder.
      folder: this run's.
      patterns: of folders below it.

    Returns:
      What was copied.

    Raises:
      InputError: when the folder cannot be written, or has not enough space.
    """
    found = [p for pattern in patterns for p in sorted(trained.glob(pattern)) if p.is_dir()]
    missing = [p for p in found if not (folder / p.relative_to(trained)).exists()]
    files = [file for part in missing for file in part.rglob("*") if file.is_file()]
    check_writable(folder, sum(file.stat().st_size for file in files))
    for part in missing:
        target = folder / part.relative_to(trained)
        unfinished = target.with_name(f".copying-{part.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            shutil.copytree(part, unfinished, ignore=shutil.ignore_patterns("tensorboard"))
            unfinished.rename(target)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, shutil.Error):  # of all files; the first will do
                error = OSError(None, error.args[0][0][2])
            raise cannot_write(target, error) from error
    return [str(part.relative_to(trained)) for part in missing]


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
