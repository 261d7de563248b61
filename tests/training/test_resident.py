"""Many steps as one program: the same weights, metrics and checkpoints as step by step."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memdef_jax import preemption
from memdef_jax.training import (
    AXIS,
    Gathered,
    Scan,
    Stage,
    TrainingDiverged,
    TrainState,
    Validation,
    make_mesh,
    make_step,
    resident,
    scanned,
    shard,
    train,
)

BATCH, LENGTH = 8, 4


def loss_fn(params, batch_stats, batch, keys):
    """Regression on noisy uint8 pixels with a running mean: uses all of the state."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    x = batch["x"].astype(jnp.float32) / 255
    error = (x + 0.1 * noise) @ params["w"] - batch["y"]
    mean = 0.9 * batch_stats["mean"] + 0.1 * jax.lax.pmean(x.mean(0), AXIS)
    return jnp.square(error).mean(), ({"mean": mean}, {"loss": jnp.square(error).mean()})


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 256, (40, 3), np.uint8), "y": np.float32(rng.normal(size=40))}

    def indices(step):
        """Of the labels' order the other way round: every array has rows of its own."""
        index = np.random.default_rng(step).integers(0, 40, BATCH)
        return {"x": index, "y": 39 - index}

    return Gathered(arrays, indices)


@pytest.fixture(scope="module")
def programs(batches):
    """The step alone, and several of it as one; compiled once for all tests."""
    mesh, step = make_mesh(1), make_step(loss_fn, optax.adam(0.1), decay=0.9)
    return mesh, shard(step, mesh), Scan(step, batches, mesh, LENGTH)


@pytest.fixture
def run(programs, batches, tmp_path, notes):
    """run(folder, scan=another one or False, **changes to the stage)"""
    mesh, step, many = programs

    def run(folder, scan=True, **changes):
        settings = {"total_steps": 21, "save_every": 7, "batch": batches, **changes}
        settings["scan"] = (many if scan is True else scan) or None
        stage = Stage(name="tiny", step=step, batch_size=BATCH, **settings)
        variables = {"params": {"w": jnp.zeros(3)}, "batch_stats": {"mean": jnp.zeros(3)}}
        state = TrainState.create(variables, optax.adam(0.1), average=True)
        return train(stage, state, jax.random.key(3), tmp_path / folder, mesh, notes)

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kept_steps(folder):
    return sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step_*"))


def assert_near(state, other):
    for found, wanted in zip(*map(jax.tree.leaves, (state, other)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_it_gives_the_weights_metrics_checkpoints_and_validations_of_single_steps(
    run, batches, tmp_path
):
    def measure(variables):
        return {"score": float(variables["params"]["w"].sum())}

    asked = []

    def asking(step):
        asked.append(step)
        return batches(step)

    validation = Validation(every=5, measure=measure, score="score")
    apart = run("apart", scan=False, validation=validation)
    together = run("together", batch=asking, validation=validation)
    # The others are gathered on the device: 1 to 4, 11 to 14 and 16 to 19, counted from 1.
    assert asked == [4, 5, 6, 7, 8, 9, 14, 19, 20]
    assert_near(together, apart)
    assert kept_steps(tmp_path / "together") == kept_steps(tmp_path / "apart") == [14, 21]
    found, wanted = rows(tmp_path / "together"), rows(tmp_path / "apart")
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for name in ("step", "loss", "gradient_norm"):
        one, other = ([row[name] for row in part] for part in (found, wanted))
        np.testing.assert_allclose(one, other, rtol=1e-4)
    assert [row["step"] for row in found if "score" in row] == [5, 10, 15, 20, 21]


def test_what_is_not_finite_stops_at_its_own_step_and_is_never_saved(
    run, programs, batches, tmp_path
):
    poisoned = {**batches.arrays, "y": np.append(batches.arrays["y"], np.nan).astype(np.float32)}
    poisoned["x"] = np.append(batches.arrays["x"], [[0, 0, 0]], axis=0).astype(np.uint8)

    def indices(step):
        bad = np.full(BATCH, 40)
        return {"x": bad, "y": bad} if step == 9 else batches.indices(step)

    with pytest.raises(TrainingDiverged, match=r"at step 10; .*that of step 7 is kept"):
        run("poisoned", scan=dataclasses.replace(programs[2], batches=Gathered(poisoned, indices)))
    assert kept_steps(tmp_path / "poisoned") == [7]
    assert [row["step"] for row in rows(tmp_path / "poisoned")] == list(range(1, 10))


def test_sigterm_saves_after_the_steps_that_were_begun_and_the_same_call_goes_on(
    run, tmp_path, notes, monkeypatch
):
    before = signal.getsignal(signal.SIGTERM)

    def terminated(step, metrics):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(notes, "update", terminated)

    def program():
        with preemption.listening():
            run("stopped", save_every=100)

    with pytest.raises(preemption.Preempted, match="SIGTERM at step 8; saved"):
        program()
    signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert kept_steps(tmp_path / "stopped") == [8]
    resumed = run("stopped", scan=False, save_every=100)
    assert notes.started[-1][1] == 8
    assert_near(resumed, run("whole", save_every=100))
    assert [row["step"] for row in rows(tmp_path / "stopped")] == list(range(1, 22))


def test_it_is_chosen_by_the_devices_unless_it_is_said_and_only_where_it_can_be(batches):
    cpu = make_mesh(1)
    gpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    large = np.broadcast_to(np.uint8(0), (resident.LARGEST + 1,))
    assert scanned(loss_fn, batches, gpu) is not None
    assert scanned(loss_fn, batches, gpu, wanted=False) is None
    assert scanned(loss_fn, batches, cpu) is None
    assert scanned(loss_fn, batches, cpu, wanted=True).length == resident.LENGTH
    for other in (batches.__call__, Gathered({"x": large}, batches.indices)):
        assert scanned(loss_fn, other, gpu, wanted=True) is None
    assert scanned(loss_fn, batches, gpu, "pmap", wanted=True) is None
