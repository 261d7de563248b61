"""The black-box attack with a substitute: Tables 3 and 8 of Defense-VAE, Table 2 of MAD-VAE.

The attacker sees only the classes that a model, the oracle, names. They train a substitute on its
answers, and what fools the substitute is shown to the undefended classifier and to its defenses
(Papernot et al. 2017, arXiv 1602.02697). In both papers the undefended classifier answers. Whoever
attacks a deployed system is answered by its whole pipeline, which neither paper reports.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import FGSM, Substitute, train_substitute
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.checks import InputError, check_eps
from memdef_jax.data import Dataset, Split, to_float
from memdef_jax.data.dataset import shuffled
from memdef_jax.defenses import Defense
from memdef_jax.evaluation.batching import in_batches
from memdef_jax.evaluation.reports.layout import as_markdown
from memdef_jax.evaluation.reports.report import eps_name, percent
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps.crafting import always, craft
from memdef_jax.files import check_writable, read_json, write_atomic
from memdef_jax.locks import locked
from memdef_jax.nn import Bound, classifier
from memdef_jax.training import Reporter, Silent

FILE = "black_box.json"
SEEDS = 150  # test images that the attacker begins with, as in Defense-VAE; they are not attacked
UNDEFENDED = "undefended"
Oracle = Literal["undefended", "deployed", "both"]
IDENTITY = ("substitute", "oracle", "eps", "n", "seed")  # what makes two rows the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBoxConfig:
    """What is attacked with what.

    Attributes:
      substitutes: architectures of `nn.CLASSIFIERS` without BatchNorm.
      oracle: who answers the attacker: the "undefended" classifier, as in the papers, for all
        defenses at once; "deployed", each defense's own pipeline, with a substitute for each; or
        "both".
      count: test images attacked, the first after the attacker's; None for all that are left.
      eps: Linf budget of FGSM in [0, 1] pixels.
      seed: of the substitute's initial weights and batches.

    Raises:
      InputError: when a value is out of range.
    """

    substitutes: tuple[str, ...] = ("b", "e")
    oracle: Oracle = "both"
    count: int | None = 500
    eps: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.substitutes:
            raise InputError("no substitute was given; give one or more architectures, such as b.")
        if self.oracle not in get_args(Oracle):
            raise InputError(
                f"oracle {self.oracle!r} is unknown; use one of {', '.join(get_args(Oracle))}."
            )
        if self.count is not None and self.count < 1:
            raise InputError(f"count {self.count} is below 1; use 1 or more.")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; use 0 or more.")
        check_eps(self.eps)


def divide(test: Split, count: int | None) -> tuple[Split, Split]:
    """The `SEEDS` images that the attacker begins with, and the images that are then attacked.

    Both in the order of the split; where that is class by class, in that of `data.subset`.

    Args:
      test: the split.
      count: images to attack; None for all but the attacker's.

    Raises:
      InputError: when there are too few.
    """
    left = len(test) - SEEDS
    if left < max(1, count or 1):
        raise InputError(
            f"{count or 'all'} images cannot be attacked: of {len(test)} test images the attacker "
            f"begins with {SEEDS}, so that {max(left, 0)} are left; ask no more than that, "
            "or use a dataset with more."
        )
    if np.all(np.diff(test.labels) >= 0):
        test = test[shuffled(len(test), 0, 0)]
    return test[:SEEDS], test[SEEDS : None if count is None else SEEDS + count]


def learn(architecture: str, oracle: Logits, seeds: Split, classes: int, seed: int) -> Substitute:
    """Train a substitute with Defense-VAE's settings, the defaults of `train_substitute`.

    Its dropout is drawn in training, as in Defense-GAN's code, which both papers follow.

    Args:
      architecture: one of `nn.CLASSIFIERS`.
      oracle: whose answers it learns.
      seeds: the images to begin with; their labels are not looked at.
      classes: K.
      seed: of initial weights and batches.
    """
    keys = jax.random.split(jax.random.key(seed))
    module = classifier(architecture, classes)
    x = to_float(jnp.asarray(seeds.images))
    start = Bound(module, jax.jit(module.init)(keys[0], x[:1]))
    return train_substitute(
        oracle, operator.call, start, x, key=keys[1], apply_in_training=_with_dropout
    )


def _with_dropout(bound: Bound, x: jax.Array, keys: jax.Array) -> jax.Array:
    logits: Any = bound.module.apply(bound.variables, x, train=True, dropout_keys=keys)
    return logits


def measure(
    defenses: Mapping[str, Defense],
    dataset: Dataset,
    config: BlackBoxConfig,
    folder: pathlib.Path,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Attack every defense with every substitute, or go on; `black_box.json` keeps what is done.

    FGSM is crafted on the substitute with the true labels. Rows of other settings stay in the file.

    Args:
      defenses: by variant, each with the same classifier as its `undefended`.
      dataset: its test split is asked about and attacked.
      config: what is attacked with what.
      folder: the run's.
      reporter: told of progress.

    Returns:
      The file's content: "dataset", "fingerprint", "classifier" (its architecture, None where it
      is not known), "kind", "dropout" (True) and "rows". Each row has `IDENTITY`; "queries", what
      the substitute cost; "agreement", see `attacks.Substitute`; the undefended classifier's
      accuracy on clean and attacked images, "clean_undefended" and "undefended"; and under
      "variants" by name a defense's accuracies "clean" and "robust", and the 95% Wilson "interval"
      of the latter. The oracle is "undefended" or a variant, which then is the only one judged.

    Raises:
      InputError: before any work, when something does not fit or another program is in the folder.
    """
    reporter = reporter or Silent()
    undefended, header = _check_defenses(defenses, dataset)
    classes = len(dataset.info.class_names)
    for architecture in config.substitutes:
        _check_substitute(architecture, classes, dataset.info.image_shape)
    seeds, attacked = divide(dataset.test, config.count)
    check_writable(folder)
    with locked(folder, reporter.note):
        rows = _read(folder / FILE, header)
        wanted = {
            (architecture, oracle, config.eps, len(attacked), config.seed): judged
            for oracle, judged in _oracles(defenses, config.oracle).items()
            for architecture in config.substitutes
        }
        missing = [i for i in wanted if i not in rows or [*rows[i]["variants"]] != wanted[i]]
        done = len(wanted) - len(missing)
        reporter.start("black box", done, len(wanted), 1)
        models: dict[str, Logits] = {UNDEFENDED: undefended, **defenses}
        plain = to_float(attacked.images)
        clean = _right(models, plain, attacked.labels) if missing else {}
        for place, identity in enumerate(missing, done + 1):
            architecture, oracle, *_ = identity
            learned = learn(architecture, models[oracle], seeds, classes, config.seed)
            images = craft(FGSM(eps=config.eps), always(learned.logits_fn), attacked)
            judged = {name: models[name] for name in (UNDEFENDED, *wanted[identity])}
            rows[identity] = _row(identity, learned, clean, _right(judged, images, attacked.labels))
            write_atomic(folder / FILE, json.dumps({**header, "rows": [*rows.values()]}, indent=1))
            reporter.update(place, {})
        return {**header, "rows": [*rows.values()]}


def _check_defenses(
    defenses: Mapping[str, Defense], dataset: Dataset
) -> tuple[Logits, dict[str, Any]]:
    """The undefended classifier, and what the file says of all rows."""
    classes = len(dataset.info.class_names)
    if not defenses or UNDEFENDED in defenses:
        raise InputError(
            f"defenses named {tuple(defenses)} cannot be attacked; "
            f"give one or more, none of them named {UNDEFENDED!r}."
        )
    for name, defense in defenses.items():
        if getattr(defense, "undefended", None) is None:
            raise InputError(
                f"the {name} defense ({defense.kind}) has no undefended classifier to learn from; "
                "give a run of Defense-VAE or MAD-VAE."
            )
        if defense.spec.classes != classes:
            raise InputError(
                f"the {name} defense tells {defense.spec.classes} classes apart and "
                f"{dataset.info.name} has {classes}; give the data it was trained on."
            )
    first: Any = next(iter(defenses.values()))
    return first.undefended, {
        "dataset": dataset.info.name,
        "fingerprint": dataset.info.fingerprint,
        "classifier": getattr(first.spec, "classifier", None),
        "kind": first.kind,
        "dropout": True,  # in a substitute's training; files of before it was drawn lack it
    }


def _check_substitute(architecture: str, classes: int, shape: tuple[int, int, int]) -> None:
    module = classifier(architecture, classes)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    if "batch_stats" in jax.eval_shape(module.init, jax.random.key(0), image):
        raise InputError(
            f"substitute {architecture!r} has BatchNorm, whose statistics a substitute's training "
            "does not follow; use one without, such as b."
        )


def _oracles(defenses: Mapping[str, Defense], oracle: Oracle) -> dict[str, list[str]]:
    """Who is asked, with the variants that are then judged; the papers' oracle first."""
    published = {UNDEFENDED: [*defenses]}
    deployed = {name: [name] for name in defenses}
    both = {**published, **deployed}
    return {"undefended": published, "deployed": deployed, "both": both}[oracle]


def _read(path: pathlib.Path, header: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Finished rows by identity; none where the file is another's or damaged."""
    try:
        stored = read_json(path, "delete it.")
        if any(stored[name] != value for name, value in header.items()):
            return {}
        rows = [{**row, "variants": dict(row["variants"])} for row in stored["rows"]]
        return {tuple(row[name] for name in IDENTITY): row for row in rows}
    except (InputError, KeyError, TypeError):
        return {}


def _right(models: Mapping[str, Logits], images: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """On how many of the images float32 [N, H, W, C] each model names the label [N]."""
    found = {}
    for name, model in models.items():
        fn = LogitsFunction.of(model)
        found[name] = int((in_batches(partial(_named, fn.judge or fn), images) == labels).sum())
    return found


@jax.jit
def _named(fn: LogitsFunction, x: jax.Array) -> jax.Array:
    return jnp.argmax(fn(x), axis=-1)


def _row(
    identity: Sequence[Any],
    learned: Substitute,
    clean: Mapping[str, int],
    right: Mapping[str, int],
) -> dict[str, Any]:
    """A row of the images that each model names rightly, without and with the attack."""
    named = dict(zip(IDENTITY, identity))
    n = named["n"]
    return {
        **named,
        "queries": learned.queries,
        "agreement": learned.agreement,
        "clean_undefended": clean[UNDEFENDED] / n,
        "undefended": right[UNDEFENDED] / n,
        "variants": {
            name: {
                "clean": clean[name] / n,
                "robust": robust / n,
                "interval": list(wilson_interval(robust, n)),
            }
            for name, robust in right.items()
            if name != UNDEFENDED
        },
    }


def as_table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text of what `measure` returns: accuracies in percent, with intervals.

    A line each row, and before those of a number of images one without attack.
    """
    rows = content["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["variants"]))
    header = ["substitute", "oracle", "eps", "images", "seed", "agreement %"]
    header += [f"{name} %" for name in (UNDEFENDED, *names)]
    lines = []
    for n in dict.fromkeys(row["n"] for row in rows):
        same = [row for row in rows if row["n"] == n]
        clean = {name: found["clean"] for row in same for name, found in row["variants"].items()}
        line = ["none", "-", "-", str(n), "-", "-", percent(same[0]["clean_undefended"])]
        lines.append(line + [percent(clean.get(name)) for name in names])
        for row in same:
            line = [row["substitute"], row["oracle"], eps_name(row["eps"]), str(n)]
            line += [str(row["seed"]), percent(row["agreement"]), percent(row["undefended"])]
            lines.append(line + [_cell(row["variants"].get(name)) for name in names])
    return header, lines


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{percent(found['robust'])} ({percent(low)}-{percent(high)})"


def as_document(content: Mapping[str, Any]) -> str:
    """The table in Markdown, with what it shows."""
    of = f" of classifier {content['classifier']}" if content["classifier"] else ""
    lines = [
        f"# FGSM from a substitute: {content['kind']}{of} on {content['dataset']}",
        "",
        "Accuracies in percent, in brackets 95% Wilson intervals. Each line is a substitute, "
        "trained on its oracle's answers and attacked with FGSM. What it gives is shown to all "
        "defenses where the oracle is the undefended classifier, as in the papers, and to the one "
        f"that answered where it is a deployed defense. The {SEEDS} test images that the attacker "
        "begins with are not among those attacked.",
    ]
    return "\n".join([*lines, "", as_markdown(*as_table(content)), ""])
