"""A training killed by SIGKILL, at any moment, ends as if it had never been killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("tiny_run.py")
ROOT = PROGRAM.parents[2]
DEADLINE = 120


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process, status):
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == status, output


def kill_once(folder, moment):
    """Start the training and kill it as soon as `moment()` is true."""
    process = start(folder)
    last = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < last and not moment():
        time.sleep(0.001)
    process.kill()
    end(process, -signal.SIGKILL)


def steps_in(store):
    return {int(p.name.removeprefix("step_")) for p in store.glob("step_*")}


def lines(folder):
    return (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    end(start(folder), 0)
    return folder


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(uninterrupted, tmp_path):
    store = tmp_path / "checkpoints"
    seed = random.SystemRandom().randrange(10**6)
    print("seed of the random moment:", seed)
    wait = random.Random(seed).uniform(0.0, 0.3)

    end(start(tmp_path, "before the digests", 1), -signal.SIGKILL)
    assert not steps_in(store)
    assert list(store.glob(".saving-*")), "the save was to be killed half-way"

    end(start(tmp_path, "before the rename", 2), -signal.SIGKILL)
    assert steps_in(store) == {6}
    assert list(store.glob(".saving-*"))

    end(start(tmp_path, "after the rename", 2), -signal.SIGKILL)
    assert steps_in(store) == {6, 12, 18} or steps_in(store) == {12, 18}

    known = set(store.glob(".saving-*"))
    kill_once(tmp_path, lambda: set(store.glob(".saving-*")) - known)
    middle = max(steps_in(store))
    assert 18 <= middle < 48

    def a_random_while_after_the_next_checkpoint():
        if max(steps_in(store)) == middle:
            return False
        time.sleep(wait)
        return True

    kill_once(tmp_path, a_random_while_after_the_next_checkpoint)
    assert not (tmp_path / "final.npz").exists()

    with (tmp_path / "metrics.jsonl").open("a") as file:  # a line torn by the kill
        file.write('{"step": 48, "lo')
    end(start(tmp_path), 0)

    assert lines(tmp_path) == lines(uninterrupted)
    assert [json.loads(line)["step"] for line in lines(tmp_path).splitlines()] == list(range(1, 49))
    assert final_arrays(tmp_path) == final_arrays(uninterrupted)
    assert steps_in(store) == steps_in(uninterrupted / "checkpoints") == {42, 48}
    assert not list(store.glob(".saving-*"))


def final_arrays(folder):
    with np.load(folder / "final.npz") as stored:
        return {name: stored[name].tobytes() for name in stored.files}


def test_sigterm_has_the_step_saved_and_the_resumed_run_ends_as_if_it_had_not_come(
    uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    store = folder / "checkpoints"
    process = start(folder, "program")
    last = time.monotonic() + DEADLINE
    while not steps_in(store) and time.monotonic() < last:
        time.sleep(0.001)
    process.terminate()
    process.terminate()  # some schedulers send it to the process and to its group
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 75, output
    reached = max(steps_in(store))
    sentence = f"tiny: stopped by SIGTERM at step {reached}; saved; the same command continues.\n"
    assert output.endswith(sentence)
    assert 6 <= reached < 48
    assert json.loads(lines(folder).splitlines()[-1])["step"] == reached
    end(start(folder), 0)
    assert lines(folder) == lines(uninterrupted)
    assert final_arrays(folder) == final_arrays(uninterrupted)


def test_the_uninterrupted_run_learns_the_known_weights(uninterrupted):
    with np.load(uninterrupted / "final.npz") as final:
        weights = next(final[n] for n in final.files if final[n].shape == (3,))
    assert np.isfinite(weights).all()
    losses = [json.loads(line)["loss"] for line in lines(uninterrupted).splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
