"""What programs say and how they end: on a terminal, in a log, interrupted, refused."""

import io
import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.preemption import Preempted


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """`console.run` points JAX at a compilation cache: not at the user's, and only for a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def ends_by_an_exception(monkeypatch):
    """What would end the process of the tests."""

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", None),
    ],
)
def test_convolutions_are_set_up_unless_the_user_did(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    console.prepare_cpu()
    console.prepare_cpu()
    assert os.environ["XLA_FLAGS"] == (after or before)


def test_a_tpus_compiler_is_not_given_flags_it_may_not_know(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    console.prepare_cpu()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def reporter(terminal=False, width=200):
    out = io.StringIO()
    settings = {"width": width, "highlight": False, "markup": False, "emoji": False}
    return console.ConsoleReporter(
        Console(file=out, force_terminal=terminal, color_system=None, **settings)
    ), out


def test_a_log_gets_plain_lines_with_throughput_and_time_left(clock):
    log, out = reporter()
    log.start("stack", 100, 500, 128)
    clock[0] += 11
    log.update(200, {"loss": 0.12345, "gradient_norm": 3.0, "accuracy": 0.5})
    first, second = out.getvalue().splitlines()
    assert first == "stack: continuing at 100 of 500"
    # 100 steps of 128 images in 11 s, and three times as many are left.
    assert second == "stack: 200/500  1164/s  11 s  33 s left  loss 0.1235  accuracy 0.5"


def test_a_log_is_not_flooded_and_always_gets_the_last_line(clock):
    log, out = reporter()
    log.start("selector", 0, 1000, 64)
    for step in range(1, 1001):
        clock[0] += 0.025
        log.update(step, {"loss": 1.0})
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # at 10 s, at 20 s, and the end after 25 s
    assert lines[-1].startswith("selector: 1000/1000  2560/s  25 s  done")


def test_an_evaluation_has_no_images_a_second(clock):
    log, out = reporter()
    log.start("evaluation", 0, 4, 1)
    clock[0] += 20
    log.update(1, {"robust_accuracy": 0.5})
    assert out.getvalue() == "evaluation: 1/4  20 s  60 s left  robust_accuracy 0.5\n"


def test_a_stage_that_an_earlier_run_finished_says_so():
    for terminal in (False, True):
        log, out = reporter(terminal)
        log.start("stack", 7, 7, 128)
        assert out.getvalue().strip() == "stack: done before"


def test_a_terminal_gets_a_bar_that_is_taken_down_at_the_end(clock):
    live, out = reporter(terminal=True)
    live.start("stack", 0, 10, 128)
    for step in range(1, 11):
        clock[0] += 1
        live.update(step, {"loss": 0.25})
    text = out.getvalue()
    assert "10/10" in text
    assert "128/s" in text
    assert "loss 0.25" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, shown again


def test_notes_are_shown_as_they_are_even_where_they_look_like_markup(capsys):
    texts = ["/data/[red]/x is damaged", "[/oops] step 3", ":smile: 'a' 12", "x" * 300]
    shown = console.ConsoleReporter()
    for text in texts:
        shown.note(text)
    assert capsys.readouterr().out.splitlines() == [f"note: {text}" for text in texts]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("eps 9 is outside [0, 1]."), 2, "error: eps 9 is outside [0, 1].\n"),
        (InputError("no \x1b[31m\n file"), 2, "error: no ?[31m? file\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues.\n"),
        (Preempted("stack: saved"), 75, "stack: saved; the same command continues.\n"),
    ],
)
def test_a_program_ends_with_one_sentence_and_a_status(capsys, error, status, sentence):
    def program():
        raise error

    heard = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        console.run(program)
    signal.signal(signal.SIGTERM, heard)
    assert end.value.code == status
    assert capsys.readouterr() == ("", sentence)


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        console.run(lambda: 1 / 0)


@pytest.mark.parametrize("error", [InputError("no."), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_live_bar_is_taken_down_however_a_program_ends(error):
    live, out = reporter(terminal=True)

    def program():
        live.start("stack", 0, 10, 128)
        raise error

    with pytest.raises((SystemExit, RuntimeError)):
        console.run(program)
    assert out.getvalue().count("\x1b[?25h") == 1


def test_control_c_ends_a_program_with_one_sentence_even_while_something_is_computed(tmp_path):
    program = (
        # A shell's background jobs, and so their children, are born ignoring it.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import jax, time; from memdef_jax import console\n"
        "again = lambda i, a: jax.numpy.sin(a @ a)\n"
        "spin = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, again, x))\n"
        "x = jax.numpy.ones((64, 64))\n"
        "console.run(lambda: (spin(x), print('ready', flush=True), time.sleep(60)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "interrupted; the same command continues.\n")


def test_names_are_separated_by_commas():
    assert console.names("fgsm, bim,,pgd ,") == ("fgsm", "bim", "pgd")
    assert console.names("") == console.names(" , ") == ()


def test_budgets_are_numbers_or_fractions():
    assert console.budgets("9/255, 0.1,25/255,1e-2") == (9 / 255, 0.1, 25 / 255, 0.01)
    assert console.budgets("") == ()


@pytest.mark.parametrize("text", ["9/0", "a", "9/255/2", "/255", "1,two", "9 255", "0x9"])
def test_what_is_no_budget_is_refused_by_name(text):
    with pytest.raises(InputError, match=r"eps '.+' is no number; write it as 0\.1 or 25/255"):
        console.budgets(text)


def a_program(sizes):
    """Something to compile: one program a size, and none for a size seen before."""
    scale = jax.jit(lambda x: jnp.sin(x) * 3.0)
    inputs = [jax.device_put(np.ones(n, np.float32)) for n in sizes]
    return lambda: [scale(x).block_until_ready() for x in inputs]


def test_compilations_are_counted_by_program_and_only_inside():
    a_program([3])()
    run = a_program([2, 3, 4, 2, 3])
    with console.compilations() as count:
        run()
    assert (count.programs, count.cached) == (3, 0)
    assert count.seconds > 0
    run()
    a_program([5])()
    assert count.programs == 3


def test_what_the_cache_holds_is_not_counted_as_compiled():
    counts = []

    def program():
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for _ in range(2):
            with console.compilations() as count:
                a_program([6, 7])()
            counts.append((count.programs, count.cached))
            jax.clear_caches()  # of this process; what is on disk stays

    console.run(program)
    assert counts == [(2, 0), (0, 2)]


def test_a_program_says_at_its_end_what_it_compiled(capsys):
    console.run(a_program([8, 9]))
    assert re.fullmatch(r"compiled 2 programs in \d+ s\n", capsys.readouterr().out)
    console.run(lambda: print("nothing compiled"))
    assert capsys.readouterr().out == "nothing compiled\n"


@pytest.mark.parametrize(
    ("programs", "seconds", "cached", "line"),
    [
        (24, 31.4, 18, "compiled 24 programs in 31 s (18 more came from the cache)"),
        (1, 2.0, 0, "compiled 1 program in 2 s"),
    ],
)
def test_compilations_in_words(programs, seconds, cached, line):
    count = console.Compilations()
    count.programs, count.seconds, count.cached = programs, seconds, cached
    assert count.words() == line
