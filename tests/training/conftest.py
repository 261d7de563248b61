"""A training whose step is plain Python, so that a test decides what each step reports."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from memdef_jax.training import Stage, TrainState, make_mesh, train


class Notes:
    """A reporter that remembers."""

    def __init__(self):
        self.started, self.updates, self.notes = [], [], []

    def start(self, stage, done, total, items_per_step):
        self.started.append((stage, done, total, items_per_step))

    def update(self, step, metrics):
        self.updates.append((step, dict(metrics)))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def counting(tmp_path, notes):
    """run(metrics_of, **changes to the stage): each step adds one to the parameter."""

    def run(metrics_of=lambda step: {"loss": 1.0 / step}, width=2, **changes):
        def step(state, batch, key):
            number = int(state.step) + 1
            metrics = {k: jnp.float32(v) for k, v in metrics_of(number).items()}
            return dataclasses.replace(state, step=state.step + 1, params=state.params + 1), metrics

        settings = {
            "name": "counting",
            "step": step,
            "batch": lambda number: jnp.zeros((4, 1)),
            "total_steps": 10,
            "batch_size": 4,
            "save_every": 3,
        }
        state = TrainState(jnp.zeros((), jnp.int32), jnp.zeros(width), {}, ())
        stage = Stage(**{**settings, **changes})
        return train(stage, state, jax.random.key(0), tmp_path, make_mesh(1), notes)

    return run
