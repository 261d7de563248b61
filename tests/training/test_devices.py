"""Eight devices train as one does, under shard_map and under pmap."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from memdef_jax import data
from tests.xla_flags import FLAGS

PROGRAM = pathlib.Path(__file__).with_name("eight_devices.py")
ROOT = PROGRAM.parents[2]
PROBLEMS = ("linear", "benign", "in_loop", "stack")
BACKENDS = ("shard_map", "pmap")

# The same float32 numbers are summed over the batch in another order: some units in the last place
# (6e-8 each), which BatchNorm and three steps amplify little. Biases before a BatchNorm have the
# exact gradient zero and hold nothing but such rounding, hence the absolute part.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "out.npz"
    flags = f"--xla_force_host_platform_device_count=8 {FLAGS}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", str(PROGRAM), str(path)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def part(trained, problem, backend, devices, when):
    prefix = f"{problem}/{backend}/{devices}/{when}/"
    found = {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
    assert found
    return found


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["first", "last"])
def test_eight_devices_give_the_parameters_statistics_and_metrics_of_one(
    trained, problem, backend, when
):
    one = part(trained, problem, "shard_map", 1, when)
    eight = part(trained, problem, backend, 8, when)
    assert one.keys() == eight.keys()
    for name in one:
        np.testing.assert_allclose(eight[name], one[name], err_msg=name, **TOLERANCE)


def test_steps_that_eight_devices_run_as_one_program_are_those_of_one(trained):
    one = part(trained, "linear", "shard_map", 1, "last")
    scan = part(trained, "linear", "scan", 8, "last")
    assert one.keys() == scan.keys()
    for name in one:
        np.testing.assert_allclose(scan[name], one[name], err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_gradient_on_eight_devices_has_its_closed_form_and_scale(trained, backend):
    # What a sum over devices in place of a mean would make eight times too large.
    image, label = data.train_batch(data.load("digits").train, 0, 16, 0)
    x, w = image.reshape(16, -1).astype(np.float64), np.full(784, 1e-3)
    gradient = 2 * x.T @ (x @ w - label) / 16
    found = part(trained, "linear", backend, 8, "first")
    np.testing.assert_allclose(found["metrics/gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(found["variables/params/w"], w - 1e-7 * gradient, 1e-5, 1e-9)
    np.testing.assert_allclose(found["metrics/loss"], np.square(x @ w - label).mean(), rtol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_steps_change_every_trained_array(trained, problem):
    # Otherwise the comparisons above would hold for a step that does nothing.
    first = part(trained, problem, "shard_map", 8, "first")
    last = part(trained, problem, "shard_map", 8, "last")
    names = [n for n in first if n.startswith("variables/") and n.endswith(("kernel", "w", "mean"))]
    assert names
    assert all((first[n] != last[n]).any() for n in names)


def test_every_term_of_the_stack_takes_part_in_the_comparison(trained):
    metrics = part(trained, "stack", "pmap", 8, "first")
    for name in (
        "target_mse",
        "non_target_mse",
        "target_entropy",
        "non_target_entropy",
        "bounded_term",
        "cross_entropy",
        "active_rows",
        "largest_safe_threshold",
    ):
        assert metrics[f"metrics/{name}"] > 0
