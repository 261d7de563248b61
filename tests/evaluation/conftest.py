"""Handmade defenses on a few digits, and a sweep over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import data
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import SweepConfig, sweep
from tests.evaluation import handmade

COUNT, BATCH = 13, 8  # not divisible: the last batch holds padding
CONFIG = SweepConfig(
    attacks=("fgsm", "pgd", "cw"),
    eps=(2 / 255, 9 / 255),
    count=COUNT,
    cw_count=4,
    cw_steps=10,
    cw_learning_rate=0.1,
    batch_size=BATCH,
)


class Notes:
    """A reporter that remembers, and fails where it is told to."""

    def __init__(self, fail_at=None):
        self.started, self.updates, self.notes, self.fail_at = [], [], [], fail_at

    def start(self, stage, done, total, items_per_step):
        self.started.append((stage, done, total, items_per_step))

    def update(self, step, metrics):
        self.updates.append(step)
        if step == self.fail_at:
            raise ConnectionResetError("the terminal is gone")

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def notes():
    return Notes


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def template(digits):
    """A pure template stack: reconstructions show the slot and nothing of the image."""
    return handmade.make(digits)


@pytest.fixture(scope="session")
def pair(digits):
    """Two selectors over one stack, as a run has them.

    Classifier-B calls slot 3 a 5, so that pipeline and classifier-A differ.
    """
    first = handmade.make(digits, called={3: 5})
    second = handmade.make(digits, seed=1).variables["selector"]
    stack = first.variables["stack"]
    return {
        "benign": first,
        "in_loop": MemoryDefense(first.spec, {"selector": second, "stack": stack}),
    }


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def swept(pair, digits, tmp_path_factory):
    """(folder, records) of one whole sweep: both selectors, all threats, all attacks."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(pair, digits, CONFIG, folder)


@pytest.fixture(scope="session")
def judge():
    """judge(defense, x): answers of pipeline and classifier-A, in whole batches of 8."""
    both = jax.jit(lambda defense, x: (defense(x).argmax(-1), defense.selector(x).argmax(-1)))

    def run(defense, x):
        x = np.asarray(x)
        filled = np.concatenate([x, np.repeat(x[:1], -len(x) % BATCH, axis=0)])
        parts = [both(defense, filled[i : i + BATCH]) for i in range(0, len(filled), BATCH)]
        answer, slot = (np.concatenate([p[k] for p in parts])[: len(x)] for k in (0, 1))
        return answer, slot

    return run


@pytest.fixture(scope="session")
def cell(swept):
    """cell(**wanted): the one record of the whole sweep that has these values."""

    def find(**wanted):
        found = [r for r in swept[1] if all(r[k] == v for k, v in wanted.items())]
        assert len(found) == 1, (wanted, len(found))
        return found[0]

    return find


@pytest.fixture(scope="session")
def shown(digits):
    """(x [13, 28, 28, 1], y [13]) of the whole sweep: the first test images."""
    part = digits.test[:COUNT]
    assert set(np.diff(part.labels) >= 0) == {True, False}, "not in the order of the classes"
    return data.to_float(jnp.asarray(part.images)), jnp.asarray(part.labels)
