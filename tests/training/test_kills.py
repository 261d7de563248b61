"""A whole training killed at any of its writes ends, once resumed, as if it had not been killed.

Four kills; more with, for example, MEMDEF_JAX_KILLS=20.
"""

import json
import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from memdef_jax.defenses import load_run

PROGRAM = pathlib.Path(__file__).with_name("kill_run.py")
ROOT = PROGRAM.parents[2]


def contents(folder):
    """All files that a run must have in common with another of the same, and all its arrays."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.name in ("run.json", "metrics.jsonl", "defense.json")
    }
    for name, defense in load_run(folder).items():
        for place, leaf in jax.tree_util.tree_leaves_with_path(defense.variables):
            found[name + jax.tree_util.keystr(place)] = np.asarray(leaf).tobytes()
    return found


@pytest.mark.slow
def test_a_training_killed_at_random_writes_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    kills, seed = int(os.environ.get("MEMDEF_JAX_KILLS", "4")), random.SystemRandom().randrange(999)
    command = [sys.executable, "-W", "error", str(PROGRAM), str(tmp_path), str(kills), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # What takes less than the half second that conftest.py sets is compiled by every child anew.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum("killed" in line for line in lines) == kills
    whole = contents(tmp_path / "whole")
    assert len([name for name in whole if name.endswith("metrics.jsonl")]) == 3
    for ended in [line["folder"] for line in lines if "writes" in line]:
        assert contents(tmp_path / ended) == whole
        left = {path.name for path in (tmp_path / ended).rglob(".*")}
        assert not [name for name in left if name.startswith((".saving-", ".lock"))]
