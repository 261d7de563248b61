"""SIGTERM, by which a scheduler asks a program to make room, loses no work.

A training saves the step it has reached and leaves; everything else leaves at once, since what it
has finished is stored. A process that is not within `listening` is not changed in any way.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command continues later
_WORDS = "stopped by SIGTERM; what was finished is stored"
_GRACE = 2.0  # seconds that the main thread has to leave by itself


class Preempted(BaseException):
    """SIGTERM asked this process to end; the message says what was saved.

    Like KeyboardInterrupt it is no Exception, so that code that goes on after errors ends as well.
    """


@contextmanager
def listening() -> Iterator[None]:
    """Within it, SIGTERM raises `Preempted` in the main thread.

    Python handles a signal only between two of its own instructions, and compiled code may run for
    minutes. So where the main thread has not left after two seconds, the process is ended with
    `STATUS`, unless a training is about to save (`saving_first`). Outside the main thread, where
    signals cannot be handled, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave) or signal.SIG_DFL
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    told = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    gone = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reading, gone), daemon=True)
    watcher.start()
    try:
        yield
    except Preempted:
        before = _nothing  # some send it twice, and the first was heard
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        gone.set()
        signal.set_wakeup_fd(told)
        os.close(writing)  # which ends the watcher
        watcher.join()
        os.close(reading)


@contextmanager
def saving_first() -> Iterator[Callable[[], bool]]:
    """Within it, SIGTERM only turns the answer of the given function to True.

    Who asks it regularly can save and then raise `Preempted`; otherwise that is raised at the end.
    Where nobody is `listening` nothing changes and the answer stays False.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not _leave:
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, _leave)
        if came:
            signal.signal(signal.SIGTERM, _nothing)
    if came:
        raise Preempted(_WORDS)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Preempted(_WORDS)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler for what has been heard; SIG_IGN would be said to have lost a signal."""


def _watch(reading: int, gone: threading.Event) -> None:
    while numbers := os.read(reading, 64):
        asked = signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) is _leave
        if asked and not gone.wait(_GRACE):
            os.write(2, f"{_WORDS}; the same command continues.\n".encode())
            os._exit(STATUS)
