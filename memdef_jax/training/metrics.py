"""Metrics of a training run as JSON lines and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from memdef_jax import processes
from memdef_jax.files import cannot_write, write_atomic

_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`, and the same to TensorBoard.

    Opened at step `first`, it drops what an interrupted run wrote beyond it, so the file of a
    resumed run equals that of an uninterrupted one.

    TensorBoard's events are written here and now: the thread of tensorboardX's own SummaryWriter
    dies of a full disk, and the training then waits for it without end.

    Raises:
      InputError: when the folder cannot be written.
    """

    def __init__(self, folder: pathlib.Path, first: int) -> None:
        path, board = folder / _FILE, folder / "tensorboard"
        with _told(path):
            kept = "".join(_lines_up_to(path, first)) if path.exists() else None
        if kept is not None:
            write_atomic(path, kept)
        self._path, self._board_path = path, board
        with _told(board):
            board.mkdir(parents=True, exist_ok=True)
            # Its name has the second; two starts may fall into one.
            self._board = EventsWriter(str(board / "events"), f".{os.getpid()}")
        with _told(path):
            self._file = path.open("a", encoding="utf-8")
        begin = SessionLog(status=SessionLog.START)  # what TensorBoard has from here on is void
        self._event(Event(step=first + 1, session_log=begin))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step.

        Raises:
          InputError: when the disk is full.
        """
        with _told(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(Event(step=step, summary=Summary(value=shown)))

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
          InputError: when the disk is full.
        """
        with _told(self._path):
            self._file.flush()
        with _told(self._board_path):
            self._board.flush()

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        with _told(self._board_path):
            self._board.write_event(event)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failures = []
        for path, file in ((self._path, self._file), (self._board_path, self._board)):
            try:
                file.close()
            except OSError as failure:
                failures.append(cannot_write(path, failure))
        if failures and error is None:  # where it has been said, once is enough
            raise failures[0]


class _Nowhere(MetricsLog):
    """For processes that do not write."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def open_metrics(folder: pathlib.Path, first: int) -> MetricsLog:
    """A `MetricsLog`; of several processes only the first one's writes.

    Raises:
      InputError: when the folder cannot be written.
    """
    return MetricsLog(folder, first) if processes.is_writer() else _Nowhere()


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def read_metrics(folder: pathlib.Path) -> list[dict[str, float]]:
    """What a training in `folder` has logged, one row a step with its "step"."""
    text = (folder / _FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _lines_up_to(path: pathlib.Path, step: int) -> list[str]:
    """The whole lines of steps up to `step`; a torn last line is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        kept.append(line + "\n")
    return kept
