"""What a whole training of Memory Defense costs, and what its devices do meanwhile.

    python -m benchmarks.device_time --preset paper --run runs/device_time \
        --out results/device_time_gpu.md

Trains into a new folder and traces two seconds in the middle of every stage with JAX's profiler.
The traces stay in the folder, for Perfetto or XProf. What starting and writing them takes is
measured and told apart.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import tyro
from jax.profiler import ProfileData

from benchmarks import ledger
from memdef_jax import console, data, defenses
from memdef_jax.checks import InputError
from memdef_jax.files import write_atomic
from memdef_jax.training import Reporter

SHOWN = 8  # other operations, longest first
# Names of XLA's operations, and of the kernels of cuDNN, cuBLAS (nvjet) and CUTLASS behind them.
_PRODUCT = re.compile(
    r"conv(?!ert)|dot|gemm|gemv|matmul|nvjet|cutlass|xmma|[fdw](prop|grad)|winograd|ynn_fusion",
    re.IGNORECASE,
)
_MOVES = re.compile(r"nchwToNhwc|nhwcToNchw|transpose|memcpy|memset|copy", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train.

    Attributes:
      run: a folder that is not there yet.
      out: Markdown file.
      dataset: a dataset's name.
      preset: of Memory Defense.
      train_size: first training images; all by default.
      window: seconds of a trace.
    """

    run: pathlib.Path
    out: pathlib.Path
    dataset: str = "fashion_mnist"
    preset: str = "paper"
    train_size: int | None = None
    window: float = 2.0


class Tracing:
    """A reporter that times stages and traces the middle of each.

    Attributes:
      seconds: of every stage, and of what lies before, between and after them ("rest").
      first: of every stage until its first update, which is compiling mostly.
      traced: wall seconds of each stage's trace.
      overhead: seconds that starting and writing traces took.
    """

    def __init__(self, told: Reporter, folder: pathlib.Path, window: float) -> None:
        self._told, self._folder, self._window = told, folder, window
        self._stage, self._total, self._began = "", 0, time.perf_counter()
        self._open: float | None = None
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.first: dict[str, float] = {}
        self.traced: dict[str, float] = {}
        self.overhead = 0.0

    def start(self, stage: str, done: int, total: int, items_per_step: int) -> None:
        """A stage begins, and with it the count of its seconds."""
        self.finish()
        self._stage, self._total = stage, total
        self._told.start(stage, done, total, items_per_step)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Open the trace in the middle of the stage, close it after the window."""
        now = time.perf_counter()
        self.first.setdefault(self._stage, now - self._began)
        if self._open is not None and now - self._open >= self._window:
            self._close()
        elif self._stage not in self.traced and 2 * step >= self._total:
            self._open = self._own_time(self._start_trace)
            self.traced[self._stage] = 0.0
        self._told.update(step, metrics)
        if step >= self._total:
            self.finish()

    def note(self, text: str) -> None:
        """Pass it on."""
        self._told.note(text)

    def finish(self) -> None:
        """The end of a stage, or of what was between two."""
        if self._open is not None:
            self._close()
        now = time.perf_counter()
        self.seconds[self._stage or "rest"] += now - self._began
        self._stage, self._began = "", now

    def _start_trace(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._folder / self._stage, profiler_options=options)

    def _close(self) -> None:
        assert self._open is not None
        self.traced[self._stage] = time.perf_counter() - self._open
        self._own_time(jax.profiler.stop_trace)
        self._open = None

    def _own_time(self, action: Any) -> float:
        """Do what costs the stage nothing; the time when it is done."""
        began = time.perf_counter()
        action()
        now = time.perf_counter()
        self.overhead += now - began
        self._began += now - began
        return now


def operations(folder: pathlib.Path) -> dict[str, float]:
    """Device seconds by operation or kernel in the newest trace of a folder.

    Raises:
      InputError: when there is none.
    """
    files = sorted(folder.glob("**/*.xplane.pb"))
    if not files:
        raise InputError(f"no trace is in {folder}; let the training reach the stage's middle.")
    found: dict[str, float] = collections.defaultdict(float)
    for events in _device_lines(ProfileData.from_file(str(files[-1]))):
        for name, seconds in own_seconds(events):
            found[re.sub(r"[.\d]+$", "", name)] += seconds
    return dict(found)


def _device_lines(trace: Any) -> Iterator[list[tuple[str, float, float]]]:
    """Name, start and end in ns of what each stream, core or thread of the devices did."""
    planes = [p for p in trace.planes if p.name.startswith("/device:")]
    for plane in planes or [p for p in trace.planes if p.name == "/host:CPU"]:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        wanted = streams or [line for line in lines if line.name == "XLA Ops"]
        for line in wanted if planes else lines:
            events = []
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if planes or operation:
                    name, start = event.name, event.start_ns
                    if operation not in (None, name):
                        name = f"{operation}{f' [{name}]'[:60]}"
                    events.append((name, start, start + event.duration_ns))
            yield events


def own_seconds(events: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Names and seconds of one line's events, without those of the events within each."""
    within: list[list[Any]] = []  # name, end, own ns

    def closed(until: float) -> Iterator[tuple[str, float]]:
        while within and within[-1][1] <= until:
            name, _, own = within.pop()
            yield name, own / 1e9

    for name, start, end in sorted(events, key=lambda event: (event[1], -event[2])):
        yield from closed(start)
        if within:
            within[-1][2] -= end - start
        within.append([name, end, end - start])
    yield from closed(float("inf"))


def is_product(name: str) -> bool:
    """Whether an operation or kernel is a convolution or a matrix product, not a layout change."""
    return bool(_PRODUCT.search(name)) and not _MOVES.search(name)


def measure(options: Options) -> str:
    """Train, and what was found as Markdown.

    Raises:
      InputError: when the folder is there already.
    """
    if options.run.exists():
        raise InputError(f"{options.run} is there already; name a new folder for a whole training.")
    dataset = data.load(options.dataset)
    size = options.train_size or len(dataset.train)
    config = defenses.preset(options.preset, dataset.info.image_shape, size)
    config = dataclasses.replace(config, train_size=options.train_size)
    traces = options.run / "traces"
    tracing = Tracing(console.ConsoleReporter(), traces, options.window)
    began = time.perf_counter()
    defenses.fit(config, dataset, options.run, reporter=tracing)
    tracing.finish()
    whole = time.perf_counter() - began - tracing.overhead
    rows, others = [], []
    for stage, seconds in tracing.seconds.items():
        row = [stage, f"{seconds:.1f}", f"{tracing.first[stage]:.1f}" if stage != "rest" else ""]
        if not tracing.traced.get(stage):  # too short a stage, or none
            rows.append([*row, "", ""])
            continue
        found = operations(traces / stage)
        total = sum(found.values())
        products = sum(spent for name, spent in found.items() if is_product(name))
        busy = total / max(tracing.traced[stage], 1e-9) / len(jax.local_devices())
        rows.append([*row, f"{busy:.0%}", f"{products / max(total, 1e-12):.0%}"])
        longest = sorted(found.items(), key=lambda item: -item[1])
        rest = [(n, s) for n, s in longest if not is_product(n)][:SHOWN]
        others += [[stage, f"`{name}`", f"{s / max(total, 1e-12):.1%}"] for name, s in rest]
    header = ("stage", "s", "to its first update, s", "device busy", "products of it")
    return ledger.page(
        f"{options.preset} preset on {options.dataset}: {whole:.0f} s",
        ledger.environment(),
        f"Traces took {tracing.overhead:.1f} s more. Busy: the sum over streams, or over threads "
        "of a CPU. Products: convolutions and matrix products.",
        ledger.markdown_table(header, rows),
        "## Longest of the others",
        ledger.markdown_table(("stage", "operation", "of the device's time"), others),
    )


def main(options: Options) -> None:
    """Measure and print."""
    text = measure(options)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
