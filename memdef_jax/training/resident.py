"""Batches whose data stays on the devices, and many steps over it as one compiled program.

On accelerators a host that gathers every batch and dispatches every step is what the device waits
for. On a CPU it is the other way round: a scanned training step is several times slower there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from memdef_jax.data import Joined, Mapped
from memdef_jax.training.state import AXIS, Metrics, Step, TrainState, put_batch, replicate

LENGTH = 32  # steps of one program: enough to hide its dispatch, and SIGTERM need not wait long
LARGEST = 4 << 30  # bytes of data that every device holds; larger data stays on the host


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Batches that are rows of arrays; called with a global step it gathers them on the host.

    Attributes:
      arrays: by name [N, ...], on the host or in files; N may differ.
      indices: by the same names the rows int [B] of a global step's batch, of this process's share
        alone.
    """

    arrays: Mapping[str, np.ndarray | Joined | Mapped]
    indices: Callable[[int], Mapping[str, np.ndarray]]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return {name: self.arrays[name][index] for name, index in self.indices(step).items()}


@dataclasses.dataclass(frozen=True)
class Scan:
    """Some consecutive steps as one `lax.scan`, with the results of as many single steps.

    Attributes:
      step: from `training.make_step`.
      batches: global ones.
      mesh: devices.
      length: how many steps.
    """

    step: Step
    batches: Gathered
    mesh: Mesh
    length: int = LENGTH

    def __call__(self, state: TrainState, done: int, key: jax.Array) -> tuple[TrainState, Metrics]:
        """From replicated state after `done` steps to that `length` later; metrics [length].

        The old state's buffers are reused.
        """
        steps = [self.batches.indices(done + more) for more in range(self.length)]
        rows = jax.tree.map(lambda *of_steps: np.stack(of_steps), *map(dict, steps))
        return self._run(state, self._data, put_batch(rows, self.mesh, many=True), key)

    @functools.cached_property
    def _data(self) -> Any:
        arrays = {name: np.asarray(array) for name, array in self.batches.arrays.items()}
        return replicate(arrays, self.mesh)

    @functools.cached_property
    def _run(self) -> Callable[..., tuple[TrainState, Metrics]]:
        step = self.step  # without self, which holds the data as long as the program lives

        def run(
            state: TrainState, data: Any, rows: Any, key: jax.Array
        ) -> tuple[TrainState, Metrics]:
            def one(state: TrainState, index: Any) -> tuple[TrainState, Metrics]:
                taken = functools.partial(jnp.take, axis=0, mode="clip")
                return step(state, jax.tree.map(taken, data, index), key)

            return lax.scan(one, state, rows)

        everywhere, split = PartitionSpec(), PartitionSpec(None, AXIS)
        mapped = jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=(everywhere, everywhere, split, everywhere),
            out_specs=(everywhere, everywhere),
            check_vma=False,  # as in `training.shard`
        )
        return jax.jit(mapped, donate_argnums=0)


def scanned(
    step: Step,
    batch: Callable[[int], Any],
    mesh: Mesh,
    backend: str = "shard_map",
    wanted: bool | None = None,
) -> Scan | None:
    """A training's steps as a `Scan`, on accelerators and with data that fits; else None.

    "pmap" and batches that are not `Gathered` go step by step.

    Args:
      step: from `training.make_step`.
      batch: of a global step.
      mesh: devices.
      backend: "shard_map" or "pmap".
      wanted: where it can be: True for always, False for never, None for where it is faster.
    """
    if not isinstance(batch, Gathered) or backend != "shard_map":
        return None
    if sum(array.nbytes for array in batch.arrays.values()) > LARGEST:
        return None
    faster = mesh.devices.flat[0].platform != "cpu"
    return Scan(step, batch, mesh) if (faster if wanted is None else wanted) else None
