"""The loop: what stops it, what it says, what it keeps."""

import errno
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import preemption
from memdef_jax.checks import InputError
from memdef_jax.training import (
    TrainingDiverged,
    Validation,
    checkpoints,
    make_mesh,
    metrics,
    replicate,
)


def kept_steps(folder):
    return sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step_*"))


def logged_steps(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_every_step_is_logged_reported_and_the_last_is_saved(counting, tmp_path, notes):
    state = counting()
    np.testing.assert_array_equal(state.params, [10, 10])
    assert notes.started == [("counting", 0, 10, 4)]
    assert notes.updates == [(s, {"loss": float(np.float32(1 / s))}) for s in range(1, 11)]
    assert logged_steps(tmp_path) == list(range(1, 11))
    assert kept_steps(tmp_path) == [9, 10]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_finished_training_does_no_step_again(counting, tmp_path, notes):
    counting()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state = counting(batch=lambda number: pytest.fail("a batch was asked for"))
    np.testing.assert_array_equal(state.params, [10, 10])
    assert notes.started[-1] == ("counting", 10, 10, 4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("step", [5, 6])
def test_a_term_that_is_not_finite_stops_with_step_and_term_and_keeps_the_last_good_checkpoint(
    counting, tmp_path, notes, value, step
):
    def diverging(s):
        return {"target_mse": 1.0, "entropy": value if s == step else 2.0, "loss": 3.0}

    with pytest.raises(TrainingDiverged) as caught:
        counting(diverging)
    message = str(caught.value)
    assert f"entropy is {value} at step {step}" in message
    assert "that of step 3 is kept" in message
    # Step 6 would be saved: a diverged state never is.
    assert kept_steps(tmp_path) == [3]
    assert logged_steps(tmp_path) == list(range(1, step))
    state = counting(total_steps=6)
    np.testing.assert_array_equal(state.params, [6, 6])
    assert notes.started[-1] == ("counting", 3, 6, 4)
    assert logged_steps(tmp_path) == list(range(1, 7))


def test_a_divergence_before_any_checkpoint_says_that_there_is_none(counting, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 1.*none was saved yet"):
        counting(lambda s: {"loss": float("nan")})
    assert not (tmp_path / "checkpoints").exists()


def test_a_guard_stops_the_training_with_its_sentence(counting, tmp_path):
    def guard(metrics):
        return "Rows ran out." if metrics["rows"] < 1 else None

    with pytest.raises(TrainingDiverged, match=r"step 5: Rows ran out\. .*that of step 3 is kept"):
        counting(lambda s: {"rows": 5 - s}, guard=guard)
    assert kept_steps(tmp_path) == [3]


def damage(folder, step):
    victim = max((folder / "checkpoints" / f"step_{step}" / "tree").glob("d/*"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 255
    victim.write_bytes(content)


def test_a_damaged_checkpoint_is_noted_and_the_training_goes_on_from_the_one_before(
    counting, tmp_path, notes
):
    counting()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    damage(tmp_path, 10)
    state = counting()
    np.testing.assert_array_equal(state.params, [10, 10])
    (note,) = notes.notes
    assert re.search(r"^counting: checkpoint of step 10 passed over: .*step_10 is damaged", note)
    assert notes.started[-1] == ("counting", 9, 10, 4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_with_its_only_checkpoint_damaged_the_training_starts_anew_and_says_so(
    counting, tmp_path, notes
):
    counting(total_steps=3)
    damage(tmp_path, 3)
    state = counting(total_steps=3)
    np.testing.assert_array_equal(state.params, [3, 3])
    assert notes.started[-1] == ("counting", 0, 3, 4)
    assert "checkpoint of step 3 passed over" in notes.notes[0]
    assert "starts anew" in notes.notes[-1]
    assert logged_steps(tmp_path) == [1, 2, 3]
    assert kept_steps(tmp_path) == [3]


def test_a_checkpoint_of_another_model_is_refused_and_kept(counting, tmp_path):
    counting()
    with pytest.raises(InputError, match=r"params is float32\[2\] there and float32\[3\] here"):
        counting(width=3)
    assert kept_steps(tmp_path) == [9, 10]


def test_the_state_that_was_handed_in_can_still_be_used(counting):
    # The step donates its state; what the caller owns must not be freed under him.
    mine = jnp.arange(4.0)
    copy = replicate(mine, make_mesh(1))
    jax.jit(lambda a: a + 1, donate_argnums=0)(copy).block_until_ready()
    np.testing.assert_array_equal(mine, np.arange(4.0))


def test_a_full_disk_under_the_metrics_is_one_sentence(counting, tmp_path, monkeypatch):
    class Full:
        def write(self, text):
            pass

        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = metrics.MetricsLog.__init__

    def patched(self, folder, first):
        opened(self, folder, first)
        self._file.close()
        self._file = Full()

    monkeypatch.setattr(metrics.MetricsLog, "__init__", patched)
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be written \(No space left"):
        counting()


def measured(scores, said=(), **changes):
    """Validation whose score after the n-th step is scores[n], and what it says of which number."""

    def measure(variables):
        return {"score": scores[int(variables["params"][0])]}

    def remark(history):
        return f"fell at {history[-1]['step']}" if len(history) in said else None

    return Validation(
        **{"every": 2, "measure": measure, "score": "score", **changes}, remark=remark
    )


def test_validation_keeps_the_best_weights_and_logs_what_it_measured(counting, tmp_path, notes):
    scores = {2: 0.1, 4: 0.7, 6: 0.7, 8: 0.3, 9: 0.2}
    state = counting(total_steps=9, validation=measured(scores, said=(3, 4)))
    np.testing.assert_array_equal(state.params, [9, 9])
    np.testing.assert_array_equal(state.variables["params"], [4, 4])  # of equals the first
    assert (int(state.best.step), float(state.best.score)) == (4, np.float32(0.7))
    rows = metrics.read_metrics(tmp_path)
    assert {row["step"]: row["score"] for row in rows if "score" in row} == scores
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert notes.updates[3] == (4, {"loss": 0.25, "score": 0.7})
    assert notes.notes == ["fell at 6", "fell at 8"]


@pytest.mark.parametrize("save_every", [2, 3])
def test_a_validated_training_that_was_stopped_ends_as_one_that_was_not(
    counting, tmp_path, notes, save_every
):
    scores = {2: 0.1, 4: 0.7, 6: 0.5, 8: 0.6, 9: 0.2}
    histories, stops = [], [True]

    def stopping(variables):
        if int(variables["params"][0]) == 8 and stops:
            stops.pop()
            raise KeyboardInterrupt
        return {"score": scores[int(variables["params"][0])]}

    def remark(history):
        histories.append([(row["step"], row["score"]) for row in history])

    validation = Validation(every=2, measure=stopping, score="score", remark=remark)
    changes = {"total_steps": 9, "save_every": save_every, "validation": validation}
    with pytest.raises(KeyboardInterrupt):
        counting(**changes)
    state = counting(**changes)
    assert notes.started[-1] == ("counting", 6, 9, 4)
    np.testing.assert_array_equal(state.variables["params"], [4, 4])
    assert histories[-1] == sorted(scores.items())
    assert logged_steps(tmp_path) == list(range(1, 10))
    again = counting(**changes)  # and once more, when nothing is left to do
    np.testing.assert_array_equal(again.variables["params"], [4, 4])


def test_a_score_that_is_not_a_number_is_never_the_best(counting):
    scores = {2: float("nan"), 4: 0.1, 6: float("nan")}
    state = counting(total_steps=6, validation=measured(scores))
    assert int(state.best.step) == 4
    with pytest.raises(InputError, match="every 0 is below 1"):
        measured(scores, every=0)


@pytest.mark.parametrize("field", ["total_steps", "save_every"])
def test_a_stage_that_could_not_run_is_refused(counting, field):
    with pytest.raises(InputError, match=f"{field} 0 is below 1"):
        counting(**{field: 0})


def test_the_log_of_an_interrupted_run_is_cut_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {s}, "loss": 1.0}}\n' for s in range(1, 8)) + '{"st')
    with metrics.MetricsLog(tmp_path, 5) as log:
        log.write(6, {"loss": 2.0})
    assert logged_steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_store_may_be_read_without_being_written(counting, tmp_path):
    counting()
    like = counting()
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert checkpoints.restore_latest(tmp_path / "checkpoints", like.parts).step == 10
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("place", ["metrics.jsonl", "tensorboard"])
def test_what_is_in_the_way_of_the_metrics_is_one_sentence(counting, tmp_path, place):
    (tmp_path / "metrics.jsonl").mkdir() if "." in place else (tmp_path / place).write_text("")
    with pytest.raises(InputError, match=f"{place} cannot be written"):
        counting()


def test_a_full_disk_under_tensorboard_is_one_sentence_and_no_endless_wait(tmp_path, monkeypatch):
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 1.0})
    log.flush()

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    for step in range(2, 100):  # more than tensorboardX's own queue holds
        log.write(step, {"loss": 1.0})
    with pytest.raises(InputError, match=r"tensorboard cannot be written \(No space left"):
        log.flush()
    with pytest.raises(InputError, match=r"tensorboard cannot be written \(No space left"):
        log.__exit__(None, None, None)
    monkeypatch.undo()
    log._board.close()


def test_a_log_garbled_in_the_middle_is_cut_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n\xff\n{"step": 3}\n')
    with metrics.MetricsLog(tmp_path, 5):
        pass
    assert logged_steps(tmp_path) == [1, 2]


def test_sigterm_saves_the_step_and_the_same_call_goes_on(counting, tmp_path, notes):
    before = signal.getsignal(signal.SIGTERM)

    def terminated_at_five(step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": 1.0 / step}

    def program():
        with preemption.listening():
            counting(terminated_at_five)

    with pytest.raises(preemption.Preempted, match="counting: stopped by SIGTERM at step 5; saved"):
        program()
    signal.signal(signal.SIGTERM, before)
    assert kept_steps(tmp_path) == [3, 5]
    assert logged_steps(tmp_path) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(counting().params, [10, 10])
    assert notes.started[-1] == ("counting", 5, 10, 4)
    assert logged_steps(tmp_path) == list(range(1, 11))


def test_a_diverged_step_is_not_saved_on_sigterm_either(counting, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def diverged_at_five(step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": float("nan") if step == 5 else 1.0}

    def program():
        with preemption.listening():
            counting(diverged_at_five)

    with pytest.raises(TrainingDiverged, match="step 5"):
        program()
    signal.signal(signal.SIGTERM, before)
    assert kept_steps(tmp_path) == [3]
