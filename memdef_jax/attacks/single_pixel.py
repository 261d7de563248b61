"""Attacks that change a single pixel, by queries alone: random search and differential evolution.

Candidates are judged one per image at a time, so the model always sees the batch it was given
(functions with a part for each image stay right) and memory does not grow with the population.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.attack import Attack, check_count, judge_clean, static
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError

METHODS = ("random", "evolution")
_SCALE = 0.5  # F of the paper
_MEAN, _SPREAD = 128 / 255, 127 / 255  # of the first colours


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Order:
    """What random search remembers."""

    iteration: jax.Array  # int32 [B]
    order: jax.Array  # pixels to try, int32 [B, pixels]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Population:
    """What evolution remembers."""

    iteration: jax.Array  # int32 [B]
    key: jax.Array  # typed keys [B]
    genes: jax.Array  # [B, population, 2 + C]: row and column in [0, 1), colour
    fitness: jax.Array  # [B, population]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SinglePixel(Attack):
    """One pixel, all its channels, set to what fools the model.

    "random" tries pixels drawn without replacement, each first black and then white, and takes
    the first that fools (Narodytska & Kasiviswanathan 2016, arXiv 1612.06299, algorithm 1; MAD-VAE
    tests with 100 pixels). A step is one forward pass, so there are up to 2 * steps.

    "evolution" is differential evolution of position and colour (Su et al. 2019, arXiv
    1710.08864): child = a + 0.5 * (b - c) of three different members, no crossover, each child
    against the member in whose place it was made. Positions that leave the image come in on the
    other side, colours are clipped. A step is one generation of `population` forward passes; the
    first population costs as many more.

    Either way one more pass judges the clean image, which is left alone when it fools by itself
    and is also what a failure returns.

    Attributes:
      method: "random" or "evolution".
      steps: pixels tried, or generations.
      population: members of the population, at least 4; only for "evolution".
      targeted: labels are targets to be reached.

    Raises:
      InputError: for an unknown method, a count below 1 or a population below 4.
    """

    method: str = static("random")
    steps: int = static(100)
    population: int = static(400)
    targeted: bool = static(False)
    norm = "l0"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"method {self.method!r} is unknown; choose one of {', '.join(METHODS)}."
            )
        check_count("steps", self.steps)
        check_count("population", self.population)
        if self.population < 4:
            raise InputError(
                f"population {self.population} is below 4; a child has three parents beside "
                "the member it replaces."
            )

    @property
    def num_steps(self) -> int:
        return self.steps if self.method == "evolution" else 2 * self.steps

    @property
    def random(self) -> bool:
        return True

    @property
    def gradient_free(self) -> bool:
        return True

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = judge_clean(fn, State.blank(x, y), self.targeted)
        if self.method == "random":
            order = jax.vmap(lambda key: _some(key, x.shape[1] * x.shape[2], self.steps))(keys)
            return replace(state, own=_Order(y * 0, order))
        genes = jax.vmap(lambda key: _first_generation(key, self.population, x.shape[3]))(keys)
        state, fitness = self._judge_all(fn, state, genes)
        return replace(state, own=_Population(y * 0, keys, genes, fitness))

    def step(self, fn: LogitsFunction, state: State) -> State:
        state = (self._evolve if self.method == "evolution" else self._try_next)(fn, state)
        own = replace(state.own, iteration=state.own.iteration + 1)
        return replace(state, steps=state.steps + 1, own=own)

    def _try_next(self, fn: LogitsFunction, state: State) -> State:
        own: _Order = state.own
        white = own.iteration % 2
        pixel = jnp.take_along_axis(own.order, own.iteration[:, None] // 2, axis=1, mode="clip")
        colour = jnp.broadcast_to(white[:, None], (len(white), state.x.shape[3]))
        image = _paint(state.x, pixel[:, 0], colour.astype(jnp.float32))
        _, hit, nan = self._judge(fn, state, image)
        state = _take(state.count(1, 0), image, hit)
        # An image may have fewer pixels than there are steps.
        last = own.iteration + 1 == 2 * own.order.shape[1]
        return replace(state, done=state.success | last, nan=state.nan | nan)

    def _evolve(self, fn: LogitsFunction, state: State) -> State:
        own: _Population = state.own
        keys = jax.vmap(jax.random.fold_in)(own.key, own.iteration + 1)
        children = jax.vmap(_children)(keys, own.genes)
        state, fitness = self._judge_all(fn, state, children)
        better = fitness > own.fitness
        own = replace(
            own,
            genes=jnp.where(better[..., None], children, own.genes),
            fitness=jnp.where(better, fitness, own.fitness),
        )
        return replace(state, own=own)

    def _judge_all(
        self, fn: LogitsFunction, state: State, genes: jax.Array
    ) -> tuple[State, jax.Array]:
        """Fitness [B, population] of the candidates, of which the fittest that fools is taken."""

        def judge(member: jax.Array) -> tuple[jax.Array, ...]:
            return self._judge(fn, state, _express(state.x, member))

        fitness, hit, nan = (
            jnp.moveaxis(out, 0, 1) for out in jax.lax.map(judge, jnp.moveaxis(genes, 1, 0))
        )
        best = jnp.argmax(jnp.where(hit, fitness, -jnp.inf), axis=1)
        # All fitnesses of those that fool may be infinite.
        best = jnp.where(jnp.take_along_axis(hit, best[:, None], 1)[:, 0], best, hit.argmax(1))
        winner = jnp.take_along_axis(genes, best[:, None, None], axis=1)[:, 0]
        state = state.count(self.population, 0)
        state = _take(state, _express(state.x, winner), hit.any(1))
        return replace(state, nan=state.nan | nan.any(1)), fitness

    def _judge(
        self, fn: LogitsFunction, state: State, image: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Fitness, whether it fools and whether the model gave NaN, all [B]."""
        logits = fn(image)
        value = objectives.gain("cross_entropy", logits, state.y, self.targeted)
        hit = fn.fooled(image, logits, state.y, self.targeted)
        return jnp.where(jnp.isnan(value), -jnp.inf, value), hit, objectives.has_nan(logits)


def _take(state: State, image: jax.Array, hit: jax.Array) -> State:
    """End the samples that an image fools; those that fooled before keep theirs."""
    hit = hit & ~state.success
    return replace(
        state,
        image=jnp.where(balls.per_image(hit), image, state.image),
        success=state.success | hit,
        score=jnp.where(hit, jnp.inf, state.score),
        done=state.success | hit,
    )


def _some(key: jax.Array, pixels: int, count: int) -> jax.Array:
    """So many different pixels, or all."""
    return jax.random.permutation(key, pixels)[:count].astype(jnp.int32)


def _paint(x: jax.Array, pixel: jax.Array, colour: jax.Array) -> jax.Array:
    """Images with one pixel [B], counted along the rows, in a colour [B, C]."""
    height, width = x.shape[1:3]
    here = jnp.arange(height * width).reshape(height, width) == pixel[:, None, None]
    return jnp.where(here[..., None], colour[:, None, None, :], x)


def _express(x: jax.Array, genes: jax.Array) -> jax.Array:
    """The candidate images of one gene vector [B, 2 + C] each."""
    size = jnp.array(x.shape[1:3])
    row, column = jnp.moveaxis(jnp.minimum((genes[:, :2] * size).astype(jnp.int32), size - 1), 1, 0)
    return _paint(x, row * x.shape[2] + column, genes[:, 2:])


def _first_generation(key: jax.Array, population: int, channels: int) -> jax.Array:
    """Uniform positions and Gaussian colours, [population, 2 + C]."""
    first, second = jax.random.split(key)
    position = jax.random.uniform(first, (population, 2))
    colour = _MEAN + _SPREAD * jax.random.normal(second, (population, channels))
    return jnp.concatenate([position, jnp.clip(colour, 0.0, 1.0)], axis=1)


def _children(key: jax.Array, genes: jax.Array) -> jax.Array:
    """A child for each place of the population [population, 2 + C]."""
    count = len(genes)
    # Three different steps ahead of the own place; each skips those taken before it.
    limits = jnp.array([[1], [2], [3]])
    a, b, c = jax.random.randint(key, (3, count), 1, count + 1 - limits)
    b = b + (b >= a)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    c = c + (c >= low)
    c = c + (c >= high)
    one, two, three = (genes[(jnp.arange(count) + ahead) % count] for ahead in (a, b, c))
    child = one + _SCALE * (two - three)
    return jnp.concatenate([child[:, :2] % 1.0, jnp.clip(child[:, 2:], 0.0, 1.0)], axis=1)
