"""Doubts, detection and transfer over a whole run: resumed, and true to what they are made of."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.data import to_float
from memdef_jax.evaluation.scrutiny.doubts import Effort
from memdef_jax.evaluation.scrutiny.examination import FILE, Examination, examine

SETTINGS = Examination(
    eps=9 / 255,
    images=8,
    detected=13,
    benign=50,
    effort=Effort(steps=4, more_steps=8, restarts=2, queries=10, draws=2, passes=2),
)


def adaptive(selector, own, grey, failed=None):
    return {
        "selector": selector,
        "threat": "adaptive",
        "attack": "pgd",
        "eps": 0.1,
        "own_accuracy": own,
        "variants": {"joint": own, "selector": grey, "frozen_mask": 0.9},
        "failed": failed,
    }


FOUND = [
    adaptive("benign", 0.2, 0.2),
    adaptive("benign", 0.5, 0.1, "worse than ignoring the defense"),
    adaptive("in_loop", 0.1, 0.3),
]


@pytest.fixture(scope="module")
def examined(pair, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examined")
    reporter = Quiet()
    return folder, examine(folder, pair, digits, FOUND, SETTINGS, reporter)


class Quiet:
    def __init__(self):
        self.updates = []

    def start(self, stage, done, total, items_per_step):
        self.done, self.total = done, total

    def update(self, step, metrics):
        self.updates.append(step)

    def note(self, text):
        pass


def test_every_defense_gets_every_check_and_all_is_json(examined, pair):
    found = examined[1]
    assert json.loads(json.dumps(found)) == found
    assert set(found["checks"]) == set(found["detection"]) == set(pair)
    names = [[check["name"] for check in checks] for checks in found["checks"].values()]
    assert names[0] == names[1]
    assert {"more_steps", "frozen_gap", "adaptive"} <= set(names[0])
    assert {c["verdict"] for checks in found["checks"].values() for c in checks} <= {
        "pass",
        "warn",
        "fail",
        "skipped",
    }


def test_a_frozen_mask_over_templates_is_flagged(examined):
    for checks in examined[1]["checks"].values():
        gap = {check["name"]: check for check in checks}["frozen_gap"]
        assert gap["verdict"] == "fail"
        assert gap["number"] > 0.3


def test_detection_numbers_are_those_of_the_scores(examined, pair, digits):
    split = digits.test[:13]
    for name, found in examined[1]["detection"].items():
        clean, attacked = np.array(found["clean_scores"]), np.array(found["attacked_scores"])
        scores = pair[name].score(to_float(jnp.asarray(split.images)))
        np.testing.assert_allclose(clean, scores, rtol=1e-3)
        train = pair[name].score(to_float(jnp.asarray(digits.train.images[:50])))
        assert found["detection_rate"] == pytest.approx((attacked > found["threshold"]).mean())
        assert found["threshold"] <= float(np.max(np.asarray(train))) * 1.5
        assert np.quantile(found["evading_scores"], 0.5) <= np.quantile(attacked, 0.5) * 1.001


def test_transfer_is_from_every_defense_to_every_defense(examined, pair):
    transfer = examined[1]["transfer"]
    assert transfer["names"] == list(pair)
    matrix = np.array(transfer["accuracy"])
    assert matrix.shape == (2, 2)
    # Nothing hurts a defense more than what was crafted on it.
    assert (np.diag(matrix) <= matrix.min(axis=0) + 1e-9).all()


def test_a_finished_examination_is_not_made_again_and_what_is_missing_is(examined, pair, digits):
    folder, found = examined
    before = (folder / FILE).read_bytes()
    again = Quiet()
    assert examine(folder, pair, digits, FOUND, SETTINGS, again) == found
    assert (again.done, again.total, again.updates) == (6, 6, [])
    assert (folder / FILE).read_bytes() == before
    # One part is missing: only that is measured.
    stored = json.loads(before)
    del stored["parts"]["transfer"]
    (folder / FILE).write_text(json.dumps(stored))
    again = Quiet()
    assert examine(folder, pair, digits, FOUND, SETTINGS, again) == found
    assert again.updates == [6]


def test_the_sweeps_own_failures_are_a_verdict(examined):
    verdicts = {name: checks[-1] for name, checks in examined[1]["checks"].items()}
    assert verdicts["benign"]["verdict"] == "fail"
    assert verdicts["benign"]["number"] == pytest.approx(0.5 - 0.1)
    assert verdicts["benign"]["advice"] == "pgd at eps 0.1: worse than ignoring the defense"
    assert verdicts["in_loop"]["verdict"] == "pass"
    assert verdicts["in_loop"]["number"] == pytest.approx(0.1 - 0.3)
