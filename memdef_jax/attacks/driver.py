"""The one place that loops: as a single lax loop under a trace, or in chunks with packing.

Both ways run the same four pure functions (`_begin`, `_advance`, `_end`, `merge`), and everything
random is drawn per sample, so they give the same images. The compiled functions live at module
level and take attack, model and state as arguments: another eps, another checkpoint or another
batch of the same size compiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import balls
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import Result, State, merge, rows, where
from memdef_jax.checks import InputError, is_traced

if TYPE_CHECKING:
    from memdef_jax.attacks.attack import Attack

# Steps a dispatch on accelerators. On a CPU it is one, because XLA's CPU backend runs the gradient
# of an ordinary convolution up to ten times slower inside a loop than in the entry computation.
CHUNK = 8
# Smaller batches are powers of two, each at most a quarter of the one before, so that there are few
# programs to compile; at most this many, none below the floor.
SMALLER_SIZES = 3
SMALLEST = 8


def under_trace(fn: LogitsFunction, *trees: Any) -> bool:
    """Whether a value is abstract, or operations on concrete values would be staged by a jit."""
    staged = isinstance(jax.lax.add(1.0, 1.0), jax.core.Tracer)
    return staged or is_traced(fn, fn.captured, trees)


def classes(fn: LogitsFunction, x: jax.Array) -> int:
    """Number of classes, without running the model; cached with the model's trace."""
    return int(_logits.eval_shape(fn, x).shape[1])


def packing_sizes(batch: int) -> tuple[int, ...]:
    """The batch sizes, largest first, that an eager run over `batch` samples may compile for."""
    sizes = [batch]
    while len(sizes) <= SMALLER_SIZES and sizes[-1] // 4 >= SMALLEST:
        sizes.append(2 ** ((sizes[-1] // 4).bit_length() - 1))
    return tuple(sizes)


def whole_loop(
    attack: Attack, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: jax.Array | None
) -> Result:
    """The attack as one lax loop (two, nested, with restarts), for use under a trace."""
    attack, fn, x, y, keys = jax.lax.stop_gradient((attack, fn, x, y, keys))
    core = attack.core

    def go_on(carry: tuple[jax.Array, State]) -> jax.Array:
        taken, state = carry
        return (taken < attack.num_steps) & ~jnp.all(state.done)

    def one_step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        taken, state = carry
        return taken + 1, _advance(core, fn, state)

    def one_run(restart: int | jax.Array, best: State) -> State:
        state = _begin(core, fn, best, keys, restart)
        if attack.num_steps == 1:
            state = _advance(core, fn, state)
        else:
            _, state = jax.lax.while_loop(go_on, one_step, (jnp.int32(0), state))
        return _keep(attack.settles, best, _end(core, fn, state))

    best = State.blank(x, y)
    if attack.repeats == 1:
        best = one_run(0, best)
    else:
        best = jax.lax.fori_loop(0, attack.repeats, one_run, best)
    return jax.lax.stop_gradient(result(attack.norm, best))


def in_chunks(
    attack: Attack, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: jax.Array | None
) -> Result:
    """The attack in compiled chunks; between them, done samples leave the batch.

    Raises:
      InputError: when the model gives NaN for an image.
    """
    devices: Any = x.sharding.device_set
    # Packing a batch that is spread over devices would move images between them.
    sizes = packing_sizes(len(x)) if len(devices) == 1 else (len(x),)
    chunk = 1 if next(iter(devices)).platform == "cpu" else CHUNK
    best = _blank(x, y)
    for restart in range(attack.repeats):
        best = _one_run(attack, fn, best, keys, restart, sizes, chunk)
        if restart + 1 < attack.repeats and np.asarray(best.done).all():
            break
    return _result(attack.norm, best)


def _one_run(
    attack: Attack,
    fn: LogitsFunction,
    best: State,
    keys: jax.Array | None,
    restart: int,
    sizes: Sequence[int],
    chunk: int,
) -> State:
    """One run from one start over the samples of `best` that are not done."""
    everyone = np.arange(sizes[0])
    kept = everyone[_pack(np.asarray(best.done), sizes)]
    core = attack.core
    here, packed_fn, packed_best = core, fn, best
    if len(kept) < sizes[0]:
        packed_best, keys = _rows((best, keys), kept)
        here, packed_fn = _attack_rows(core, kept), fn.take(kept)
    state = _begin_compiled(here, packed_fn, packed_best, keys, restart)
    taken = 0
    while True:
        done, nan = jax.device_get((state.done, state.nan))
        _refuse_nan(nan, kept)
        if done.all() or taken == attack.num_steps:
            break
        order = _pack(done, sizes)
        if len(order) < len(kept):
            best = _store(attack, best, state, kept)
            state, kept = _rows(state, order), kept[order]
            here, packed_fn = _attack_rows(core, kept), fn.take(kept)
        steps = min(taken + 1, chunk, attack.num_steps - taken)
        if chunk == 1:
            state = _advance_compiled(here, packed_fn, state)
        else:
            state = _advance_many(here, packed_fn, state, steps)
        taken += steps
    if not done.all():
        state = _end_compiled(here, packed_fn, state)
        _refuse_nan(np.asarray(state.nan), kept)
    return _store(attack, best, state, kept)


def _pack(done: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Positions of the next smaller batch that holds all live samples, filled up with done ones."""
    live = int(done.size - done.sum())
    size = min(size for size in sizes if size >= live)
    if size >= done.size:
        return np.arange(done.size)
    return np.sort(np.argsort(done, kind="stable")[:size])


def _refuse_nan(nan: np.ndarray, kept: np.ndarray) -> None:
    if nan.any():
        raise InputError(
            f"logits_fn gave NaN for image {kept[nan.argmax()]} of the batch; "
            "look for a division by zero or an overflow in the model."
        )


def _begin(
    attack: Attack,
    fn: LogitsFunction,
    best: State,
    keys: jax.Array | None,
    restart: int | jax.Array,
) -> State:
    """First state of a run: done samples stay out of it, accounts continue."""
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
    state = attack.init(fn, best.x, best.y, keys)
    add = lambda total, new: total + jnp.where(best.done, 0, new)  # noqa: E731
    return replace(
        state,
        done=state.done | best.done,
        steps=add(best.steps, state.steps),
        forward=add(best.forward, state.forward),
        backward=add(best.backward, state.backward),
    )


def _advance(attack: Attack, fn: LogitsFunction, state: State) -> State:
    """One step of the samples that are not done."""
    return where(state.done, state, attack.step(fn, state))


def _end(attack: Attack, fn: LogitsFunction, state: State) -> State:
    """Judge the samples that are not done."""
    return where(state.done, state, attack.finish(fn, state))


def _keep(settles: bool, best: State, state: State) -> State:
    """The better of what there was and a run's outcome; who takes part in the next run."""
    best = merge(best, state)
    return replace(best, done=best.success) if settles else best


def result(norm: str, best: State) -> Result:
    """The public record of a finished state."""
    return Result(
        images=best.image,
        success=best.success,
        norm=balls.length(best.image - best.x, norm),
        steps=best.steps,
        forward=best.forward,
        backward=best.backward,
    )


@jax.jit
def _advance_many(attack: Attack, fn: LogitsFunction, state: State, steps: int) -> State:
    return jax.lax.fori_loop(0, steps, lambda _, s: _advance(attack, fn, s), state)


def _store(attack: Attack, best: State, state: State, kept: np.ndarray) -> State:
    """Bring the outcome of packed samples back to their places; may be repeated without harm."""
    state = replace(state, own=None)  # not needed, and so one program serves all attacks
    if len(kept) == len(best.done):
        return _keep_compiled(attack.settles, best, state)
    return _keep_rows(attack.settles, best, state, kept)


def _attack_rows(attack: Attack, kept: np.ndarray) -> Attack:
    return jax.tree.map(lambda number: jnp.asarray(np.asarray(number)[kept]), attack)


@partial(jax.jit, static_argnums=1)
def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """A key for each position of a batch."""
    # fold_in, unlike split, promises the same key at position i whatever the batch size.
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


@partial(jax.jit, static_argnums=0)
def _keep_rows(settles: bool, best: State, state: State, kept: jax.Array) -> State:
    merged = _keep(settles, rows(best, kept), state)
    return jax.tree.map(lambda whole, part: whole.at[kept].set(part), best, merged)


_logits = jax.jit(lambda fn, x: fn(x))
_blank = jax.jit(State.blank)
_rows = jax.jit(rows)
_begin_compiled = jax.jit(_begin)
_advance_compiled = jax.jit(_advance)
_end_compiled = jax.jit(_end)
_keep_compiled = partial(jax.jit, static_argnums=0)(_keep)
_result = partial(jax.jit, static_argnums=0)(result)
