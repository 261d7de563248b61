"""SIGTERM: what is told of it, who waits for a save, and that nobody else is changed."""

import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from memdef_jax import preemption
from memdef_jax.preemption import Preempted, listening, saving_first

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def restored():
    """Whoever has been preempted ignores SIGTERM until the process ends; here it goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def run(program):
    with listening():
        program()


def test_who_listens_leaves_at_once_and_a_second_time_is_not_heard():
    before, after = signal.getsignal(signal.SIGTERM), []
    run(lambda: None)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Preempted, match="what was finished is stored"):
        run(lambda: (terminate(), after.append("went on")))
    assert after == []
    terminate()


def test_who_saves_first_is_told_and_decides_when_to_leave():
    def program():
        with saving_first() as asked:
            assert not asked()
            terminate()
            terminate()
            assert asked()
            raise Preempted("saved what there was")

    with pytest.raises(Preempted, match="saved what there was"):
        run(program)


def test_what_came_too_late_for_the_last_question_is_not_lost():
    after = []

    def program():
        with saving_first():
            terminate()
            after.append("the block ends as usual")
        after.append("went on")

    with pytest.raises(Preempted):
        run(program)
    assert after == ["the block ends as usual"]


def test_after_a_save_nobody_asked_for_sigterm_leaves_at_once_again():
    def program():
        with saving_first():
            pass
        terminate()

    with pytest.raises(Preempted):
        run(program)


def test_an_error_while_saving_is_not_replaced():
    def program():
        with saving_first():
            terminate()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(program)


def test_where_nobody_listens_a_handler_of_ones_own_stays():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with saving_first() as asked:
        terminate()
        assert not asked()
    assert heard == [signal.SIGTERM]


def test_in_another_thread_nothing_happens():
    said = []

    def work():
        with listening(), saving_first() as asked:
            said.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]


IN_COMPILED_CODE = """
import contextlib, hashlib
from memdef_jax import preemption

preemption._GRACE = 0.05
words = ["ready"]
with preemption.listening():
    while True:  # so that it is there in any case, and to stand for whoever loses the exception
        with contextlib.suppress(preemption.Preempted):
            if words:
                print(words.pop(), flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # for minutes
"""


def test_a_process_that_is_within_compiled_code_is_ended_with_the_status():
    child = subprocess.Popen(
        [sys.executable, "-c", IN_COMPILED_CODE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    child.terminate()
    _, said = child.communicate(timeout=60)
    assert child.returncode == preemption.STATUS == 75
    assert said == "stopped by SIGTERM; what was finished is stored; the same command continues.\n"
