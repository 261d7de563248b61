"""What the memory costs in time, as the Memory Defense paper reports it for 10 images."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import __version__
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation.papers.published import SECONDS

WITHOUT, WITH, PIPELINE = "without_memory", "with_memory", "pipeline"
ROUTES = {
    WITHOUT: "autoencoder without memory, classifier-B",
    WITH: "autoencoder with memory, classifier-B",
    PIPELINE: "classifier-A, autoencoder with memory, classifier-B",
}


@jax.jit
def _rebuild_and_classify(defense: MemoryDefense, x: jax.Array, labels: jax.Array) -> jax.Array:
    return defense.classify(defense.reconstruct(x, labels))


@jax.jit
def _pipeline(defense: MemoryDefense, x: jax.Array) -> jax.Array:
    return defense(x)


def routes(defense: MemoryDefense, x: jax.Array) -> dict[str, Callable[[], jax.Array]]:
    """What is timed, by the names of `ROUTES`; each returns logits [B, K].

    The route without memory is the same layers and weights, the decoder following the encoder.

    Args:
      defense: with a memory.
      x: images float32 [B, H, W, C] in [0, 1].

    Raises:
      InputError: when the defense has no memory.
    """
    if not defense.spec.memory_rows:
        raise InputError("this defense has memory_rows 0; give a run with a memory.")
    stack = defense.variables["stack"]
    params = stack["params"]["autoencoder"]
    layers = {name: weights for name, weights in params.items() if name != "memory"}
    stack = {**stack, "params": {**stack["params"], "autoencoder": layers}}
    spec = dataclasses.replace(defense.spec, memory_rows=0)
    plain = MemoryDefense(spec, {**defense.variables, "stack": stack})
    # Arrays of the host would be copied to the device at every call.
    plain, defense, x = jax.device_put((plain, defense, x))
    labels = defense.select(x)
    return {
        WITHOUT: lambda: _rebuild_and_classify(plain, x, labels),
        WITH: lambda: _rebuild_and_classify(defense, x, labels),
        PIPELINE: lambda: _pipeline(defense, x),
    }


def measure(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 200,
    warm_up: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds of each call, [repeats] each, warm and interleaved.

    Every round makes each call once, and begins with another one, so that whatever slows the
    machine down for a while slows all of them.

    Args:
      calls: what is timed, until its result is ready.
      repeats: rounds.
      warm_up: rounds before the clock is read; the first compiles.
      clock: seconds.

    Raises:
      InputError: when a count is below 1.
    """
    for name, count in (("repeats", repeats), ("warm_up", warm_up)):
        if count < 1:
            raise InputError(f"{name} {count} is below 1; use 1 or more.")
    names = list(calls)
    seconds = {name: np.zeros(repeats) for name in names}
    for _ in range(warm_up):
        for call in calls.values():
            jax.block_until_ready(call())
    for repeat in range(repeats):
        for place in range(len(names)):
            name = names[(repeat + place) % len(names)]
            begin = clock()
            jax.block_until_ready(calls[name]())
            seconds[name][repeat] = clock() - begin
    return seconds


def summarise(seconds: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
    """Medians, quartiles and ratios, JSON-able.

    Args:
      seconds: of `measure` over `routes`.
      images: in a call.

    Returns:
      "routes": by name "median", "lower_quartile", "upper_quartile" and "repeats"; "ratio": of the
      medians with and without memory; "paper" and "paper_ratio": the paper's; "images", "device"
      and "versions".
    """
    measured = {}
    for name, values in seconds.items():
        low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
        measured[name] = {
            "median": middle,
            "lower_quartile": low,
            "upper_quartile": high,
            "repeats": len(values),
        }
    return {
        "images": images,
        "routes": measured,
        "ratio": measured[WITH]["median"] / measured[WITHOUT]["median"],
        "paper": dict(SECONDS),
        "paper_ratio": SECONDS[WITH] / SECONDS[WITHOUT],
        "device": jax.devices()[0].device_kind,
        "versions": {
            "memdef_jax": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }


def as_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of text of what `summarise` returns, in milliseconds."""
    header = ["route", "median ms", "quartiles ms", "paper ms"]
    lines = []
    for name, values in found["routes"].items():
        low, high = 1e3 * values["lower_quartile"], 1e3 * values["upper_quartile"]
        paper = found["paper"].get(name)
        lines.append(
            [
                ROUTES[name],
                f"{1e3 * values['median']:.3f}",
                f"{low:.3f}-{high:.3f}",
                "-" if paper is None else f"{1e3 * paper:.3f}",
            ]
        )
    lines.append(
        ["ratio with / without memory", f"{found['ratio']:.2f}", "", f"{found['paper_ratio']:.2f}"]
    )
    return header, lines


def images_of(defense: MemoryDefense, count: int, seed: int = 0) -> jax.Array:
    """Uniform random images float32 [count, H, W, C]: what they show does not change the time.

    Raises:
      InputError: when the count is below 1.
    """
    if count < 1:
        raise InputError(f"images {count} is below 1; use 1 or more.")
    return jax.random.uniform(jax.random.key(seed), (count, *defense.spec.image_shape), jnp.float32)
