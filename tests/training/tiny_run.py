"""A small training in a process of its own, to be killed: tiny_run.py FOLDER [MOMENT SAVE].

With a moment it kills itself, by SIGKILL, at that moment of that save (counted from 1 within the
process). Otherwise the parent kills it, or it ends and writes `final.npz`. `tiny_run.py FOLDER
program` is run as the programs are, so that SIGTERM has it save and end.
"""

import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax.training import (
    AXIS,
    Stage,
    TrainState,
    checkpoints,
    make_mesh,
    make_step,
    shard,
    train,
)

STEPS, SAVE_EVERY, BATCH = 48, 6, 8


def batch_of(step):
    time.sleep(0.01)  # so that kills find it anywhere, not only in a save
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.float32([1, -2, 3])}


def loss_fn(params, batch_stats, batch, keys):
    """Linear regression with noise on the input and a running mean: uses all of the state."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    error = (batch["x"] + 0.1 * noise) @ params["w"] + params["b"] - batch["y"]
    mean = 0.9 * batch_stats["mean"] + 0.1 * jax.lax.pmean(batch["x"].mean(0), AXIS)
    loss = jnp.square(error).mean()
    return loss, ({"mean": mean}, {"loss": loss})


def run(folder, **changes):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
    variables = {
        "params": {"w": jnp.zeros(3), "b": jnp.zeros(())},
        "batch_stats": {"mean": jnp.zeros(3)},
    }
    mesh = make_mesh(1)
    stage = Stage(
        name="tiny",
        step=shard(make_step(loss_fn, optimizer), mesh),
        batch=batch_of,
        total_steps=STEPS,
        batch_size=BATCH,
        save_every=SAVE_EVERY,
    )
    return train(stage, TrainState.create(variables, optimizer), jax.random.key(3), folder, mesh)


def die_at(moment, save):
    """Arrange the end of this process at a moment of the given save."""
    seen = 0

    def die():
        nonlocal seen
        seen += 1
        if seen == save:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        def patched(*args, **kwargs):
            die()
            return function(*args, **kwargs)

        return patched

    def after(function):
        def patched(*args, **kwargs):
            result = function(*args, **kwargs)
            die()
            return result

        return patched

    if moment == "before the digests":
        checkpoints._digests = before(checkpoints._digests)
    elif moment == "before the rename":
        pathlib.Path.rename = before(pathlib.Path.rename)
    elif moment == "after the rename":
        pathlib.Path.rename = after(pathlib.Path.rename)
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 3:
        die_at(sys.argv[2], int(sys.argv[3]))

    def program():
        final = run(target)
        np.savez(target / "final.npz", *map(np.asarray, jax.tree.leaves(final)))

    if sys.argv[2:] == ["program"]:
        from memdef_jax import console  # takes as long to import as all of the rest to run

        console.run(program)
    else:
        program()
