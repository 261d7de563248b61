"""Whole-loop jit against a Python loop over a jitted step, for PGD.

    python -m benchmarks.attack_loop [--batch 128] [--steps 40] [--repeats 5]

About five minutes on two CPU cores, one with --steps 10. Both sides do the same work (random start,
every step on every sample, nobody judges the last iterate), warm, in the same process, in turn; the
ratio is that of the minima over the repeats. On a CPU the library's convolutions should come out at
1.1 or below: they carry a gradient that XLA runs as fast inside a loop as outside. A plain nn.Conv
model shows what happens without it, and why the library attacks in chunks of one step when it is
called eagerly on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from memdef_jax import console
from memdef_jax.attacks import PGD, balls, objectives
from memdef_jax.attacks.logits import Logits
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec
from memdef_jax.nn import Bound, ResNet18, SmallCNN
from memdef_jax.nn.layers import Conv

EPS, STEP_SIZE = 25 / 255, 0.0075


class SmallPlainCNN(nn.Module):
    """SmallCNN with Flax's own convolutions."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (5, 5), strides=2, padding=2)(x))
        x = nn.relu(nn.Conv(32, (5, 5), strides=2, padding=2)(x))
        x = nn.relu(nn.Dense(100)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)


class WideCNN(nn.Module):
    """Stride-1 convolutions between 32 channels, where loops hurt most."""

    classes: int
    plain: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features, stride in ((32, 1), (32, 1), (64, 2)):
            if self.plain:
                x = nn.relu(nn.Conv(features, (3, 3), strides=stride, padding=1)(x))
            else:
                x = nn.relu(Conv(features, 3, stride=stride, padding=1)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))


def whole_loop(steps: int) -> Callable[..., jax.Array]:
    """The library's attack under one jit."""
    attack = PGD(eps=EPS, step_size=STEP_SIZE, steps=steps, early_stop=False)
    return jax.jit(lambda model, x, y, key: attack.run(model, x, y, key=key).images)


def eager(steps: int) -> Callable[..., jax.Array]:
    """The library's attack called eagerly; it also judges the last iterate."""
    attack = PGD(eps=EPS, step_size=STEP_SIZE, steps=steps, early_stop=False)
    return lambda model, x, y, key: attack(model, x, y, key=key)


def python_loop(steps: int) -> Callable[..., jax.Array]:
    """The same attack written as a loop in Python over one jitted step."""
    eps = jnp.float32(EPS)

    @jax.jit
    def start(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.clip(x + jax.random.uniform(key, x.shape, minval=-eps, maxval=eps), 0.0, 1.0)

    @jax.jit
    def step(model: Logits, x: jax.Array, y: jax.Array, image: jax.Array) -> jax.Array:
        _, _, gradient = objectives.value_and_gradient(
            model, image, lambda logits: objectives.cross_entropy(logits, y)
        )
        moved = image + STEP_SIZE * balls.ascent(gradient, "linf")
        return jnp.clip(x + jnp.clip(moved - x, -eps, eps), 0.0, 1.0)

    def attack(model: Logits, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        image = start(x, key)
        for _ in range(steps):
            image = step(model, x, y, image)
        return image

    return attack


def compare(model: Logits, x: jax.Array, y: jax.Array, steps: int, repeats: int) -> list[float]:
    """Seconds of [whole loop, Python loop, eager], the best of the repeats, run in turn."""
    runs = [partial(make(steps), model, x, y) for make in (whole_loop, python_loop, eager)]
    best = [float("inf")] * len(runs)
    for repeat in range(repeats + 1):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            jax.block_until_ready(run(jax.random.key(repeat)))
            if repeat:  # the first compiles
                best[i] = min(best[i], time.perf_counter() - begin)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="PGD: whole-loop jit against a Python loop")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    key = jax.random.key(0)
    x = jax.random.uniform(key, (options.batch, 28, 28, 1))
    y = jax.random.randint(key, (options.batch,), 0, 10)
    device = jax.devices()[0]
    print(
        f"PGD-{options.steps}, batch {options.batch} of 28x28x1, float32, best of "
        f"{options.repeats}, {device.platform} ({device.device_kind}), "
        f"jax {jax.__version__}, flax {flax.__version__}\n"
    )
    print(f"{'model':<34}{'whole loop s':>14}{'python loop s':>15}{'ratio':>8}{'eager s':>10}")
    spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10)
    defense = MemoryDefense(
        spec, {"selector": spec.init_selector(key), "stack": spec.init_stack(key)}
    )
    surfaces = defense.surfaces(x, y)

    def bound(module: nn.Module) -> Bound:
        return Bound(module, jax.jit(module.init)(key, x[:1]))

    models: dict[str, Logits] = {
        "SmallCNN": bound(SmallCNN(10)),
        "Memory Defense, frozen mask": surfaces["frozen_mask"],
        "Memory Defense, soft mask": surfaces["soft_mask"],
        "32-channel CNN, library Conv": bound(WideCNN(10, plain=False)),
        "ResNet-18, a fifth of the steps": bound(ResNet18(10)),
        "for contrast: SmallCNN, nn.Conv": bound(SmallPlainCNN(10)),
        "for contrast: 32-channel, nn.Conv": bound(WideCNN(10, plain=True)),
    }
    for name, model in models.items():
        steps = max(1, options.steps // 5) if "ResNet" in name else options.steps
        whole, python, chunks = compare(model, x, y, steps, options.repeats)
        ratio = whole / python
        print(f"{name:<34}{whole:>14.3f}{python:>15.3f}{ratio:>8.2f}{chunks:>10.3f}", flush=True)


if __name__ == "__main__":
    console.prepare_cpu()
    main()
