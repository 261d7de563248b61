"""The step on one device against closed forms, and what a mesh takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memdef_jax.checks import InputError
from memdef_jax.training import TrainState, check_batch, make_mesh, make_step, shard


class Eight:
    """Stands for a mesh of eight devices where only their number matters."""

    devices = np.zeros(8)


def quadratic(params, batch_stats, batch, keys):
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.square(error).mean(), ({"seen": batch_stats["seen"] + 1}, {"first": error[0]})


def problem():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6)}
    return {k: v.astype(np.float32) for k, v in batch.items()}, rng.normal(size=3)


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_a_step_of_sgd_is_the_closed_form(backend):
    batch, w = problem()
    optimizer = optax.sgd(0.5)
    variables = {"params": {"w": jnp.float32(w)}, "batch_stats": {"seen": jnp.zeros(())}}
    step = shard(make_step(quadratic, optimizer), make_mesh(1), backend)
    state, metrics = step(TrainState.create(variables, optimizer), batch, jax.random.key(0))
    error = batch["x"] @ w - batch["y"]
    gradient = 2 * batch["x"].T @ error / 6
    np.testing.assert_allclose(state.params["w"], w - 0.5 * gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["first"], error[0], rtol=1e-5)
    assert (int(state.step), float(state.batch_stats["seen"])) == (1, 1.0)


def test_samples_draw_from_keys_folded_from_step_and_place():
    def drawing(params, batch_stats, batch, keys):
        # As digits of a number, so that a mean over the batch still tells each draw.
        draws = jax.vmap(lambda key: jax.random.randint(key, (), 0, 10))(keys)
        number = (draws * 10 ** jnp.arange(4)).sum().astype(jnp.float32)
        return params["w"] * 0.0, (batch_stats, {"number": number})

    optimizer = optax.sgd(0.1)
    step = shard(make_step(drawing, optimizer), make_mesh(1))
    state = TrainState.create({"params": {"w": jnp.float32(1)}}, optimizer)
    key = jax.random.key(9)
    for number in range(2):
        state, metrics = step(state, {"x": jnp.zeros((4, 1))}, key)
        keys = [jax.random.fold_in(jax.random.fold_in(key, number), place) for place in range(4)]
        expected = sum(int(jax.random.randint(k, (), 0, 10)) * 10**i for i, k in enumerate(keys))
        assert metrics["number"] == expected


def test_a_fresh_state_starts_at_step_zero_without_statistics():
    state = TrainState.create({"params": {"w": jnp.ones(2)}}, optax.adam(1e-3))
    assert int(state.step) == 0
    assert state.variables.keys() == {"params", "batch_stats"}
    assert state.batch_stats == {}


def test_averages_are_those_of_all_visited_weights_and_statistics_weighted_by_the_decay():
    batch, w = problem()
    optimizer, decay, steps = optax.sgd(0.05), 0.7, 4
    variables = {"params": {"w": jnp.float32(w)}, "batch_stats": {"seen": jnp.zeros(())}}
    step = shard(make_step(quadratic, optimizer, decay=decay), make_mesh(1))
    state = TrainState.create(variables, optimizer, average=True)
    visited = []
    for _ in range(steps):
        state, _ = step(state, batch, jax.random.key(0))
        w = w - 0.05 * 2 * batch["x"].T @ (batch["x"] @ w - batch["y"]) / 6
        visited.append(w)
    weights = decay ** np.arange(steps)[::-1]
    weights /= weights.sum()
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-4)
    np.testing.assert_allclose(state.variables["params"]["w"], weights @ visited, rtol=1e-4)
    seen = weights @ np.arange(1, steps + 1)
    np.testing.assert_allclose(state.variables["batch_stats"]["seen"], seen, rtol=1e-5)
    assert state.raw["params"] is state.params


def test_a_batch_that_does_not_split_evenly_is_refused_with_one_that_does():
    check_batch(16, Eight)
    with pytest.raises(InputError, match="batch size 20 is not divisible by 8 devices; use 16"):
        check_batch(20, Eight)
    with pytest.raises(InputError, match="batch size 3 is not divisible by 8 devices; use 8"):
        check_batch(3, Eight)


@pytest.mark.parametrize("devices", [0, -1, 10_000])
def test_a_mesh_of_more_devices_than_there_are_is_refused(devices):
    with pytest.raises(InputError, match=f"{devices} devices were asked for"):
        make_mesh(devices)


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="backend 'xmap' is unknown; use 'shard_map' or 'pmap'"):
        shard(make_step(quadratic, optax.sgd(0.1)), make_mesh(1), "xmap")
