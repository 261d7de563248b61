"""One training by the trainer that all defenses share: compute dtype, and many steps at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    DefenseVAEConfig,
    FeatureDenoiserConfig,
    HGDConfig,
    MADVAEConfig,
    MemoryDefenseConfig,
    RobustClassifierConfig,
)
from memdef_jax.defenses.selector import SelectorConfig, selector_loss
from memdef_jax.defenses.trainer import Trainer
from memdef_jax.nn.layers import Conv, Dense, batch_norm
from memdef_jax.training import AXIS, Silent, TrainState, checkpoints, make_mesh, resident
from memdef_jax.training.metrics import read_metrics

STEPS, BATCH = 8, 16


class Tiny(nn.Module):
    """A classifier with a layer of each kind."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, dropout_keys=None):
        x = nn.relu(batch_norm(train, self.axis_name)(Conv(4, 3, stride=2)(x)))
        return Dense(10)(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def fit(digits, tmp_path_factory):
    """fit(**changes to the trainer): its metrics by step, and the tree of its last checkpoint."""
    split = data.Split(digits.train.images[:64, 10:18, 10:18], digits.train.labels[:64])
    start = jax.jit(Tiny().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    loss = selector_loss(Tiny(AXIS), SelectorConfig(attack_steps=1), in_loop=True)

    optimizer = optax.sgd(0.05, momentum=0.9)

    def fit(**changes):
        folder = tmp_path_factory.mktemp("run")
        trainer = Trainer(split, folder, 0, 5, make_mesh(1), "shard_map", Silent(), **changes)
        batches = trainer.benign_batches(BATCH, 1)
        trainer.run("tiny", 1, loss, start, optimizer, batches, STEPS, BATCH)
        like = TrainState.create(start, optimizer).parts
        saved = checkpoints.restore_latest(folder / "tiny" / "checkpoints", like)
        return read_metrics(folder / "tiny"), saved.tree

    return fit


@pytest.fixture(scope="module")
def plain(fit):
    return fit()


def test_bfloat16_keeps_the_state_float32_and_trains_nearly_alike(fit, plain):
    rows, tree = fit(compute_dtype="bfloat16")
    dtypes = {leaf.dtype for leaf in jax.tree.leaves({**tree, "step": None})}
    assert dtypes == {jnp.dtype(jnp.float32)}
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (tree, plain[1]))))
    for row, exact in zip(rows, plain[0], strict=True):
        assert row["cross_entropy"] == pytest.approx(exact["cross_entropy"], rel=0.03)
        assert row["gradient_norm"] == pytest.approx(exact["gradient_norm"], rel=0.1)


def test_many_steps_at_once_give_what_single_steps_do(fit, plain, monkeypatch):
    taken = []

    class Short(resident.Scan):
        def __init__(self, *args):
            super().__init__(*args, length=4)

        def __call__(self, state, done, key):
            taken.append(done)
            return super().__call__(state, done, key)

    monkeypatch.setattr(resident, "Scan", Short)
    rows, tree = fit(scan=True)
    assert taken == [0]  # the fifth is saved, and 3 are left after it
    for row, exact in zip(rows, plain[0], strict=True):
        assert row == pytest.approx(exact, rel=1e-4)
    for found, wanted in zip(*map(jax.tree.leaves, (tree, plain[1])), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MemoryDefenseConfig,
        DefenseVAEConfig,
        MADVAEConfig,
        FeatureDenoiserConfig,
        HGDConfig,
        RobustClassifierConfig,
    ],
)
def test_every_configuration_refuses_a_dtype_that_it_cannot_compute_in(config):
    assert config().compute_dtype is None
    assert config(compute_dtype="bfloat16").compute_dtype == "bfloat16"
    with pytest.raises(InputError, match="compute_dtype 'float16' is unknown; use bfloat16"):
        config(compute_dtype="float16")
