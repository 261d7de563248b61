"""`fit`: killed and resumed it ends as if it had not been; what it refuses, it refuses first."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    MemoryDefenseConfig,
    SelectorConfig,
    StackConfig,
    fit,
    load_run,
    trainer,
)
from memdef_jax.defenses.memory import memory_training
from tests.xla_flags import FLAGS

PROGRAM = pathlib.Path(__file__).with_name("fit_run.py")
ROOT = PROGRAM.parents[3]
TINY = MemoryDefenseConfig(
    selector=SelectorConfig(recipe="benign", benign_epochs=1, batch_size=8),
    stack=StackConfig(epochs=1, batch_size=8, memory_rows=20),
    train_size=16,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(folder, recipe, kill): the lines that fit prints, until kill(lines) says to kill it."""
    # The programs are the same in all processes: compiled once, quickly, and kept.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(folder, recipe, kill=None):
        errors = folder.parent / f"{folder.name}.errors"
        with errors.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", str(PROGRAM), str(folder), recipe],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
            lines = []
            killed = False
            for line in process.stdout:
                lines.append(line.strip())
                if kill and not killed and kill(lines):
                    process.kill()
                    killed = True
            process.stdout.close()
            status = process.wait()
        assert status == (-signal.SIGKILL if kill else 0), errors.read_text()
        assert (lines[-1] == "end") == (kill is None)
        return lines

    return run


def contents(folder):
    """All arrays of the defenses and all metrics of the stages, as bytes."""
    found = {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("metrics.jsonl"))
    }
    for name, defense in load_run(folder).items():
        for place, leaf in jax.tree_util.tree_leaves_with_path(defense.variables):
            found[name + jax.tree_util.keystr(place)] = np.asarray(leaf).tobytes()
    return found


@pytest.mark.slow
@pytest.mark.exhaustive
def test_in_loop_training_killed_and_resumed_is_bit_for_bit_that_which_was_not(run, tmp_path):
    run(tmp_path / "whole", "in_loop")
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path / "killed")

    def in_the_second_stage(lines):
        return lines[-1] == "update 3" and "start selector_in_loop 0 6" in lines

    run(tmp_path / "killed", "in_loop", in_the_second_stage)
    with pytest.raises(InputError, match="holds an unfinished run"):
        load_run(tmp_path / "killed")
    lines = run(tmp_path / "killed", "in_loop")
    assert "start selector_benign 6 6" in lines  # not trained again
    assert "start stack 0 6" in lines
    resumed = contents(tmp_path / "killed")
    assert resumed == contents(tmp_path / "whole")
    assert len([name for name in resumed if name.endswith("metrics.jsonl")]) == 3
    assert list(load_run(tmp_path / "killed")) == ["benign", "in_loop"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_offline_training_killed_among_its_examples_reuses_the_whole_ones(run, tmp_path):
    run(tmp_path / "whole", "offline")

    def after_two_parts(lines):
        return "start adversarial examples 0 3" in lines and lines[-1] == "update 2"

    run(tmp_path / "killed", "offline", after_two_parts)
    store = tmp_path / "killed" / "examples"
    parts = sorted(store.glob("part_*"))
    assert len(parts) >= 2
    untouched = os.stat(parts[0] / "digests.json").st_mtime_ns
    victim = max((parts[1] / "tree" / "d").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    lines = run(tmp_path / "killed", "offline")
    assert f"start adversarial examples {len(parts) - 1} 3" in lines
    assert os.stat(parts[0] / "digests.json").st_mtime_ns == untouched
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list(store.glob(".saving-*"))
    assert list(load_run(tmp_path / "killed")) == ["benign", "offline"]


def replaced(selector=None, stack=None, **changes):
    return dataclasses.replace(
        TINY,
        selector=dataclasses.replace(TINY.selector, **(selector or {})),
        stack=dataclasses.replace(TINY.stack, **(stack or {})),
        **changes,
    )


class Eight:
    devices = np.zeros(8)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replaced(stack={"batch_size": 20}), "batch_size 20 does not fit a split of 16 samples"),
        (replaced(selector={"batch_size": 32}), "batch_size 32 does not fit a split of 16"),
        (replaced(train_size=0), "0 samples asked of a split of 1437"),
        (replaced(train_size=1438), "1438 samples asked of a split of 1437"),
        (replaced(stack={"memory_rows": 25}), "memory rows 25 are not divisible"),
        (replaced(stack={"memory_rows": 5}), "memory rows 5 are fewer than the 10 classes"),
        (replaced(stack={"shrink_threshold": 1.5}), r"shrink threshold 1\.5 is outside"),
        (replaced(selector={"architecture": "vgg"}), "classifier 'vgg' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_made(digits, tmp_path, config, sentence):
    with pytest.raises(InputError, match=sentence):
        fit(config, digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_split_over_the_devices_is_refused_first(digits, tmp_path):
    with pytest.raises(InputError, match="batch size 12 is not divisible by 8 devices"):
        fit(replaced(selector={"batch_size": 12}), digits, tmp_path / "run", mesh=Eight)
    with pytest.raises(InputError, match="clean share"):
        fit(replaced(selector={"recipe": "in_loop"}), digits, tmp_path / "run", mesh=Eight)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("save_every", 0)])
def test_numbers_of_the_whole_run_are_checked(field, value):
    with pytest.raises(InputError, match=f"{field} {value}"):
        replaced(**{field: value})


def test_a_folder_of_another_configuration_or_dataset_is_refused(digits, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(memory_training._Training, "benign_selector", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, digits, tmp_path)
    with pytest.raises(KeyboardInterrupt):  # the same again gets as far
        fit(TINY, digits, tmp_path)
    with pytest.raises(InputError, match=r"config\.stack\.alpha was 0\.0002 there and is 0\.3 now"):
        fit(replaced(stack={"alpha": 0.3}), digits, tmp_path)
    info = dataclasses.replace(digits.info, fingerprint="0" * 64)
    with pytest.raises(InputError, match=r"fingerprint was '.*' there and is '0000"):
        fit(TINY, dataclasses.replace(digits, info=info), tmp_path)


def test_too_little_space_is_noticed_before_any_work(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_training, "_space_needed", lambda config, spec, split: 10**18)
    with pytest.raises(InputError, match="are needed"):
        fit(TINY, digits, tmp_path / "run")


def test_the_stack_is_trained_under_the_guard_against_empty_slots(digits, tmp_path, monkeypatch):
    class Caught(Exception):
        pass

    def catch(stage, *arguments):
        sentence = stage.guard({"active_rows_min": 0.0, "largest_safe_threshold": 0.05})
        raise Caught(stage.name, sentence)

    monkeypatch.setattr(memory_training._Training, "benign_selector", lambda self: {})
    monkeypatch.setattr(trainer, "train", catch)
    with pytest.raises(Caught) as caught:
        fit(replaced(stack={"shrink_threshold": 2 / 20}), digits, tmp_path)
    name, sentence = caught.value.args
    assert name == "stack"
    assert "shrink threshold 0.1 leaves" in sentence
    assert "0.0495 or less" in sentence
