"""One process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import uuid
from collections.abc import Callable, Iterator

from memdef_jax import processes
from memdef_jax.checks import InputError
from memdef_jax.files import cannot_write, check_links

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# Process numbers alone are no names: two containers may share a folder and not their numbers.
_PROCESS = uuid.uuid4().hex


@contextlib.contextmanager
def locked(folder: pathlib.Path, note: Callable[[str], None] | None = None) -> Iterator[None]:
    """Within it no other process enters for the same folder.

    The lock is `flock` on a file in it: advisory, and let go by the system when the process dies,
    however it dies. Within a process it may be taken again. At the end the file is removed, and so
    is the folder where it was made for the lock and is empty. Of several processes that work
    together the first takes it, for all of them.

    Args:
      folder: made if absent.
      note: told where the file system has no such locks; then there is none.

    Raises:
      InputError: when another process is there (it is named), a link leads out of the folder, or
        it cannot be written.
    """
    with contextlib.ExitStack() as held:
        processes.by_one(lambda: held.enter_context(_held(folder, note)))
        yield


@contextlib.contextmanager
def _held(folder: pathlib.Path, note: Callable[[str], None] | None) -> Iterator[None]:
    check_links(folder)
    made = _make(folder)
    path = folder / LOCK
    try:
        handle = _take(path, note)
        try:
            yield
        finally:
            if handle is not None:
                with contextlib.suppress(OSError):
                    path.unlink()  # while it is held; `_take` notices
                os.close(handle)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for one in made:
                one.rmdir()


def _make(folder: pathlib.Path) -> list[pathlib.Path]:
    """Make a folder; those that were not there, the innermost first."""
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return absent


def _take(path: pathlib.Path, note: Callable[[str], None] | None) -> int | None:
    """The descriptor that holds the lock; None where this process has it, or it cannot be had."""
    own = f"{os.getpid()} {socket.gethostname()} {_PROCESS}"
    for again in (*[True] * 20, False):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a name its last owner has just removed it; or the file system counts none.
            if os.fstat(handle).st_nlink or not again:
                os.ftruncate(handle, 0)
                os.pwrite(handle, own.encode(), 0)
                return handle
            os.close(handle)
        except BlockingIOError:
            owner = os.pread(handle, 500, 0).decode(errors="replace")
            os.close(handle)
            if owner == own:
                return None
            raise InputError(
                f"{path.parent} is in use by {_named(owner)}; wait until that has ended, or "
                "choose another folder."
            ) from None
        except OSError as error:
            os.close(handle)
            if note:
                note(
                    f"{path.parent} cannot be locked ({error.strerror or error}), so take care "
                    "that no other program writes into it."
                )
            return None
    raise AssertionError("the last round returns")


def _named(owner: str) -> str:
    number, _, rest = owner.partition(" ")
    host = rest.partition(" ")[0]
    known = number.isdecimal() and host.isprintable()
    return f"process {number} on {host}" if known else "another process"
