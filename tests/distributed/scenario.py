"""Two programs of several processes, for the tests beside it: scenario.py together|killed FOLDER.

`together` trains under shard_map and pmap, makes adversarial examples and sweeps; what comes out
is in FOLDER. `killed` is a long cheap training. With the variables of `memdef_jax.joining` set they
are joined; without, one process does the same alone.
"""

import pathlib
import re
import sys
import time
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax import console, data, joining, processes
from memdef_jax.attacks import PGD
from memdef_jax.checks import InputError
from memdef_jax.defenses import PlainDefense, examples
from memdef_jax.defenses.classifier.robust_validation import ROBUST, robust_accuracy
from memdef_jax.defenses.selector import SelectorConfig, selector_loss
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.evaluation import SweepConfig, sweep
from memdef_jax.nn import Bound
from memdef_jax.nn.layers import batch_norm
from memdef_jax.training import (
    AXIS,
    Scan,
    Silent,
    Stage,
    TrainState,
    Validation,
    make_mesh,
    make_step,
    process_rows,
    put_batch,
    replicate,
    shard,
    train,
)
from memdef_jax.training.run import open_run

BATCH, STEPS = 16, 4
ATTACK = PGD(eps=0.1, step_size=0.05, steps=1)


class Small(nn.Module):
    """A classifier that compiles fast and has a BatchNorm."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, dropout_keys=None):
        x = nn.Dense(16, use_bias=False)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.relu(batch_norm(train, self.axis_name)(x)))


def together(folder):
    """Everything that is split over processes, in small."""
    loaded = []

    def load():
        loaded.append("digits")
        return data.load("digits", image_size=8)

    digits = data.shared(load, folder)
    had = (len(loaded), isinstance(digits.train.images, data.Mapped))
    open_run(folder, {"seed": 3})
    module, trained = Small(), Small(AXIS)
    initial = jax.jit(module.init)(jax.random.key(1), np.zeros((1, 8, 8, 1), np.float32))
    mesh, split = make_mesh(), digits.train.take(64)
    recipe = SelectorConfig(batch_size=BATCH, attack_steps=1, step_size=0.1)
    found = {}
    for backend in ("shard_map", "pmap"):
        trainer = Trainer(split, folder, 3, 2, mesh, backend, Silent())
        # Some images more than fill the batches, so that the last one is filled up.
        judged = robust_accuracy(module, (ATTACK,), digits.train[64:90], trainer.key(2), mesh)
        found[backend] = trainer.run(
            backend,
            1,
            selector_loss(trained, recipe, in_loop=True),
            initial,
            optax.sgd(0.1),  # Adam would blow up rounding where the exact gradient is zero
            trainer.benign_batches(BATCH, 1),
            STEPS,
            BATCH,
            validation=Validation(2, judged, ROBUST) if backend == "shard_map" else None,
        )
    plain = selector_loss(trained, recipe, in_loop=False)
    found["scan"] = scanned(plain, initial, trainer.benign_batches(BATCH, 1), mesh, folder)
    collectives = exchanged(plain, initial, trainer.benign_batches(BATCH, 1)(0), mesh)
    host = jax.device_get(found)
    model = Bound(module, host["shard_map"])
    with mock.patch.object(examples, "PART", 16):  # three parts, for one process or two
        made = examples.adversarial_examples(
            lambda index: ATTACK,
            model,
            split.take(40),
            jax.random.key(7),
            folder / "examples",
            Silent(),
        )
    defense = PlainDefense.of(model, (8, 8, 1), undefended=model)
    config = SweepConfig(
        attacks=("pgd",), eps=(0.1,), threats=("grey_box",), count=50, batch_size=32
    )
    sweep({"benign": defense}, digits, config, folder)
    heard = refusals()
    told = processes.gathered(lambda: {f"data of {processes.index()}": np.array(had)})
    if processes.is_writer():
        leaves = jax.tree_util.tree_leaves_with_path(host)
        arrays = {jax.tree_util.keystr(place): leaf for place, leaf in leaves}
        arrays |= {"images": np.asarray(made[0]), "success": made[1], "collectives": collectives}
        arrays["refusals"] = np.array(heard)
        arrays["loaded"] = np.array([told[name] for name in sorted(told)])
        np.savez(folder / "found.npz", **arrays)


def scanned(loss_fn, variables, batches, mesh, folder):
    """Two times two steps as one program over data that stays on the devices, and two alone."""
    step = make_step(loss_fn, optax.sgd(0.1))
    stage = Stage(
        name="scan",
        step=shard(step, mesh),
        batch=batches,
        total_steps=6,
        batch_size=BATCH,
        save_every=5,
        scan=Scan(step, batches, mesh, 2),
    )
    state = TrainState.create(variables, optax.sgd(0.1))
    return train(stage, state, jax.random.key(3), folder / "scan", mesh, Silent()).variables


def refusals():
    """What each process hears when one of them refuses something, or they differ."""

    def refuse(place):
        if processes.index() == place:
            raise InputError(f"refused by {place}.")
        return {}

    last, said = processes.count() - 1, []
    for work in (
        lambda: processes.by_one(lambda: refuse(0)),
        lambda: processes.gathered(lambda: refuse(last)),
        lambda: processes.agree("their number", processes.index()),
        lambda: make_mesh(1),
    ):
        try:
            work()
            said.append("nothing")
        except InputError as error:
            said.append(str(error))
    heard = processes.gathered(lambda: {f"heard by {processes.index()}": np.array(said)})
    return [heard[name] for name in sorted(heard)]


def exchanged(loss_fn, variables, batch, mesh):
    """The numbers that each collective of a compiled step exchanges, int [collectives]."""
    state = replicate(TrainState.create(variables, optax.sgd(0.1)), mesh)
    step = shard(make_step(loss_fn, optax.sgd(0.1)), mesh)
    lowered = step.lower(state, put_batch(batch, mesh), replicate(jax.random.key(0), mesh))
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    made = re.findall(rf" = (.*?) (?:{kinds})\(", lowered.compile().as_text())
    return np.array([_numbers(kind) for kind in made], int)


def _numbers(kind):
    """How many there are in a type of XLA's, such as (f32[64,16]{1,0}, f32[])."""
    shapes = re.findall(r"f32\[([\d,]*)\]", kind)
    return sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def killed(folder, steps=400, pause=0.01):
    """Linear regression, slow enough to be stopped."""
    mesh = make_mesh()
    rows = process_rows(8, mesh)

    def batch(step):
        time.sleep(pause)
        x = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
        return {"x": x[rows], "y": (x @ np.float32([1, -2, 3]))[rows]}

    def loss_fn(params, batch_stats, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        error = (batch["x"] + 0.1 * noise) @ params["w"] - batch["y"]
        loss = jnp.square(error).mean()
        return loss, (batch_stats, {"loss": loss})

    optimizer = optax.sgd(0.01)
    state = TrainState.create({"params": {"w": jnp.zeros(3)}}, optimizer)
    step = shard(make_step(loss_fn, optimizer), mesh)
    stage = Stage(
        name="killed", step=step, batch=batch, total_steps=steps, batch_size=8, save_every=20
    )
    return train(stage, state, jax.random.key(3), folder, mesh, console.ConsoleReporter())


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        joining.SILENCE = 8.0  # the tests do not wait as long as users do
    program, place = {"together": together, "killed": killed}[sys.argv[1]], sys.argv[2]
    console.run(lambda: program(pathlib.Path(place)), together=True)
