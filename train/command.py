"""The command line that all training programs share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from typing import Any, Literal

import tyro

from memdef_jax import console, data, defenses, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What the settings start from.

    Attributes:
      dataset: digits, mnist, fashion_mnist, cifar10 or folder:PATH.
      preset: named settings; quick takes minutes on a CPU, paper has the paper's.
      data_dir: where prepared datasets live (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
      raw_dir: a folder with the dataset's raw files.
      image_size: resize the images to this many pixels.
      gray: turn colours into one channel.
    """

    dataset: str = "fashion_mnist"
    preset: str = "quick"
    data_dir: str | None = None
    raw_dir: str | None = None
    image_size: int | None = None
    gray: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Preset):
    """Train; the settings shown are those of the chosen preset.

    Attributes:
      run: folder of this run; the same command again goes on where it was stopped.
      devices: how many to use; all by default.
      backend: what spreads a step over them.
      like: a run of the same program, of Memory Defense, Defense-VAE or MAD-VAE; what would be
        trained alike is copied from it.
    """

    run: pathlib.Path
    devices: int | None = None
    backend: Literal["shard_map", "pmap"] = "shard_map"
    like: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen(Preset):
    """What must be known before the settings can be shown."""

    run: pathlib.Path | None = None


def main(kind: str, config_type: type) -> None:
    """Read the command line and train.

    Args:
      kind: of the defense, see `defenses.PRESETS`.
      config_type: its configuration.
    """
    chosen, _ = tyro.cli(Chosen, add_help=False, return_unknown_args=True)
    shape = (32, 32, 3) if chosen.dataset == "cifar10" else (28, 28, 1)
    config = defenses.preset(chosen.preset, shape, kind=kind)  # the name may be unknown
    if not {"-h", "--help"} & set(sys.argv):
        load = functools.partial(
            data.load,
            chosen.dataset,
            data_dir=chosen.data_dir,
            raw_dir=chosen.raw_dir,
            image_size=chosen.image_size,
            gray=chosen.gray,
        )
        dataset = data.shared(load, chosen.run) if chosen.run else load()
        config = defenses.preset(
            chosen.preset, dataset.info.image_shape, len(dataset.train), kind=kind
        )
    settings: Any = tyro.conf.OmitSubcommandPrefixes[config_type]  # type: ignore[valid-type, misc]
    whole: Any = dataclasses.make_dataclass(
        "Arguments", [("config", settings)], bases=(Run,), frozen=True, kw_only=True
    )
    whole.__doc__ = Run.__doc__
    known = {**vars(chosen), "run": chosen.run or tyro.MISSING}
    arguments = tyro.cli(whole, default=whole(config=config, **known))
    defenses.fit(
        arguments.config,
        dataset,
        arguments.run,
        mesh=training.make_mesh(arguments.devices),
        backend=arguments.backend,
        reporter=console.ConsoleReporter(),
        like=arguments.like,
    )
    print(f"trained; now: python -m eval.robustness --run {arguments.run}")
