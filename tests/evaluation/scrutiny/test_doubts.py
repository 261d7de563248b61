"""Checks that doubt an evaluation, on defenses of which the truth is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import compose, eot, straight_through
from memdef_jax.checks import InputError
from memdef_jax.evaluation.scrutiny import doubts
from memdef_jax.evaluation.scrutiny.doubt_measures import Climb, Evidence, Gradients, collect
from memdef_jax.evaluation.scrutiny.doubts import Effort, Limits, Subject, doubt
from tests.evaluation import toys

KEY = jax.random.key(3)
EFFORT = Effort(steps=8, more_steps=16, restarts=2, queries=200, draws=5, passes=3)
NAMES = (
    "logits",
    "deterministic",
    "gradients",
    "loss_rises",
    "more_steps",
    "more_restarts",
    "unbounded",
    "black_box",
    "transfer",
    "noise",
    "one_step",
    "larger_eps",
    "frozen_gap",
    "start_point",
)
EPS = 0.15  # 38.25 of 255
WEAK = (23, 24, 25, 26, 27, 28, 29, 30)  # all fall at EPS, quantised or not
STRONG = (90, 92, 94, 96, 98, 100, 102, 104)  # none falls, not even at twice EPS


@pytest.fixture(scope="module", autouse=True)
def quick_compile():
    """Models are tiny and programs many, so that compiling is most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def check(subject, ks, eps=EPS, labels=None):
    x, y = toys.images(ks)
    found = doubt(subject, x, y if labels is None else labels, eps=eps, key=KEY, effort=EFFORT)
    assert tuple(verdict.name for verdict in found) == NAMES
    return {verdict.name: verdict for verdict in found}


def named(found, verdict):
    return {name for name, one in found.items() if one.verdict == verdict}


def itself(function, **parts):
    return Subject(function, {"deployed": function}, **parts)


def other_linear():
    """An undefended classifier that sees only half of each class's pixels."""
    model = toys.linear()
    return dataclasses.replace(model, w=model.w * (jnp.arange(16) % 2)[:, None])


# --- defenses of which the truth is known -------------------------------------------------------


def test_a_robust_defense_is_not_doubted():
    model = toys.linear()
    found = check(itself(model, source=other_linear(), frozen=model), STRONG)
    assert named(found, "pass") == set(NAMES)
    assert all(verdict.number == 0 for verdict in found.values())


def test_logits_so_far_apart_that_the_cross_entropy_rounds_to_zero_raise_no_doubt():
    found = check(itself(toys.linear(scale=60.0)), STRONG)
    assert named(found, "pass") == set(NAMES) - {"transfer", "frozen_gap"}


def test_an_honest_evaluation_of_a_weak_defense_is_not_doubted():
    model = toys.linear()
    found = check(itself(model, source=other_linear(), frozen=model), WEAK[:4] + STRONG[:4])
    assert named(found, "pass") == set(NAMES)


def test_masked_gradients_are_found_out():
    model = toys.linear()
    found = check(itself(compose(toys.quantise, model), source=model), WEAK)
    masked = {"gradients", "loss_rises", "unbounded", "black_box", "transfer"}
    assert masked <= named(found, "fail")
    assert found["gradients"].number == 1.0
    assert found["loss_rises"].number == 1.0
    assert found["transfer"].number > 0.8
    assert "straight_through" in found["gradients"].advice


def test_a_stand_in_opens_masked_gradients_and_clears_the_doubts():
    model = toys.linear()
    masked = compose(toys.quantise, model)
    opened = {"opened": compose(straight_through(toys.quantise), model)}
    found = check(Subject(masked, opened, source=model), WEAK)
    assert named(found, "pass") == set(NAMES) - {"frozen_gap"}
    x, y = toys.images(WEAK)
    accuracy = [
        collect(subject, x, y, eps=EPS, key=KEY, effort=EFFORT).accuracy("white_box")
        for subject in (itself(masked), Subject(masked, opened))
    ]
    assert accuracy[0] > 0.8
    assert accuracy[1] == 0.0


def test_an_image_counts_as_fallen_on_whatever_surface_it_falls():
    model = toys.linear()
    masked = compose(toys.quantise, model)
    both = {"masked": masked, "opened": compose(straight_through(toys.quantise), model)}
    found = check(Subject(masked, both, source=model, same_values=frozenset(both)), WEAK)
    assert named(found, "pass") == set(NAMES) - {"frozen_gap"}


def test_uncontrolled_noise_is_found_out_and_eot_answers_it():
    model = toys.linear()
    found = check(itself(toys.unsteady(model)), STRONG)
    # What attacks find is as uncertain: one draw calls it a success and the next does not.
    assert found["deterministic"].verdict == "fail"
    assert found["deterministic"].number == 1.0
    assert "eot" in found["deterministic"].advice
    averaged = eot(jax.tree_util.Partial(toys.noisy, model), 4, KEY)
    _, y = toys.images(STRONG)
    found = check(itself(averaged), STRONG, labels=(y + 1) % 4)  # nothing is right: no attacks
    assert found["deterministic"].verdict == "pass"
    assert found["deterministic"].number == 0.0


def test_saturated_probabilities_are_found_out():
    found = check(itself(compose(toys.linear(scale=1000.0), jax.nn.softmax)), STRONG)
    assert {"logits", "gradients"} <= named(found, "fail")
    assert found["logits"].number == 1.0
    assert "return logits" in found["logits"].advice


def test_a_flat_spot_at_the_clean_images_is_found_out():
    found = check(itself(compose(toys.flat_on_grid, toys.linear())), WEAK)
    assert named(found, "fail") == {"gradients", "start_point"}
    assert found["start_point"].number == 1.0
    assert "random points" in found["start_point"].advice


def test_a_frozen_selection_overstates():
    model = toys.linear()
    _, y = toys.images(WEAK)
    found = check(itself(model, frozen=toys.Frozen(y)), WEAK)
    assert named(found, "fail") == {"frozen_gap"}
    assert found["frozen_gap"].number == 1.0
    assert "quote the adaptive number" in found["frozen_gap"].advice


def test_gradients_that_are_not_finite_are_found_out():
    model = toys.linear()

    def steep(x):  # its value is x, and its gradient infinite less infinite
        return x + jnp.sqrt(x - x)

    found = check(Subject(model, {"steep": compose(steep, model)}), STRONG)
    assert "gradients" in named(found, "fail")
    assert "not finite on some: 100.0%" in found["gradients"].advice
    found = check(Subject(model, {"steep": compose(steep, model), "itself": model}), STRONG)
    assert found["gradients"].verdict == "warn"


# --- what is measured ---------------------------------------------------------------------------


def test_survivors_are_those_of_the_closed_form():
    ks = np.array([5, 15, 25, 35, 45, 70, 80, 100])
    x, y = toys.images(ks)
    subject = itself(toys.linear(), source=other_linear())
    left = collect(subject, x, y, eps=EPS, key=KEY, effort=EFFORT).left
    for name, eps in [
        ("clean", 0.0),
        ("half_eps", EPS / 2),
        ("double_eps", 2 * EPS),
        ("unbounded", 1.0),
        *((name, EPS) for name in ("pgd", "more_steps", "more_restarts", "from_clean", "one_step")),
        ("white_box", EPS),
    ]:
        np.testing.assert_array_equal(left[name], ks / 255 > eps, err_msg=name)
    for weaker in ("noise", "black_box", "transfer"):
        assert (left[weaker] | ~left["white_box"]).all()


def handmade(**changes):
    """Evidence of 50 images of which half are right under every attack."""
    half = np.arange(50) < 25
    attacks = ("pgd", "half_eps", "double_eps", "more_steps", "more_restarts", "from_clean")
    attacks += ("one_step", "black_box", "noise", "white_box", "transfer", "frozen")
    left = dict.fromkeys(attacks, half) | {"clean": np.ones(50, bool), "unbounded": half & ~half}
    fields = {
        "probabilities": 0.0,
        "unsteady": 0.0,
        "gradients": Gradients(0.0, 0.0, 0.0),
        "climb": Climb(0.0, 0.0),
    }
    left |= {name: np.arange(50) < right for name, right in changes.items() if name in left}
    fields |= {name: value for name, value in changes.items() if name not in left}
    return Evidence(EFFORT, EPS, left=left, **fields)


def judged(monkeypatch, evidence, **settings):
    monkeypatch.setattr(doubts, "collect", lambda *given, **named: evidence)
    x, y = toys.images(STRONG)
    found = doubt(itself(toys.linear()), x, y, eps=EPS, key=KEY, **settings)
    return {verdict.name: verdict for verdict in found}


def test_evidence_without_symptoms_passes(monkeypatch):
    assert named(judged(monkeypatch, handmade()), "pass") == set(NAMES)


@pytest.mark.parametrize(
    ("changes", "name", "number", "verdict"),
    [
        ({"probabilities": 0.5}, "logits", 0.5, "pass"),
        ({"probabilities": 0.52}, "logits", 0.52, "fail"),
        ({"unsteady": 0.02}, "deterministic", 0.02, "fail"),
        ({"gradients": Gradients(0.04, 0.04, 0.0)}, "gradients", 0.04, "warn"),
        ({"gradients": Gradients(0.06, 0.0, 0.06)}, "gradients", 0.06, "fail"),
        ({"gradients": Gradients(0.0, 0.0, 0.02)}, "gradients", 0.0, "warn"),
        ({"climb": Climb(0.06, 0.0)}, "loss_rises", 0.06, "fail"),
        ({"climb": Climb(0.0, 0.6)}, "loss_rises", 0.0, "warn"),
        ({"more_steps": 24}, "more_steps", 0.02, "pass"),
        ({"more_steps": 23}, "more_steps", 0.04, "fail"),
        ({"more_restarts": 20}, "more_restarts", 0.1, "fail"),
        ({"unbounded": 1}, "unbounded", 0.02, "warn"),
        ({"unbounded": 2}, "unbounded", 0.04, "fail"),
        ({"black_box": 24}, "black_box", 0.02, "warn"),
        ({"black_box": 20}, "black_box", 0.1, "fail"),
        ({"transfer": 24}, "transfer", 0.02, "warn"),
        ({"transfer": 23}, "transfer", 0.04, "fail"),
        ({"noise": 15}, "noise", 0.2, "fail"),
        ({"one_step": 24}, "one_step", 0.02, "pass"),
        ({"one_step": 20}, "one_step", 0.1, "fail"),
        ({"half_eps": 22}, "larger_eps", 0.06, "fail"),
        ({"double_eps": 30}, "larger_eps", 0.1, "fail"),
        ({"frozen": 27}, "frozen_gap", 0.04, "pass"),
        ({"frozen": 50}, "frozen_gap", 0.5, "fail"),
        ({"from_clean": 27}, "start_point", 0.04, "pass"),
        ({"from_clean": 30}, "start_point", 0.1, "fail"),
    ],
)
def test_one_symptom_gives_one_verdict(monkeypatch, changes, name, number, verdict):
    found = judged(monkeypatch, handmade(**changes))
    assert found[name].number == pytest.approx(number)
    assert found[name].verdict == verdict
    assert found[name].limit == getattr(Limits(), name)
    assert found[name].unit == "share"
    assert named(found, "pass") == set(NAMES) - ({name} if verdict != "pass" else set())


def test_weaker_attacks_raise_no_doubt(monkeypatch):
    weak = {"black_box": 40, "transfer": 45, "noise": 50, "one_step": 40, "half_eps": 40}
    found = judged(monkeypatch, handmade(**weak, double_eps=10))
    assert named(found, "pass") == set(NAMES)


def test_limits_are_the_callers(monkeypatch):
    found = judged(monkeypatch, handmade(more_steps=20), limits=Limits(more_steps=0.2))
    assert (found["more_steps"].verdict, found["more_steps"].limit) == ("pass", 0.2)


def test_every_verdict_is_one_sentence_and_can_be_written_as_json(monkeypatch):
    for evidence in (handmade(), handmade(more_steps=0, frozen=50, unsteady=1.0, unbounded=9)):
        for verdict in judged(monkeypatch, evidence).values():
            assert json.loads(json.dumps(dataclasses.asdict(verdict)))["name"] == verdict.name
            sentence = verdict.advice
            assert sentence.endswith(".")
            assert ". " not in sentence
            assert "{" not in sentence


# --- unusual input ------------------------------------------------------------------------------


def test_two_classes_and_one_image_will_do():
    x, y = toys.images(STRONG[:1], classes=2)
    model = toys.linear(classes=2)
    found = doubt(itself(model), x, y, eps=EPS, key=KEY, effort=EFFORT)
    found = {verdict.name: verdict for verdict in found}
    assert named(found, "skipped") == {"transfer", "frozen_gap"}
    assert named(found, "pass") == set(NAMES) - named(found, "skipped")
    assert "no source" in found["transfer"].advice
    assert "no frozen surface" in found["frozen_gap"].advice


def test_where_nothing_is_right_nothing_is_attacked():
    _, y = toys.images(STRONG)
    found = check(itself(toys.linear()), STRONG, labels=(y + 1) % 4)
    assert named(found, "skipped") == set(NAMES) - {"logits", "deterministic"}
    assert all("none of the images right" in found[name].advice for name in NAMES[2:])
    assert all(found[name].number is None for name in NAMES[2:])


def test_the_largest_budget_will_do():
    found = check(itself(toys.linear()), STRONG, eps=1.0)
    assert named(found, "fail") == set()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": 8.0}, r"eps 8 is outside \[0, 1\]"),
        ({"eps": 0.0}, "eps 0 leaves an attacker nothing to do"),
        ({"x": jnp.zeros((0, 4, 4, 1)), "y": jnp.zeros(0, jnp.int32)}, "0 images were given"),
        ({"x": 2 * jnp.ones((8, 4, 4, 1))}, r"outside \[0, 1\]"),
        ({"y": jnp.full(8, 4)}, "label 4 is outside the 4 classes"),
        ({"key": None}, "pass key=jax.random.key"),
        ({"subject": "model"}, "cannot be called"),
    ],
)
def test_what_cannot_be_used_is_refused(change, sentence):
    x, y = toys.images(STRONG)
    subject = Subject(change["subject"], {"s": toys.linear()}) if "subject" in change else None
    given = {"x": x, "y": y, "eps": EPS, "key": KEY} | change | {"effort": EFFORT}
    given["subject"] = subject or itself(toys.linear())
    with pytest.raises(InputError, match=sentence):
        doubt(given.pop("subject"), given.pop("x"), given.pop("y"), **given)


def test_a_subject_needs_a_surface_and_names_only_those_it_has():
    with pytest.raises(InputError, match="0 surfaces were given"):
        Subject(toys.linear(), {})
    with pytest.raises(InputError, match="'other' in same_values is no surface; use some of one"):
        Subject(toys.linear(), {"one": toys.linear()}, same_values=frozenset({"other"}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps 0 cannot be used"),
        ({"steps": 40, "more_steps": 40}, "more_steps 40 cannot be used.*at least 41"),
        ({"restarts": 1}, "restarts 1 cannot be used.*at least 2"),
        ({"passes": 1}, "passes 1 cannot be used.*at least 2"),
        ({"queries": 2.5}, "queries 2.5 cannot be used"),
        ({"draws": -1}, "draws -1 cannot be used"),
        ({"loss": "dlr"}, "loss 'dlr' cannot be used here"),
    ],
)
def test_effort_that_compares_nothing_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Effort(**change)
