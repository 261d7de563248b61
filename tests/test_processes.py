"""One process alone, and what a process says before it meets others; see tests/distributed."""

import os
import sys

import jax
import numpy as np
import pytest

from memdef_jax import console, joining, processes
from memdef_jax.checks import InputError
from memdef_jax.training import make_mesh, process_rows

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def started(monkeypatch):
    """In place of joining: whether it was tried."""
    tried = []
    monkeypatch.setattr(joining, "_start", lambda: tried.append(True))
    monkeypatch.setattr(joining, "_watch", lambda done: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in (joining.ADDRESS, joining.COUNT, joining.INDEX, *SLURM, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return tried


def refuse():
    raise InputError("no.")


def test_alone_a_process_does_everything_itself():
    assert (processes.count(), processes.index(), processes.is_writer()) == (1, 0, True)
    given = object()  # nothing JSON can hold: nothing is told to anyone
    assert processes.by_one(lambda: given) is given
    array = np.arange(3)
    assert processes.gathered(lambda: {"a": array})["a"] is array
    processes.agree("anything", given)
    processes.wait()
    assert [processes.stops(asked, 5) for asked in (True, False)] == [True, False]
    assert not processes.stop_was_asked()
    for work in (processes.by_one, processes.gathered):
        with pytest.raises(InputError, match=r"^no\.$"):
            work(refuse)
    mesh = make_mesh(1)
    assert process_rows(12, mesh) == slice(0, 12)


@pytest.mark.parametrize(
    ("asked", "environment", "joins"),
    [
        (None, {}, False),
        (True, {}, True),
        (None, {joining.ADDRESS: "127.0.0.1:1"}, True),
        (False, {joining.ADDRESS: "127.0.0.1:1"}, False),
        (None, SLURM | {"SLURM_NTASKS": "2"}, True),
        (None, SLURM | {"SLURM_NTASKS": "1"}, False),
        (None, {joining.ADDRESS: "127.0.0.1:1", joining._MEMBER: "1"}, False),  # started by one
        (None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_processes_join_when_asked_to_or_where_a_cluster_started_them(
    monkeypatch, started, asked, environment, joins
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joining.joined(asked):
        assert bool(started) == joins


@pytest.mark.parametrize(
    ("flags", "said"),
    [([], None), (["--distributed"], True), (["--no-distributed"], False)],
)
def test_what_the_command_line_says_of_processes_is_no_programs_own(monkeypatch, flags, said):
    monkeypatch.setattr(sys, "argv", ["program", "--run", "a", *flags])
    assert console._joins() is said
    assert sys.argv == ["program", "--run", "a"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, r"could not be joined \(coordinator_address should be defined"),
        ({joining.ADDRESS: "127.0.0.1:1"}, r"could not be joined \(Number of processes must be"),
        (
            {joining.ADDRESS: "127.0.0.1:1", joining.COUNT: "2", joining.INDEX: "-1"},
            rf"{joining.INDEX} is '-1'",
        ),
        (
            {joining.ADDRESS: "127.0.0.1:1", joining.COUNT: "2", joining.INDEX: "2"},
            "could not be joined",
        ),
    ],
)
def test_a_start_without_what_it_needs_is_one_sentence(monkeypatch, environment, sentence):
    service = jax.config.jax_enable_preemption_service
    # Otherwise JAX, which has run here, would refuse for that.
    monkeypatch.setattr(jax._src.xla_bridge, "backends_are_initialized", lambda: False)
    for name in (joining.ADDRESS, joining.COUNT, joining.INDEX, *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(InputError, match=sentence), joining.joined(True):
            raise AssertionError("it must not come here")
    finally:
        jax.config.update("jax_enable_preemption_service", service)
    assert not jax.distributed.is_initialized()


def test_who_waits_in_vain_says_so(monkeypatch, capsys):
    monkeypatch.setenv(joining.ADDRESS, "first.example:29500")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as end:
        joining._too_late()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: the processes did not come together within 300 s; see that all of them are "
        "started, and that each reaches first.example:29500.\n"
    )
