"""What programs share: errors in one sentence, progress on a terminal or in a log, tables."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax import monitoring
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from memdef_jax import joining, preemption, processes
from memdef_jax.checks import InputError
from memdef_jax.evaluation.program import Evaluation
from memdef_jax.evaluation.reports import report

LOG_EVERY = 10.0  # seconds between lines where there is no terminal

_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"


def run(program: Callable[[], Any], together: bool = False) -> None:
    """Run a program's main function; an InputError becomes one sentence and exit status 2.

    Likewise SIGTERM, before which a training saves, and status 75; and Ctrl-C and 130. What was
    compiled is kept in the user's cache for the next run, and said at the end.

    With `--distributed`, which no program sees, or in a cluster, see `joining.joined`, several
    processes run it as one program.

    Args:
      program: what to run.
      together: whether it knows of several processes; otherwise the first runs it alone, and the
        others wait.
    """
    prepare_cpu()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache / "memdef_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        try:
            with joining.joined(_joins()), preemption.listening(), compilations() as compiled:
                if together:
                    program()
                else:
                    processes.by_one(lambda: (program(), None)[1])
        finally:  # before anything is printed below a live bar
            for reporter in tuple(_LIVE):
                reporter.close()
        if (compiled.programs or compiled.cached) and processes.is_writer():
            print(compiled.words())
    except InputError as error:
        print(f"error: {_plain(str(error))}", file=sys.stderr)
        if jax.distributed.is_initialized():
            joining.leave(2)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except preemption.Preempted as stopped:
        _leave(str(stopped), preemption.STATUS)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        joining.leave(1)


def _joins() -> bool | None:
    """What the command line says of other processes, taken out of it; None for nothing."""
    said = None
    for flag, joins in (("--distributed", True), ("--no-distributed", False)):
        if flag in sys.argv[1:]:
            sys.argv.remove(flag)
            said = joins
    return said


def _leave(words: str, status: int) -> NoReturn:
    """End the process at once.

    Compiled code may still be running, and crashes when the interpreter takes down, as it does at
    a usual end, what that code works on.
    """
    print(f"{words}; the same command continues.", file=sys.stderr, flush=True)
    with suppress(OSError, ValueError):  # nobody listens any more
        sys.stdout.flush()
    if jax.distributed.is_initialized():
        joining.leave(status)
    os._exit(status)


def prepare_cpu() -> None:
    """Have XLA compute a CPU's convolutions by Eigen; call it before JAX runs anything.

    XLA's default since jaxlib 0.10, YNNPACK, takes up to twice as long for float32, see
    `benchmarks/convolutions.py`. An XLA_FLAGS that says something of its own about it stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # A TPU's own compiler reads the same variable and stops at names that it does not know.
    if _CONVOLUTIONS not in flags and importlib.util.find_spec("libtpu") is None:
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTIONS}=-individual_convolution".strip()


class Compilations:
    """How many programs XLA compiled, in how much time, and how many the cache on disk had.

    Attributes:
      programs: compiled anew.
      seconds: spent on that; loading from the cache is not counted.
      cached: loaded from the cache in place of compiling.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.seconds = 0.0
        self.cached = 0
        self._lock = threading.Lock()
        self._hit = threading.local()

    def words(self) -> str:
        """One plain line."""
        programs = "program" if self.programs == 1 else "programs"
        line = f"compiled {self.programs} {programs} in {self.seconds:.0f} s"
        return f"{line} ({self.cached} more came from the cache)" if self.cached else line

    def _event(self, event: str, **_: Any) -> None:
        if event == _FROM_CACHE:
            self._hit.seen = True

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        # The time of a hit is reported like that of a compilation, after the hit, by its thread.
        if event != _COMPILED:
            return
        hit, self._hit.seen = getattr(self._hit, "seen", False), False
        with self._lock:
            if hit:
                self.cached += 1
            else:
                self.programs += 1
                self.seconds += duration_secs


# JAX's names for the two events; with other names, nothing is counted and nothing is said.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Count what is compiled in this process until the block ends."""
    count = Compilations()
    monitoring.register_event_listener(count._event)
    monitoring.register_event_duration_secs_listener(count._duration)
    try:
        yield count
    finally:
        monitoring.unregister_event_listener(count._event)
        monitoring.unregister_event_duration_listener(count._duration)


_LIVE: set[ConsoleReporter] = set()  # reporters with a bar on the terminal


class ConsoleReporter:
    """A `training.Reporter`: a live bar on a terminal, plain lines in a log."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._stage, self._first, self._total, self._items = "", 0, 0, 0
        self._began = self._said = time.perf_counter()

    def start(self, stage: str, done: int, total: int, items_per_step: int) -> None:
        """A stage begins."""
        self.close()
        self._stage, self._first, self._total, self._items = stage, done, total, items_per_step
        self._began = self._said = time.perf_counter()
        if done >= total:
            self._console.print(f"{stage}: done before")
            return
        if done:
            self._console.print(f"{stage}: continuing at {done} of {total}")
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            _LIVE.add(self)
            self._bar.start()
            self._task = self._bar.add_task(stage, completed=done, total=total, rate="", metrics="")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """So many steps of the stage are done."""
        now = time.perf_counter()
        last = step >= self._total
        if not last and now - self._said < (0.2 if self._bar else LOG_EVERY):
            return
        self._said = now
        seconds = max(now - self._began, 1e-9)
        steps = step - self._first
        rate = f"{steps * self._items / seconds:.0f}/s" if self._items > 1 else ""
        shown = "  ".join(
            f"{name} {metrics[name]:.4g}"
            for name in ("loss", "cross_entropy", "accuracy", "robust_accuracy", "success_rate")
            if name in metrics
        )
        if self._bar:
            self._bar.update(self._task, completed=step, rate=rate, metrics=shown)
            if last:
                self.close()
            return
        left = seconds / max(steps, 1) * (self._total - step)
        words = [f"{self._stage}: {step}/{self._total}", rate, f"{seconds:.0f} s"]
        words += [f"{left:.0f} s left" if not last else "done", shown]
        self._console.print("  ".join(word for word in words if word), soft_wrap=True)

    def note(self, text: str) -> None:
        """Something the user should read."""
        self._console.print(f"note: {_plain(text)}", soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar:
            self._bar.stop()
            self._bar = None
            _LIVE.discard(self)


def _plain(text: str) -> str:
    """Without what a terminal would obey: names of files, and what is in them, may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _console(width: int | None = None) -> Console:
    # Paths and class names are shown as they are, even where they look like markup or emoji.
    return Console(width=width, markup=False, emoji=False, highlight=False)


def show(result: Evaluation) -> None:
    """Print an evaluation's table, where its report is, and what it shows in words."""
    # Without a terminal the width is unknown, and a table cut to 80 columns cannot be read.
    console = _console(None if sys.stdout.isatty() else 160)
    table = Table(title=result.heading, title_justify="left")
    for index, name in enumerate(report.HEADER):
        table.add_column(name, justify="left" if index < 3 else "right")
    for row in report.table_rows(result.records):
        table.add_row(*row)
    console.print(table)
    console.print(f"\nreport: {result.path}\n\n{result.words}", soft_wrap=True)


def command() -> str:
    """What the user typed, for the record of a run."""
    spec = sys.modules["__main__"].__spec__
    program = f"python -m {spec.name}" if spec else pathlib.Path(sys.argv[0]).name
    return shlex.join([*program.split(), *sys.argv[1:]])


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list of names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def budgets(text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers or fractions, such as "9/255,0.1".

    Raises:
      InputError: when a part is neither.
    """
    values = []
    for part in names(text):
        try:
            top, _, bottom = part.partition("/")
            values.append(float(top) / float(bottom or 1))
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"eps {part!r} is no number; write it as 0.1 or 25/255, separated by commas."
            ) from None
    return tuple(values)
