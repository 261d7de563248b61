"""The training state and the step, written once for one device of a mesh (design contract 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from memdef_jax import processes
from memdef_jax.checks import InputError

AXIS = "data"

Metrics = Mapping[str, jax.Array]
# (params, batch_stats, batch, keys[B]) -> (loss, (batch_stats, metrics)), for this device's share.
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]
Step = Callable[["TrainState", Any, jax.Array], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while training, and all that is needed to go on.

    Attributes:
      step: updates done, int32.
      params: trained parameters.
      batch_stats: BatchNorm's running statistics.
      opt_state: of the optimiser.
      average: running means of params and batch_stats, see `averaged`; None without.
      best: what validation has kept, a `validation.Best`; None without.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None
    best: Any = None

    @classmethod
    def create(
        cls,
        variables: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        average: bool = False,
    ) -> TrainState:
        """A fresh state from a module's initial variables; `average` as `make_step` has a decay."""
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        state = cls(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
        if average:  # any values: the first step leaves nothing of them
            state = dataclasses.replace(state, average=jax.tree.map(jnp.zeros_like, state.raw))
        return state

    @property
    def raw(self) -> dict[str, Any]:
        """What a module is applied with while training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """What a module is applied with afterwards: the best or, without, the running means."""
        if self.best is not None:
            return self.best.variables
        return self.raw if self.average is None else self.average

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds: only what there is, so that new fields leave old ones readable.

        `TrainState(**parts)` is the state again.
        """
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


def averaged(average: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """Exponential moving average of what has been seen, without the initial value.

    After step t it is the mean of the values of steps 1 to t with weights decay**(t - i): the
    average started at zero and divided by 1 - decay**t (Adam's correction), kept as one number.

    Args:
      average: a pytree, after the step before.
      new: the same tree now.
      step: t, from 1.
      decay: in (0, 1).
    """
    t = step.astype(jnp.float32)
    log = jnp.log(jnp.float32(decay))
    kept = decay * jnp.expm1((t - 1) * log) / jnp.expm1(t * log)  # 0 at the first step
    return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, average, new)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    axis_name: str = AXIS,
    decay: float | None = None,
) -> Step:
    """One optimisation step on this device's share of a batch.

    Gradients and metrics are averaged over `axis_name`; BatchNorm does so itself. Each sample has
    its own key, folded from the step and its place in the global batch, so neither augmentation
    nor dropout depends on the number of devices. A loss that is not linear in the batch mean must
    average over the axis itself before the nonlinearity.

    With a `decay`, parameters and BatchNorm's running statistics are averaged alike, see
    `averaged`: the statistics of averaged weights are not those of the raw ones, and means of
    nearby networks' are close to them.

    Returns:
      step(state, batch, key) -> (state, metrics), to be run by `shard`. The metrics gain
      "gradient_norm".
    """

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        size = jax.tree.leaves(batch)[0].shape[0]
        index = lax.axis_index(axis_name) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, state.step), index)
        grad_fn = jax.grad(loss_fn, has_aux=True)
        grads, (batch_stats, metrics) = grad_fn(state.params, state.batch_stats, batch, keys)
        # One collective: XLA joins those that do not wait for each other.
        grads, metrics = lax.pmean((grads, dict(metrics)), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        new = TrainState(state.step + 1, params, batch_stats, opt_state)
        if decay is not None:
            average = averaged(state.average, new.raw, new.step, decay)
            new = dataclasses.replace(new, average=average)
        return new, metrics

    return step


def make_mesh(devices: int | None = None, *, local: bool = False) -> Mesh:
    """A one-axis mesh over the first `devices` devices (all of them if None).

    With several processes it spans the devices of all, those of a process side by side.

    Args:
      devices: how many.
      local: only those of this process.

    Raises:
      InputError: if there are fewer devices, or some of several processes would have none.
    """
    together = processes.count()
    available = jax.local_devices() if local or together == 1 else jax.devices()
    available = sorted(available, key=lambda device: (device.process_index, device.id))
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise InputError(
            f"{count} devices were asked for and {len(available)} are there; "
            f"ask for 1 to {len(available)}."
        )
    chosen = available[:count]
    if not local and len({device.process_index for device in chosen}) < together:
        raise InputError(
            f"{count} devices leave some of the {together} processes without any; use all of them."
        )
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def process_rows(batch_size: int, mesh: Mesh) -> slice:
    """Which rows of a global batch this process holds: all of them where it is the only one.

    Args:
      batch_size: global; it splits evenly over the mesh.
      mesh: from `make_mesh`.
    """
    own = [device in mesh.local_devices for device in mesh.devices.flat]
    first, each = own.index(True), batch_size // mesh.devices.size
    return slice(first * each, (first + sum(own)) * each)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Check that a global batch splits evenly over the mesh.

    Raises:
      InputError: if it does not.
    """
    count = mesh.devices.size
    if batch_size % count:
        raise InputError(
            f"batch size {batch_size} is not divisible by {count} devices; "
            f"use {max(count, batch_size - batch_size % count)}."
        )


def put_batch(batch: Any, mesh: Mesh, many: bool = False) -> Any:
    """Place a host batch on the mesh, split along its first axis.

    Args:
      batch: this process's rows of the global batch, see `process_rows`.
      mesh: devices.
      many: whether these are several batches, stacked along an axis before that one.
    """
    split = NamedSharding(mesh, PartitionSpec(None, AXIS) if many else PartitionSpec(AXIS))
    if _is_local(mesh):
        return jax.device_put(batch, split)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split, rows), batch)


def step_batch(batch: Any, mesh: Mesh) -> Any:
    """A host batch as a jitted step over the mesh takes it.

    That is `put_batch`, but for a mesh of one device: there the step itself takes arrays of the
    host, at a tenth of the cost of placing them.
    """
    return put_batch(batch, mesh) if mesh.devices.size > 1 else batch


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree, the same in every process, to every device of the mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if _is_local(mesh):
        # Never an alias: the step gives away the state's buffers, and the caller's are not ours.
        return jax.device_put(tree, everywhere, may_alias=False)

    def copied(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            numbers = copied(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
        host = np.array(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda place: host[place])

    return jax.tree.map(copied, tree)


def _is_local(mesh: Mesh) -> bool:
    return len(mesh.local_devices) == mesh.devices.size


def shard(step: Step, mesh: Mesh, backend: str = "shard_map") -> Step:
    """Run a per-device step over a mesh, jitted; `shard_map` reuses the old state's buffers.

    Args:
      step: from `make_step`.
      mesh: one device is a mesh of one.
      backend: "shard_map" or "pmap".

    Returns:
      The step on global batches and replicated state.

    Raises:
      InputError: for another backend.
    """
    if backend == "shard_map":
        everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
        # With check_vma the gradient of replicated parameters would already be summed over the
        # axis, and averaging it again would leave it too large by the number of devices.
        mapped = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere, split, everywhere),
            out_specs=(everywhere, everywhere),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    if backend == "pmap":
        count = mesh.devices.size
        pmapped = jax.pmap(
            step, AXIS, in_axes=(None, 0, None), out_axes=None, devices=list(mesh.devices.flat)
        )

        def run(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
            def split_axis(x: jax.Array) -> Any:
                if _is_local(mesh):
                    return x.reshape(count, x.shape[0] // count, *x.shape[1:])
                # With several processes pmap takes each one's own share.
                shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
                return np.stack([np.asarray(shard.data) for shard in shards])

            return pmapped(state, jax.tree.map(split_axis, batch), key)

        return run
    raise InputError(f"backend {backend!r} is unknown; use 'shard_map' or 'pmap'.")
