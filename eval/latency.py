"""What the memory costs in time, as the Memory Defense paper reports it for 10 images.

    python -m eval.latency --run DIR

A few seconds. Without memory the decoder follows the encoder, with the same weights: not a model
that was trained so, which would take the same time. All numbers are in DIR/latency.json.
"""

from __future__ import annotations

import json
import pathlib

import tyro

from memdef_jax import console
from memdef_jax.defenses import load_run
from memdef_jax.evaluation.papers import latency
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.files import write_atomic


def main(run: pathlib.Path, images: int = 10, repeats: int = 500, warm_up: int = 20) -> None:
    """Time a run's defense with and without its memory.

    Args:
      run: folder that train.memory_defense filled.
      images: in a call; random ones, for their content does not change the time.
      repeats: calls of each route that are timed.
      warm_up: calls of each before that.
    """
    defense = list(load_run(run).values())[-1]
    x = latency.images_of(defense, images)
    seconds = latency.measure(latency.routes(defense, x), repeats, warm_up)
    found = latency.summarise(seconds, images)
    write_atomic(run / "latency.json", json.dumps(found, indent=1))
    header, lines = latency.as_table(found)
    print(as_text(f"{images} images on {found['device']}; paper: RTX 2080 Ti", header, lines))
    print(f"numbers: {run / 'latency.json'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
