"""Several processes that do one program's work together: who they are, who writes, who waits.

Every process runs the same program in the same order. A training step is one computation over the
devices of all of them; other work is split and gathered, or done by the first process alone, the
only one that writes. With one process nothing here does anything.

What processes tell each other goes through JAX's coordination service, because there one may wait
for hours: a collective between devices gives up after minutes. Arrays follow between devices.
"""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import numpy as np

from memdef_jax.checks import InputError

T = TypeVar("T")
_PATIENCE = 15 * 86_400_000  # milliseconds; of those that never come the heartbeat tells
_MARGIN = 4  # steps; see `stops`
_STOP = "memdef_jax/stop"
_PAUSES = (0, 1, 2, 4, 8, 16, 32)  # seconds; network file systems show new files that late

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_rounds = itertools.count()


def count() -> int:
    """How many processes work together here; 1 within what `by_one` runs."""
    return jax.process_count() if jax.distributed.is_initialized() and not _ALONE.get() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index() if count() > 1 else 0


def is_writer() -> bool:
    """Whether this process writes files and talks to the user: the first does."""
    return index() == 0


def by_one(work: Callable[[], T]) -> T:
    """What work of the first process alone gives, told to all; the others wait for it.

    Args:
      work: gives what JSON can hold; within it the process is on its own.

    Raises:
      InputError: in every process, what the work raised in the first.
    """
    if count() == 1:
        return work()
    said: dict[str, Any] = {}
    if index() == 0:
        try:
            with _alone():
                said = {"value": work()}
        except InputError as error:
            said = {"error": str(error)}
    told = _exchange(said)[0]
    if "error" in told:
        raise InputError(told["error"])
    return told["value"]


def gathered(work: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all processes, each of which does its own share of some work.

    Args:
      work: gives arrays by name; no two processes give the same name.

    Raises:
      InputError: in every process, what the work raised in one of them.
    """
    if count() == 1:
        return dict(work())
    data, problem = b"", None
    try:
        data = _packed(work())
    except InputError as error:
        problem = error
    heads = _exchange({"bytes": len(data), "error": None if problem is None else str(problem)})
    if problem is not None:
        raise problem
    for head in heads:
        if head["error"] is not None:
            raise InputError(head["error"])
    return _merged(data, [head["bytes"] for head in heads])


def agree(what: str, value: Any) -> None:
    """Check that all processes have the same value, which JSON can hold; and wait for all.

    Raises:
      InputError: in every process, if they have not.
    """
    if count() > 1 and len({json.dumps(said["value"]) for said in _exchange({"value": value})}) > 1:
        raise InputError(
            f"the processes differ in {what}; give all of them the same command, data and version, "
            "and a folder that all of them see."
        )


def stops(asked: bool, step: int) -> bool:
    """Whether all processes stop after this step; each must ask after every one of its steps.

    The first that is asked to stop names a step some way ahead. No process is that far ahead of
    another: a step's metrics, which each looks at one step later, need the step of all.

    Args:
      asked: whether this process was asked to stop.
      step: that it has dispatched, from 1.
    """
    if count() == 1:
        return asked
    service = coordinator()
    if asked and _stop(service) is None:
        with suppress(jax.errors.JaxRuntimeError):  # another was faster
            service.key_value_set(_STOP, str(step + _MARGIN))
    last = _stop(service)
    return last is not None and step >= last


def stop_was_asked() -> bool:
    """Whether any process has been asked to stop, see `stops`."""
    return count() > 1 and _stop(coordinator()) is not None


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        _exchange({})


def read_written(read: Callable[[], T | None], path: Any) -> T:
    """What `read` gives of a file or folder that the first process has just written.

    Args:
      read: gives None while the file is not there, or not whole.
      path: for the message.

    Raises:
      InputError: when a minute has not brought it.
    """
    for pause in _PAUSES:
        time.sleep(pause)
        if (found := read()) is not None:
            return found
    raise InputError(
        f"{path} was written and cannot be read; give all processes a folder that all of them "
        "see, on a disk that works."
    )


@contextmanager
def _alone() -> Iterator[None]:
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def coordinator() -> Any:
    """The client of JAX's coordination service."""
    from jax._src import distributed

    return distributed.global_state.client


def _exchange(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each process says in this round, in their order; JSON."""
    service, this = coordinator(), next(_rounds)
    name = f"memdef_jax/{this}"
    service.key_value_set(f"{name}/{index()}", json.dumps(said))
    told = [
        json.loads(service.blocking_key_value_get(f"{name}/{other}", _PATIENCE))
        for other in range(count())
    ]
    if this:  # everyone has spoken in this round, so everyone has heard the one before
        service.key_value_delete(f"memdef_jax/{this - 1}/{index()}")
    return told


def _stop(service: Any) -> int | None:
    try:
        return int(service.key_value_try_get(_STOP))
    except jax.errors.JaxRuntimeError:  # there is none
        return None


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _merged(data: bytes, sizes: list[int]) -> dict[str, np.ndarray]:
    """The arrays of all processes, from what this one packed and how much each did."""
    from jax.experimental import multihost_utils

    # A power of two, so that few programs are compiled for it.
    padded = np.zeros(1 << max(sizes).bit_length(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    found: dict[str, np.ndarray] = {}
    for row, size in zip(everyone, sizes):
        with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as stored:
            found.update(stored)
    return found
