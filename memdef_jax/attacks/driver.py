"""The one place that loops: as a single lax loop under a trace, or in chunks with packing.

Both ways run the same four pure functions (`_begin`, `_advance`, `_end`, `merge`), and everything
random is drawn per sample, so they give the same images. The compiled functions live at module
level and take attack, model and state as arguments: another eps, another checkpoint or another
batch of the same size compiles nothing.
"""

from __future__ import annotations

import time
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
# Shares of a batch that it may shrink to. A program costs about a second to compile, so there are
# few; long attacks, where what is wasted soon costs more than that, get twice as many.
SHORT_SHARES = (7 / 8, 3 / 4, 1 / 2, 1 / 4, 1 / 16)
LONG_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 1 / 16)
LONG = 200  # steps, over all runs
UNIT = 8  # smaller batches are multiples of it


def under_trace(fn: LogitsFunction, *trees: Any) -> bool:
    """Whether a value is abstract, or operations on concrete values would be staged by a jit."""
    staged = isinstance(jax.lax.add(1.0, 1.0), jax.core.Tracer)
    return staged or is_traced(fn, fn.captured, trees)


def classes(fn: LogitsFunction, x: jax.Array) -> int:
    """Number of classes, without running the model; cached with the model's trace."""
    return int(_logits.eval_shape(fn, x).shape[1])


def packing_sizes(batch: int, steps: int) -> tuple[int, ...]:
    """The batch sizes, largest first, that an eager run may compile for.

    Each costs up to four programs: the attack's `init`, `step` and `finish`, and a re-packing.

    Args:
      batch: samples at first.
      steps: that a sample may need, over all runs.
    """
    shares = LONG_SHARES if steps >= LONG else SHORT_SHARES if steps > 1 else ()
    smaller = {UNIT * -(-int(batch * share) // UNIT) for share in shares}
    worth = [size for size in smaller if 0 < size <= 15 / 16 * batch]
    return (batch, *sorted(worth, reverse=True))


def steps_a_dispatch(attack: Attack, platform: str) -> int:
    """How many steps a compiled chunk takes at most."""
    return 1 if platform == "cpu" and not attack.gradient_free else CHUNK


def run(
    stages: Sequence[Attack],
    fn: LogitsFunction,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array | None,
    traced: bool,
    notes: tuple[str, ...] = (),
) -> Result:
    """Run attacks in turn, each on the samples that all before it left, from the clean image."""
    records: list[Result] = []
    fallen = y != y
    for index, stage in enumerate(stages):
        own_keys = keys if stage.random else None
        if len(stages) > 1 and own_keys is not None:
            own_keys = _fold_in(own_keys, index)
        how = whole_loop if traced else in_chunks
        records.append(how(stage, fn, x, y, own_keys, fallen))
        fallen = fallen | records[-1].success
    if len(records) == 1:
        return replace(records[0], notes=notes)
    return replace(_cascade(x, records), stages=tuple(records), notes=notes)


def nothing(norm: str, x: jax.Array, y: jax.Array) -> Result:
    """The record of an empty batch."""
    return result(norm, State.blank(x, y))


def whole_loop(
    attack: Attack,
    fn: LogitsFunction,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array | None,
    skip: jax.Array,
) -> Result:
    """The attack as one lax loop (two, nested, with several runs), for use under a trace."""
    attack, fn, x, y, keys = jax.lax.stop_gradient((attack, fn, x, y, keys))
    # Under shard_map numbers must vary over devices as the batch does, to be part of its state.
    attack = jax.tree.map(lambda number: number + 0.0 * y, attack)
    core = attack.core

    def go_on(carry: tuple[jax.Array, State]) -> jax.Array:
        taken, state = carry
        return (taken < attack.num_steps) & ~jnp.all(state.done)

    def one_step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        taken, state = carry
        return taken + 1, _advance(core, fn, state)

    def one_run(index: int | jax.Array, best: State) -> State:
        state = _begin(core, fn, best, keys, index)
        if attack.num_steps == 1:
            state = _advance(core, fn, state)
        else:
            _, state = jax.lax.while_loop(go_on, one_step, (jnp.int32(0), state))
        return _settle(attack, _keep(best, _end(core, fn, state)))

    best = replace(State.blank(x, y), done=skip)
    if attack.repeats == 1:
        best = one_run(0, best)
    else:
        best = jax.lax.fori_loop(0, attack.repeats, one_run, best)
    return jax.lax.stop_gradient(result(attack.norm, best))


def in_chunks(
    attack: Attack,
    fn: LogitsFunction,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array | None,
    skip: jax.Array,
) -> Result:
    """The attack in compiled chunks; between them, done samples leave the batch.

    Raises:
      InputError: when the model gives NaN for an image.
    """
    devices: Any = x.sharding.device_set
    # Packing a batch that is spread over devices would move images between them.
    steps = attack.num_steps * attack.repeats
    sizes = packing_sizes(len(x), steps) if len(devices) == 1 else (len(x),)
    chunk = steps_a_dispatch(attack, next(iter(devices)).platform)
    clock = _Clock(len(x))
    if steps == 1 and not np.asarray(skip).any():
        record, nan = _single_step(attack.norm, attack.core, fn, x, y, keys)
        _refuse_nan(np.asarray(nan), np.arange(len(x)))
        clock.charge(np.arange(len(x)))
        return replace(record, seconds=jnp.asarray(clock.seconds))
    best = replace(_blank(x, y), done=skip)
    for index in range(attack.repeats):
        if np.asarray(best.done).all():
            break
        best = _one_run(attack, fn, best, keys, index, sizes, chunk, clock)
    return replace(_result(attack.norm, best), seconds=jnp.asarray(clock.seconds))


class _Clock:
    """Shares the wall time of each chunk among the samples it worked on."""

    def __init__(self, batch: int) -> None:
        self.seconds = np.zeros(batch, np.float32)
        self._last = time.perf_counter()

    def charge(self, samples: np.ndarray) -> None:
        """What has passed since the last call was spent on these."""
        now = time.perf_counter()
        self.seconds[samples] += (now - self._last) / max(len(samples), 1)
        self._last = now


def _one_run(
    attack: Attack,
    fn: LogitsFunction,
    best: State,
    keys: jax.Array | None,
    index: int,
    sizes: Sequence[int],
    chunk: int,
    clock: _Clock,
) -> State:
    """One run from one start over the samples of `best` that are not done."""
    everyone = np.arange(sizes[0])
    done = np.asarray(best.done)
    kept = everyone[_pack(done, sizes)]
    live = kept[~done[kept]]
    core = attack.core
    here, packed_fn, packed_best = core, fn, best
    if len(kept) < sizes[0]:
        packed_best, keys = _rows((best, keys), kept)
        here, packed_fn = _attack_rows(core, kept), fn.take(kept)
    state = _begin_compiled(here, packed_fn, packed_best, keys, index)
    taken = 0
    while True:
        after, steps = state, min(taken + 1, chunk, attack.num_steps - taken)
        if chunk == 1 and steps:
            # Under way while the host looks at the flags; samples that are done stay as they are.
            after = _advance_compiled(here, packed_fn, state)
        done, nan = jax.device_get((state.done, state.nan))
        clock.charge(live)
        live = kept[~done]
        _refuse_nan(nan, kept)
        if done.all() or not steps:
            break
        order = _pack(done, sizes)
        if len(order) < len(kept):
            # Of those that go on, nothing is kept before it is final.
            final = jnp.where(state.done, state.score, -jnp.inf)
            best = _store(best, replace(state, score=final), kept)
            after, kept = _rows(after, order), kept[order]
            here, packed_fn = _attack_rows(core, kept), fn.take(kept)
        if chunk > 1:
            after = _advance_many(here, packed_fn, after, steps)
        state, taken = after, taken + steps
    if not done.all():
        state = _end_compiled(here, packed_fn, state)
        _refuse_nan(np.asarray(state.nan), kept)
    best = jax.block_until_ready(_settle(attack, _store(best, state, kept)))
    clock.charge(live if len(live) else kept)
    return best


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
    index: int | jax.Array,
) -> State:
    """First state of a run: done samples stay out of it, accounts continue."""
    index = jnp.asarray(index, jnp.int32)
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    state = attack.init(fn, best.x, best.y, keys, index)
    add = lambda total, new: total + jnp.where(best.done, 0, new)  # noqa: E731
    return replace(
        state,
        run=best.y * 0 + index,
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


def _keep(best: State, state: State) -> State:
    """The better of what there was and a run's outcome, for the samples that took part."""
    return where(best.done, best, merge(best, state))


def _settle(attack: Attack, best: State) -> State:
    """After a run: who takes part in the next."""
    return replace(best, done=best.done | best.success) if attack.settles else best


def result(norm: str, best: State) -> Result:
    """The public record of a finished state."""
    return Result(
        images=best.image,
        success=best.success,
        norm=balls.length(best.image - best.x, norm),
        run=best.run,
        steps=best.steps,
        forward=best.forward,
        backward=best.backward,
    )


@partial(jax.jit, static_argnums=0)
def _single_step(
    norm: str,
    core: Attack,
    fn: LogitsFunction,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array | None,
) -> tuple[Result, jax.Array]:
    """A run of one step in one program: there is nothing to drop, and dispatches would count."""
    state = _end(core, fn, _advance(core, fn, _begin(core, fn, State.blank(x, y), keys, 0)))
    best = _keep(State.blank(x, y), state)
    return result(norm, best), best.nan


@jax.jit
def _advance_many(attack: Attack, fn: LogitsFunction, state: State, steps: int) -> State:
    return jax.lax.fori_loop(0, steps, lambda _, s: _advance(attack, fn, s), state)


def _store(best: State, state: State, kept: np.ndarray) -> State:
    """Bring the outcome of packed samples back to their places; may be repeated without harm."""
    state = replace(state, own=None)  # not needed, and so one program serves all attacks
    if len(kept) == len(best.done):
        return _keep_compiled(best, state)
    return _keep_rows(best, state, kept)


@jax.jit
def _cascade(x: jax.Array, records: Sequence[Result]) -> Result:
    """The record of several attacks in turn: the image of the first that fooled, sums of work."""
    first = records[0]
    # What no attack felled comes back clean.
    image = where(first.success, first.images, x)
    norm = jnp.where(first.success, first.norm, 0.0)
    success, run = first.success, jnp.where(first.success, first.run, -1)
    for record in records[1:]:
        won = record.success & ~success
        image, norm, run = where(won, (record.images, record.norm, record.run), (image, norm, run))
        success = success | won
    total = lambda name: sum(getattr(record, name) for record in records)  # noqa: E731
    timed = all(record.seconds is not None for record in records)
    return Result(
        images=image,
        success=success,
        norm=norm,
        run=run,
        steps=total("steps"),
        forward=total("forward"),
        backward=total("backward"),
        seconds=total("seconds") if timed else None,
    )


def _attack_rows(attack: Attack, kept: np.ndarray) -> Attack:
    return jax.tree.map(lambda number: jnp.asarray(np.asarray(number)[kept]), attack)


@partial(jax.jit, static_argnums=1)
def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """A key for each position of a batch."""
    # fold_in, unlike split, promises the same key at position i whatever the batch size.
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


@jax.jit
def _keep_rows(best: State, state: State, kept: jax.Array) -> State:
    merged = _keep(rows(best, kept), state)
    return jax.tree.map(lambda whole, part: whole.at[kept].set(part), best, merged)


_logits = jax.jit(lambda fn, x: fn(x))
_blank = jax.jit(State.blank)
_rows = jax.jit(rows)
_begin_compiled = jax.jit(_begin)
_advance_compiled = jax.jit(_advance)
_end_compiled = jax.jit(_end)
_fold_in = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
_keep_compiled = jax.jit(_keep)
_result = partial(jax.jit, static_argnums=0)(result)
