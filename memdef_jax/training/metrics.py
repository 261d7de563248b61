"""Metrics of a training run as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import TracebackType

from tensorboardX import SummaryWriter

from memdef_jax.files import cannot_write, write_atomic


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`, and the same to TensorBoard.

    Opened at step `first`, it drops what an interrupted run wrote beyond it, so the file of a
    resumed run equals that of an uninterrupted one.
    """

    def __init__(self, folder: pathlib.Path, first: int) -> None:
        path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            write_atomic(path, "".join(_lines_up_to(path, first)))
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step.

        Raises:
          InputError: when the disk is full.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
          InputError: when the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._board.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:  # the disk is full; where that has been said, once is enough
            if error is None:
                raise cannot_write(self._path, failure) from failure
        finally:
            self._board.close()


def _lines_up_to(path: pathlib.Path, step: int) -> list[str]:
    """The whole lines of steps up to `step`; a torn last line is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    return kept
