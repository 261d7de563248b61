"""Two processes of four devices each do what one process with one device does, and end together."""

import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from memdef_jax import joining, preemption
from memdef_jax.evaluation import read_records
from memdef_jax.training.metrics import read_metrics
from tests.xla_flags import FLAGS

PROGRAM = pathlib.Path(__file__).with_name("scenario.py")
ROOT = PROGRAM.parents[2]
scenario = runpy.run_path(str(PROGRAM))

# As for several devices of one process, see tests/training/test_devices.py.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}

pytestmark = pytest.mark.slow


def start(mode, folder):
    """Two joined processes of the scenario, and where what they say goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count=4 {FLAGS}"
    children = []
    for index in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": flags,
            "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA remarks on a slow machine
            "JAX_PLATFORMS": "cpu",
            joining.ADDRESS: f"127.0.0.1:{port}",
            joining.COUNT: "2",
            joining.INDEX: str(index),
        }
        command = [sys.executable, "-W", "error", str(PROGRAM), mode, str(folder)]
        children.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return children


def ended(children):
    """Status, output and errors of each."""
    said = [child.communicate(timeout=240) for child in children]
    return [(child.returncode, *words) for child, words in zip(children, said)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of two processes and of one, and what the two said."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    children = start("together", two)
    scenario["together"](one)  # while the others start
    said = ended(children)
    assert [status for status, _, _ in said] == [0, 0], said
    return two, one, said


def arrays(folder):
    with np.load(folder / "found.npz") as stored:
        return dict(stored)


def test_two_processes_train_what_one_does_and_make_the_same_adversarial_images(both):
    two, one, _ = both
    found, expected = arrays(two), arrays(one)
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"collectives", "refusals", "loaded"}:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **TOLERANCE)
    assert found["images"].shape == (40, 8, 8, 1)
    assert 0 < np.abs(found["images"]).max() <= 1


def test_the_first_loads_the_dataset_and_both_read_it_from_a_file(both):
    two, one, _ = both
    assert arrays(one)["loaded"].tolist() == [[1, False]]
    assert arrays(two)["loaded"].tolist() == [[1, True], [0, True]]


def test_they_log_and_validate_what_one_does_under_shard_map_and_pmap(both):
    two, one, _ = both
    logs = {}
    for backend in ("shard_map", "pmap"):
        logs[backend], expected = read_metrics(two / backend), read_metrics(one / backend)
        assert [row["step"] for row in logs[backend]] == [1, 2, 3, 4]
        for row, wanted in zip(logs[backend], expected, strict=True):
            assert row == pytest.approx(wanted, rel=1e-5)
    assert "validation_robust_accuracy" in logs["shard_map"][1]
    for row, wanted in zip(logs["pmap"], logs["shard_map"], strict=True):
        trained = {key: value for key, value in wanted.items() if "validation" not in key}
        assert row == pytest.approx(trained, rel=1e-5)


def test_their_sweep_has_the_records_of_one(both):
    two, one, _ = both
    found, expected = read_records(two), read_records(one)
    assert found.keys() == expected.keys()
    assert len(found) == 4  # clean, PGD, and two worst cases
    for name, wanted in expected.items():
        same = {key: wanted[key] for key in ("robust_accuracy", "success_rate", "passes", "n")}
        assert {key: found[name][key] for key in same} == same
        assert found[name]["median_norm"] in (None, pytest.approx(0.1, rel=1e-5))


def test_only_the_first_writes_and_speaks(both):
    two, one, said = both
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if not {"tree", "tensorboard", ".data"} & set(path.relative_to(folder).parts)
        }
        for folder in (two, one)
    ]
    assert names[0] == names[1]
    for backend in ("shard_map", "pmap"):
        assert len(list((two / backend / "tensorboard").iterdir())) == 1
    spoken = [re.sub(r"(?m)^\[Gloo\].*\n", "", out) for _, out, _ in said]
    assert spoken[0].startswith("compiled")
    assert spoken[1] == ""


def test_a_step_has_one_collective_for_gradients_and_metrics_and_two_for_a_batch_norm(both):
    trained = 64 * 16 + 16 + 16 + 16 * 10 + 10
    means = 2 * 16  # of the features and their squares; and back, in the gradient
    numbers = arrays(both[0])["collectives"]
    assert len(numbers) == 3
    assert numbers.sum() == trained + len(("cross_entropy", "accuracy")) + 2 * means


def test_what_one_of_them_refuses_all_hear(both):
    heard = arrays(both[0])["refusals"].tolist()
    assert heard[0] == heard[1]
    assert heard[0][:2] == ["refused by 0.", "refused by 1."]
    assert heard[0][2].startswith("the processes differ in their number; ")
    assert heard[0][3].startswith("1 devices leave some of the 2 processes without any; ")
    alone = ["refused by 0.", "refused by 0.", "nothing", "nothing"]
    assert arrays(both[1])["refusals"].tolist() == [alone]


def until_saved(folder, step, children):
    limit = time.monotonic() + 120
    while not (folder / "checkpoints" / f"step_{step}").is_dir():
        assert time.monotonic() < limit, ended(children)
        assert all(child.poll() is None for child in children), ended(children)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes, first sent SIGTERM, then continued and killed; what they said."""
    folder = tmp_path_factory.mktemp("stopped")
    children = start("killed", folder)
    until_saved(folder, 20, children)
    children[1].send_signal(signal.SIGTERM)
    asked = ended(children)
    (reached,) = {int(word) for _, _, words in asked for word in re.findall(r"step (\d+)", words)}
    children = start("killed", folder)
    until_saved(folder, 20 * (reached // 20 + 2), children)
    children[1].kill()
    began = time.monotonic()
    lost = ended(children)
    return folder, asked, lost, time.monotonic() - began


def test_sigterm_to_one_process_has_both_save_the_same_step(stopped):
    _, asked, _, _ = stopped
    assert [status for status, _, _ in asked] == [preemption.STATUS] * 2
    sentence = r"(?m)^killed: stopped by SIGTERM at step \d+; saved; the same command continues\.$"
    said = [re.findall(sentence, words) for _, _, words in asked]  # beside what XLA may say
    assert len(said[0]) == 1
    assert said[0] == said[1]


def test_the_loss_of_a_process_ends_the_other_with_a_sentence_within_a_minute(stopped):
    _, _, lost, seconds = stopped
    assert [status for status, _, _ in lost] == [preemption.STATUS, -signal.SIGKILL]
    assert (
        "process 0: process 1 of this job has ended or cannot be reached; what was saved is "
        "stored; the same command continues.\n"
    ) in lost[0][2]
    assert seconds < 60


def test_what_was_stopped_goes_on_with_another_number_of_processes(stopped, tmp_path):
    folder, asked, _, _ = stopped
    assert "continuing at" not in asked[0][1]
    resumed = scenario["killed"](folder, pause=0)
    whole = scenario["killed"](tmp_path, pause=0)
    np.testing.assert_allclose(resumed.params["w"], whole.params["w"], **TOLERANCE)
    rows, expected = read_metrics(folder), read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 401))
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
