"""The Square attack: random search over squares, by queries alone.

The original draws one window for all images of a batch. Here position and signs are drawn for
every image from its own key, so an image's result does not depend on its neighbours. Windows of
every size run in one compiled program: they are comparisons of coordinates, not slices. A step
draws only the few numbers it needs, since random numbers for whole images would cost about as much
as a small model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.attack import (
    Attack,
    Number,
    check_budget,
    check_count,
    check_number,
    static,
)
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError, is_traced

# The window's area is halved after each of these iterations of HORIZON, as in the authors' and
# AutoAttack's code.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
HORIZON = 10_000
_GRID = 5  # tiles along the shorter side of the L2 start
_LEAST_L2 = 3  # side of the smallest L2 window
_TINY = 1e-30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Memory:
    """What is remembered; the best loss so far is the state's score."""

    key: jax.Array  # typed keys [B]
    iteration: jax.Array  # within this run, int32 [B]
    reference: jax.Array | None  # clean logits [B, K], for losses that look at them


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square attack (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3).

    Starts from vertical stripes (Linf) or a grid of tiles (L2) at full budget. Each step proposes
    to repaint a random square with +-eps a channel (Linf, algorithm 2), or to move the energy of
    one square into a new bump in another (L2, algorithm 3), and keeps what raises the loss. The
    squares shrink on a fixed schedule. One forward pass a step, no gradients; two more passes
    judge the clean image and the start. Defaults are those of AutoAttack.

    Attributes:
      eps: radius of the ball in [0, 1] pixels; a number, or one a sample [B].
      norm: "linf" or "l2".
      steps: proposals.
      p_init: share of the image's pixels in the first squares, in (0, 1].
      restarts: runs in all, each from other draws.
      loss: what is raised, one of `objectives.LOSSES`; None takes, like AutoAttack, "margin", or
        "cross_entropy" for targets.
      rescale_schedule: stretch the schedule, made for 10,000 steps, to `steps`.
      targeted: labels are targets to be reached.
      early_stop: a sample is done as soon as it fools, and left alone if it does so by itself.
        Without it every sample uses all steps and restarts, and the highest loss is returned.

    Raises:
      InputError: for an unknown norm or loss, or a count below 1.
    """

    eps: Number
    norm: str = static("linf")
    steps: int = static(5000)
    p_init: Number = 0.8
    restarts: int = static(1)
    loss: str | None = static(None)
    rescale_schedule: bool = static(False)
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self._objective, self.targeted)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def repeats(self) -> int:
        return self.restarts

    @property
    def settles(self) -> bool:
        return self.early_stop

    @property
    def random(self) -> bool:
        return True

    @property
    def gradient_free(self) -> bool:
        return True

    @property
    def core(self) -> Attack:
        # Only a rescaled schedule depends on the number of steps.
        return replace(self, steps=self.steps if self.rescale_schedule else 1, restarts=1)

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        loss, notes = objectives.for_classes(self._objective, classes)
        return (replace(self, loss=loss),), notes

    def check(self) -> None:
        check_budget(self.eps, self.norm)
        check_number("p_init", self.p_init, above_zero=True)
        if not is_traced(self.p_init) and np.max(self.p_init, initial=0.0) > 1.0:
            raise InputError(
                f"p_init {np.max(self.p_init):g} is above 1; it is a share of the image's pixels."
            )

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        reference = None
        if self.early_stop or objectives.needs_reference(self._objective, self.targeted):
            logits = fn(x)
            hit = fn.fooled(x, logits, y, self.targeted) & self.early_stop
            state = replace(
                state.count(1, 0),
                success=hit,
                score=jnp.where(hit, jnp.inf, state.score),
                nan=objectives.has_nan(logits),
            )
            if objectives.needs_reference(self._objective, self.targeted):
                reference = logits
        state = replace(state, own=_Memory(keys, y * 0, reference))
        start = _stripes if self.norm == "linf" else _tiles
        return self._judge(fn, state, start(x, self.eps, keys))

    def step(self, fn: LogitsFunction, state: State) -> State:
        own: _Memory = state.own
        side = self._side(own.iteration, state.x.shape)
        # Number 0 was the start's.
        words = _draw(own.key, own.iteration + 1, 5 + state.x.shape[3])
        propose = _repaint if self.norm == "linf" else _redistribute
        proposal = propose(state.image, state.x, self.eps, side, words)
        own = replace(own, iteration=own.iteration + 1)
        return self._judge(fn, replace(state, steps=state.steps + 1, own=own), proposal)

    @property
    def _objective(self) -> str:
        return self.loss or ("cross_entropy" if self.targeted else "margin")

    def _judge(self, fn: LogitsFunction, state: State, proposal: jax.Array) -> State:
        """Take the proposal where it is better than what the state has, by one forward pass."""
        logits = fn(proposal)
        value = objectives.gain(
            self._objective, logits, state.y, self.targeted, state.own.reference
        )
        nan = objectives.has_nan(logits)
        hit = fn.fooled(proposal, logits, state.y, self.targeted)
        settled = hit & self.early_stop
        # A sample that fooled before has an infinite score and keeps its image.
        better = ((value > state.score) | (settled & (state.score < jnp.inf))) & ~nan
        success = jnp.where(better, hit, state.success)
        return replace(
            state.count(1, 0),
            image=jnp.where(balls.per_image(better), proposal, state.image),
            success=success,
            score=jnp.where(better, jnp.where(settled, jnp.inf, value), state.score),
            done=success & self.early_stop,
            nan=state.nan | nan,
        )

    def _side(self, iteration: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Side [B] of the square windows in the given iterations [B], counted from 0."""
        horizon = self.steps if self.rescale_schedule else HORIZON
        first = np.array([-(-(after + 1) * horizon // HORIZON) for after in HALVINGS])
        halvings = jnp.sum(iteration[:, None] >= first, axis=1)
        area = self.p_init * jnp.exp2(-halvings.astype(jnp.float32)) * (shape[1] * shape[2])
        side = jnp.round(jnp.sqrt(area)).astype(jnp.int32)
        if self.norm == "linf":
            return jnp.maximum(side, 1)
        side = jnp.maximum(side, _LEAST_L2)
        return side + (side % 2 == 0)


def _draw(keys: jax.Array, number: jax.Array, count: int) -> jax.Array:
    """Random words uint32 [B, count], the given draw [B] of each key [B]."""

    def draw(key: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, number), (count,), jnp.uint32)

    return jax.vmap(draw)(keys, number)


def _coin(words: jax.Array) -> jax.Array:
    """A fair bool from each word."""
    return words >> 31 == 1


def _signs(words: jax.Array) -> jax.Array:
    return jnp.where(_coin(words), jnp.float32(1), jnp.float32(-1))


def _below(words: jax.Array, count: jax.Array) -> jax.Array:
    """Integers drawn uniformly from 0 to count - 1."""
    unit = (words >> 8).astype(jnp.float32) * jnp.float32(2**-24)
    return (unit * count).astype(jnp.int32)


def _stripes(x: jax.Array, eps: jax.Array, keys: jax.Array) -> jax.Array:
    """+-eps for each column and channel."""
    batch, _, width, channels = x.shape
    signs = _signs(_draw(keys, jnp.zeros(batch, jnp.int32), width * channels))
    signs = signs.reshape(batch, 1, width, channels)
    return jnp.clip(x + balls.per_image(eps) * signs, 0.0, 1.0)


def _tiles(x: jax.Array, eps: jax.Array, keys: jax.Array) -> jax.Array:
    """A grid of bumps, each turned and signed by chance, of length eps in all."""
    batch, height, width, channels = x.shape
    side = max(min(height, width) // _GRID, 1)
    down, across = height // side, width // side
    words = _draw(keys, jnp.zeros(batch, jnp.int32), down * across * (channels + 1))
    words = words.reshape(batch, down, 1, across, 1, channels + 1)
    still, turned = _bump(
        jnp.zeros((2, 2), jnp.int32), jnp.full((2, 2), side), jnp.array([False, True]), (side, side)
    )[:, None, :, None, :, :]
    delta = jnp.where(_coin(words[..., :1]), turned, still) * _signs(words[..., 1:])
    delta = delta.reshape(batch, down * side, across * side, channels)
    # Each tile has length one in every channel.
    delta = delta * balls.per_image(eps / np.float32(np.sqrt(down * across * channels)))
    spare = height - down * side, width - across * side
    delta = jnp.pad(delta, [(0, 0), *((n // 2, n - n // 2) for n in spare), (0, 0)])
    return balls.project(x + delta, x, eps, "l2")


def _repaint(
    image: jax.Array, x: jax.Array, eps: jax.Array, side: jax.Array, words: jax.Array
) -> jax.Array:
    """One window to +-eps, a sign a channel (algorithm 2).

    The paper adds +-2 eps to an image of the ball and projects, which comes to the same.
    """
    size = jnp.minimum(side[:, None], jnp.array(x.shape[1:3]))
    start = _below(words[:, :2], jnp.array(x.shape[1:3]) + 1 - size)
    signs = balls.per_image(eps) * _signs(words[:, None, None, 5:])
    return jnp.where(_window(start, size, x.shape[1:3]), jnp.clip(x + signs, 0.0, 1.0), image)


def _redistribute(
    image: jax.Array, x: jax.Array, eps: jax.Array, side: jax.Array, words: jax.Array
) -> jax.Array:
    """The energy of two windows, and what is unused, into a new bump in the first (algorithm 3)."""
    shape = x.shape[1:3]
    size = jnp.minimum(side[:, None], jnp.array(shape))
    room = jnp.array(shape) + 1 - size
    start = _below(words[:, :2], room)
    here, there = _window(start, size, shape), _window(_below(words[:, 2:4], room), size, shape)
    bump = _bump(start, size, _coin(words[:, 4]), shape)

    def energy(delta: jax.Array) -> jax.Array:
        return jnp.sum(delta**2, axis=(1, 2), keepdims=True)

    delta = image - x
    old = jnp.where(here, delta, 0.0)
    inside = energy(old)
    taken = inside + energy(jnp.where(there & ~here, delta, 0.0))
    # Below zero where rounding made the image too long, so that rounding does not add up.
    unused = balls.per_image(eps) ** 2 - jnp.sum(energy(delta), axis=3, keepdims=True)
    budget = jnp.sqrt(jnp.maximum(taken + unused / x.shape[3], 0.0))
    new = _signs(words[:, None, None, 5:]) * bump + old / jnp.sqrt(jnp.maximum(inside, _TINY))
    new = new * (budget / jnp.sqrt(jnp.maximum(energy(new), _TINY)))
    return jnp.clip(x + jnp.where(here, new, jnp.where(there, 0.0, delta)), 0.0, 1.0)


def _window(start: jax.Array, size: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Whether a pixel lies in its image's window, bool [B, H, W, 1]; start and size are [B, 2]."""
    rows, columns = (
        (jnp.arange(n) >= start[:, i, None]) & (jnp.arange(n) < (start + size)[:, i, None])
        for i, n in enumerate(shape)
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _bump(
    start: jax.Array, size: jax.Array, turned: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """The pattern eta of an L2 window, [B, H, W, 1]: length one, zero outside.

    A window is halved, across its rows or, `turned`, across its columns. Each half is a pyramid
    of unit length around its middle, one up and one down. A pixel at Chebyshev distance d from the
    middle has height sum of 1/k**2 for k from d + 1 to n + 1, n being half the longer side. That
    is a difference of two sums, which grow with their ends: so the larger of two distances need
    only be taken after the sums are looked up, one row and one column an image.
    """
    sums = jnp.asarray(np.cumsum([0.0, *(np.arange(1, max(shape) // 2 + 3) ** -2.0)]), jnp.float32)

    def along(axis: int, split: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each coordinate: sum up to its distance, up to the border, and whether below."""
        at = jnp.arange(shape[axis]) - start[:, axis, None]
        whole, split = size[:, axis, None], split[:, None]
        half = jnp.where(split, whole // 2, 0)
        second = split & (at >= half)
        middle = jnp.where(second, whole - half, jnp.where(split, half, whole)) // 2
        distance = jnp.abs(at - jnp.where(second, half, 0) - middle)
        look = lambda index: jnp.take(sums, index, mode="clip")  # noqa: E731
        return look(distance), look(middle + 1), second

    distance, border, second = tuple(
        combine(row[:, :, None], column[:, None, :])
        for combine, row, column in zip(
            (jnp.maximum, jnp.maximum, jnp.logical_or), along(0, ~turned), along(1, turned)
        )
    )
    inside = _window(start, size, shape)[..., 0]
    height = jnp.where(inside, border - distance, 0.0)
    energy = height**2
    lower = jnp.sum(jnp.where(second, energy, 0.0), axis=(1, 2), keepdims=True)
    upper = jnp.sum(jnp.where(second, 0.0, energy), axis=(1, 2), keepdims=True)
    # A window one pixel wide has only one half.
    halves = (lower > 0).astype(jnp.float32) + (upper > 0)
    lower = -jax.lax.rsqrt(jnp.maximum(lower, _TINY) * halves)
    upper = jax.lax.rsqrt(jnp.maximum(upper, _TINY) * halves)
    return (height * jnp.where(second, lower, upper))[..., None]
