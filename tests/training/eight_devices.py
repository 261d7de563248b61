"""Trains on 1 and on 8 virtual devices, under shard_map and pmap; eight_devices.py OUT.npz.

Writes "<problem>/<backend>/<devices>/..." arrays: parameters, statistics and metrics after the
first step and after the last, for the tests beside it to compare.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax import data
from memdef_jax.defenses import MemoryDefenseSpec, SelectorConfig, StackConfig
from memdef_jax.defenses.memory.stack import stack_loss
from memdef_jax.defenses.selector import selector_loss
from memdef_jax.nn import classifier
from memdef_jax.training import (
    AXIS,
    Gathered,
    Scan,
    TrainState,
    make_mesh,
    make_step,
    put_batch,
    replicate,
    shard,
)

BATCH, STEPS, RATE = 16, 3, 0.1
SPEC = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10, memory_rows=20)


def linear_loss(params, batch_stats, batch, keys):
    error = batch["image"].reshape(len(keys), -1).astype(jnp.float32) @ params["w"] - batch["label"]
    loss = jnp.square(error).mean()
    return loss, (batch_stats, {"loss": loss})


def problems():
    erase = data.Augmentation(vertical_flip=True, erasing_probability=0.5)
    selector = SelectorConfig(batch_size=BATCH, attack_steps=1, step_size=0.1, augmentation=erase)
    small = classifier("small_cnn", 10, AXIS)
    first = jax.device_get(SPEC.init_selector(jax.random.key(1)))
    yield "linear", linear_loss, {"params": {"w": np.full(784, 1e-3, np.float32)}}, 1e-7
    yield "benign", selector_loss(small, selector, False), first, RATE
    yield "in_loop", selector_loss(small, selector, True), first, RATE
    # Weights far above the paper's, so that a wrong term would show.
    stack = StackConfig(
        memory_rows=20,
        alpha=0.01,
        beta=0.5,
        noise=0.1,
        random_mask_share=0.5,
        augmentation=data.Augmentation(crop_padding=2, noise_sigma=0.05),
    )
    variables = jax.device_get(SPEC.init_stack(jax.random.key(2)))
    yield "stack", stack_loss(SPEC, stack), variables, RATE


def main(path):
    train = data.load("digits").train
    results = {}
    for name, loss_fn, variables, rate in problems():
        for backend, devices in (("shard_map", 1), ("shard_map", 8), ("pmap", 8)):
            mesh = make_mesh(devices)
            # SGD, not Adam: Adam divides the scale of a gradient away, and scale is what may be
            # wrong by the number of devices.
            optimizer = optax.sgd(rate)
            step = shard(make_step(loss_fn, optimizer), mesh, backend)
            state = replicate(TrainState.create(variables, optimizer), mesh)
            for number in range(STEPS):
                image, label = data.train_batch(train, number, BATCH, 0)
                batch = put_batch({"image": image, "label": label}, mesh)
                state, metrics = step(state, batch, jax.random.key(5))
                if number in (0, STEPS - 1):
                    when = "first" if number == 0 else "last"
                    content = {"metrics": metrics, "variables": state.variables}
                    for place, leaf in jax.tree_util.tree_leaves_with_path(content):
                        label = jax.tree_util.keystr(place, simple=True, separator="/")
                        results[f"{name}/{backend}/{devices}/{when}/{label}"] = np.asarray(leaf)
    results |= scanned(train)
    np.savez(path, **results)


def scanned(train):
    """The linear problem's steps as one program over data that stays on eight devices."""
    _, loss_fn, variables, rate = next(problems())
    mesh, optimizer = make_mesh(8), optax.sgd(rate)
    batches = Gathered(
        {"image": train.images, "label": train.labels},
        lambda number: dict.fromkeys(
            ("image", "label"), data.batch_indices(len(train), number, BATCH, 0)
        ),
    )
    scan = Scan(make_step(loss_fn, optimizer), batches, mesh, STEPS)
    state = replicate(TrainState.create(variables, optimizer), mesh)
    state, metrics = scan(state, 0, replicate(jax.random.key(5), mesh))
    return {
        "linear/scan/8/last/variables/params/w": np.asarray(state.params["w"]),
        **{f"linear/scan/8/last/metrics/{name}": np.asarray(m)[-1] for name, m in metrics.items()},
    }


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    main(sys.argv[1])
