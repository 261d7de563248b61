"""How the processes of one program come together, and how they end when one of them is lost."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import NoReturn

import jax

from memdef_jax import preemption, processes
from memdef_jax.checks import InputError

# What `joined` reads where no cluster says it; the first is JAX's own.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SILENCE = 40.0  # seconds after which a process that says nothing has ended
_HEARTBEAT = 55  # the same for JAX, which ends a process with its own words and by SIGABRT
BEGINNING = 300  # seconds in which all processes must have started
_ALIVE = "memdef_jax/alive"
_ENDED = "ended"
_met = threading.Event()  # set once this process has found the others
_MEMBER = "MEMDEF_JAX_MEMBER"  # in the environment of what a joined process starts


@contextmanager
def joined(asked: bool | None) -> Iterator[None]:
    """Within it this process is one of several, which enter and leave together.

    It begins before JAX touches a device. Only the first process is heard on standard output. When
    one is lost the others say so and end with `preemption.STATUS`; and one that ends by an error
    ends at once, as at a usual end it would wait for the others.

    Args:
      asked: True to join, False to stay alone, None to join where the environment says that there
        are others: `JAX_COORDINATOR_ADDRESS`, or that of Slurm, Open MPI or Cloud TPU.

    Raises:
      InputError: when the environment does not say enough, or they do not come together.
    """
    if asked is False or not (asked or _invited()):
        yield
        return
    _start()
    _met.set()
    os.environ[_MEMBER] = "1"
    done = threading.Event()
    threading.Thread(target=_watch, args=(done,), daemon=True).start()
    try:
        if processes.is_writer():
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
        processes.wait()
    except jax.errors.JaxRuntimeError:
        # It may be the loss of another process, which is noticed in that time.
        done.wait(SILENCE + 10)
        raise
    finally:
        done.set()


def leave(status: int, lost: Collection[str] = ()) -> NoReturn:
    """End this process without what a usual end waits for, and tell the others.

    The first process goes last, within seconds: with it goes JAX's coordination service, and the
    loss of that ends any process in the middle of a word.

    Args:
      status: of the process.
      lost: who need not be waited for.
    """
    with suppress(OSError, ValueError):  # nobody listens any more
        sys.stdout.flush()
        sys.stderr.flush()
    if _met.is_set():
        with suppress(jax.errors.JaxRuntimeError):
            _take_leave(lost)
    os._exit(status)


def _take_leave(lost: Collection[str]) -> None:
    service, this = processes.coordinator(), jax.process_index()
    service.key_value_set(f"{_ALIVE}/{this}", _ENDED, allow_overwrite=True)
    limit = time.monotonic() + SILENCE / 2
    while this == 0 and time.monotonic() < limit:
        said = dict(service.key_value_dir_get(_ALIVE))
        if all(value == _ENDED for name, value in said.items() if name not in lost):
            break
        time.sleep(0.1)
    time.sleep(0.3 if this == 0 else 0.0)  # between their last word and their end


def _start() -> None:
    count, this = _number(COUNT), _number(INDEX)
    # JAX's own handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(BEGINNING, _too_late)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=this,
            # JAX's own patience ends with SIGABRT.
            initialization_timeout=2 * BEGINNING,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
        jax.process_count()  # they meet once more, to tell each other their devices
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the processes could not be joined ({reason[:300]}); outside Slurm, Open MPI and "
            f"Cloud TPU give each {ADDRESS}, {COUNT} and {INDEX}, or give --no-distributed."
        ) from error
    finally:
        late.cancel()


def _too_late() -> NoReturn:
    where = os.environ.get(ADDRESS, "what the cluster names as the first process")
    print(
        f"error: the processes did not come together within {BEGINNING} s; see that all of them "
        f"are started, and that each reaches {where}.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _number(name: str) -> int | None:
    """A number of the environment; None where there is none, which JAX may find out."""
    value = os.environ.get(name)
    if value is not None and not value.isdecimal():
        raise InputError(
            f"{name} is {value!r}; give the number of processes in {COUNT} and that of this one, "
            f"from 0, in {INDEX}."
        )
    return None if value is None else int(value)


def _invited() -> bool:
    """Whether the environment names a first process, or is a cluster's with several processes.

    Kubernetes is left out: any container there looks like a member of a job.
    """
    if _MEMBER in os.environ or ADDRESS in os.environ:
        return _MEMBER not in os.environ
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if kind.__name__ != "K8sCluster"]
    return any(
        kind.get_process_count() > 1
        for kind in kinds
        if not kind.opt_in_only_method and kind.is_env_present()
    )


def _watch(done: threading.Event) -> None:
    """Tell the others that this process lives, and end it when one of them does not."""
    service, this = processes.coordinator(), jax.process_index()
    heard: dict[str, tuple[str, float]] = {}
    for beat in itertools.count():
        if done.is_set():
            return
        try:
            service.key_value_set(f"{_ALIVE}/{this}", str(beat), allow_overwrite=True)
            said = dict(service.key_value_dir_get(_ALIVE))
        except jax.errors.JaxRuntimeError:
            said = None
        if done.is_set():
            return
        if said is None:
            _lost([f"{_ALIVE}/0"])
        now = time.monotonic()
        for name, value in said.items():
            if heard.get(name, ("", 0.0))[0] != value:
                heard[name] = value, now
            elif now - heard[name][1] > (SILENCE / 10 if value == _ENDED else SILENCE):
                _lost([name, *(other for other in heard if now - heard[other][1] > SILENCE / 2)])
        if done.wait(SILENCE / 8):
            return


def _lost(names: Sequence[str]) -> NoReturn:
    which = names[0].rpartition("/")[2]
    print(
        f"process {jax.process_index()}: process {which} of this job has ended or cannot be "
        "reached; what was saved is stored; the same command continues.",
        file=sys.stderr,
    )
    leave(preemption.STATUS, lost=names)
