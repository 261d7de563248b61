"""Detection scores against scikit-learn and NumPy, and attacks that evade the detector."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from memdef_jax.attacks import PGD, eot
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.checks import InputError
from memdef_jax.evaluation.scrutiny import detection
from memdef_jax.evaluation.scrutiny.detection import Evading, auroc, measure, roc
from tests.evaluation import toys

KEY = jax.random.key(5)
EPS = 0.15


@pytest.fixture(scope="module", autouse=True)
def quick_compile():
    """Models are tiny and programs many, so that compiling is most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# --- scores -------------------------------------------------------------------------------------


def drawn(seed):
    """Scores of benign and attacked images, with ties for odd seeds."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=rng.integers(1, 60))
    attacked = rng.normal(0.7, 1.3, size=rng.integers(1, 60))
    return (np.round(clean), np.round(attacked)) if seed % 2 else (clean, attacked)


def stacked(clean, attacked):
    labels = np.r_[np.zeros(len(clean)), np.ones(len(attacked))]
    return labels, np.r_[clean, attacked]


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_scikit_learns(seed):
    clean, attacked = drawn(seed)
    expected = roc_auc_score(*stacked(clean, attacked))
    assert auroc(clean, attacked) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_curve_is_scikit_learns(seed):
    clean, attacked = drawn(seed)
    rates = roc(clean, attacked)
    expected = roc_curve(*stacked(clean, attacked), drop_intermediate=False)
    np.testing.assert_allclose(rates[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(rates[1], expected[1], atol=1e-12)


def test_auroc_of_ties_and_of_perfect_scores():
    assert auroc(np.ones(3), np.ones(5)) == 0.5
    assert auroc(np.zeros(3), np.ones(5)) == 1.0
    assert auroc(np.ones(3), np.zeros(5)) == 0.0


@pytest.mark.parametrize("percentile", [0, 50, 95, 99.0, 100])
def test_the_threshold_is_numpys_percentile(percentile):
    scores = np.random.default_rng(0).exponential(size=200).astype(np.float32)
    found = detection.threshold(scores, percentile)
    assert found == pytest.approx(np.quantile(scores.astype(float), percentile / 100), rel=1e-12)
    share = (scores > found).mean()
    assert abs(share - (1 - percentile / 100)) <= 1 / 200 + 1e-9


def test_counts_are_those_made_by_hand():
    found = measure(
        clean_scores=np.array([0.1, 0.2, 0.5, 0.9]),
        attacked_scores=np.array([0.5, 0.4, 0.6, 0.7, 0.3]),
        attacked_correct=np.array([True, False, False, True, False]),
        threshold=0.5,  # a score of exactly that much passes
    )
    assert found.threshold == 0.5
    assert found.false_positive_rate == 1 / 4
    assert found.detection_rate == pytest.approx(2 / 5)
    assert found.passed_accuracy == pytest.approx(1 / 3)
    assert found.undetected_error == pytest.approx(2 / 5)
    assert found.auroc == pytest.approx((2.5 + 2 + 3 + 3 + 2) / 20)
    assert (found.clean_count, found.attacked_count) == (4, 5)


def test_a_detector_that_lets_nothing_pass_has_no_accuracy_on_what_passes():
    found = measure(np.zeros(3), np.ones(2), np.array([True, False]), 0.5)
    assert found.passed_accuracy is None
    assert found.undetected_error == 0.0
    assert json.loads(json.dumps(dataclasses.asdict(found)))["detection_rate"] == 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: auroc(np.zeros(0), np.ones(2)), r"clean scores have shape \(0,\)"),
        (lambda: auroc(np.ones(2), np.ones((2, 1))), r"attacked scores have shape \(2, 1\)"),
        (lambda: roc(np.ones(2), np.array([1, np.nan])), "attacked scores hold NaN.*image 1"),
        (lambda: detection.threshold(np.ones(2), 101), r"percentile 101 is outside \[0, 100\]"),
        (lambda: detection.threshold(np.ones(2), np.nan), "percentile nan is outside"),
        (lambda: measure(np.ones(2), np.ones(2), np.ones(2), 0.5), "float64 of shape"),
        (lambda: measure(np.ones(2), np.ones(2), np.ones(3, bool), 0.5), r"shape \(3,\) beside 2"),
        (lambda: measure(np.ones(2), np.ones(2), np.ones(2, bool), np.nan), "threshold nan is not"),
        (lambda: Evading.of(toys.linear(), brightness, [0], limit=0.0), "limit 0 cannot be used"),
        (
            lambda: Evading.of(toys.linear(), brightness, [0], limit=1, weight=-1),
            "weight -1 cannot be used",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


# --- evading ------------------------------------------------------------------------------------


def brightness(x):
    """A score that the strongest attack raises by eps / 2: 12 pixels go up and 4 go down."""
    return x.mean(axis=(1, 2, 3))


KS = tuple(range(6, 30))  # up to 0.11, clearly below EPS


@pytest.fixture(scope="module")
def problem():
    return toys.linear(), *toys.images(KS)


def attack(function, x, y):
    pgd = PGD(eps=EPS, step_size=EPS / 10, steps=60, loss="margin")
    return pgd.run(function, x, y, key=KEY)


def test_an_attack_without_it_leaves_the_detectors_limit(problem):
    model, x, y = problem
    limit = brightness(x).max()
    ended = PGD(eps=EPS, step_size=EPS / 10, steps=60, early_stop=False).run(model, x, y, key=KEY)
    assert ended.success.all()
    np.testing.assert_allclose(brightness(ended.images), brightness(x) + EPS / 2, atol=1e-5)
    assert (brightness(ended.images) > limit).all()


def test_with_it_every_image_that_fools_stays_below_the_limit(problem):
    model, x, y = problem
    limit = float(brightness(x).max())
    weight = 1000.0
    found = attack(Evading.of(model, brightness, y, limit=limit, weight=weight), x, y)
    logits = np.asarray(model(found.images))
    others = np.where(np.arange(4) == np.asarray(y)[:, None], -np.inf, logits).max(axis=1)
    margin = others - logits[np.arange(len(y)), y]
    excess = np.maximum(np.asarray(brightness(found.images)) / limit - 1, 0)
    assert found.success.all()
    hit = np.asarray(found.success)
    # What counts as success is that the margin beats the penalty.
    np.testing.assert_array_equal(hit, margin > weight * excess)
    assert (margin[hit] > 0).all()
    assert excess[hit].max() < 3 * 2 * EPS / weight  # the margin is at most scale times 2 eps


def test_where_the_limit_is_out_of_reach_nothing_counts(problem):
    model, x, y = problem
    found = attack(Evading.of(model, brightness, y, limit=0.2, weight=1000.0), x, y)
    assert not found.success.any()
    assert attack(model, x, y).success.all()


def test_below_the_limit_it_is_the_surface_itself(problem):
    model, x, y = problem
    np.testing.assert_array_equal(Evading.of(model, brightness, y, limit=1.0)(x), model(x))


def test_above_the_limit_the_label_gains_the_relative_excess_times_the_weight(problem):
    model, x, y = problem
    found = np.asarray(Evading.of(model, brightness, y, limit=0.25, weight=8.0)(x) - model(x))
    expected = np.zeros_like(found)
    expected[np.arange(len(y)), y] = 8 * (np.asarray(x).mean(axis=(1, 2, 3)) / 0.25 - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_it_follows_a_repacked_batch(problem):
    _, x, y = problem
    evading = Evading.of(toys.Frozen(y), brightness, y, limit=0.25)
    rows = jnp.array([5, 2, 17])
    np.testing.assert_allclose(evading.take(rows)(x[rows]), evading(x)[rows], rtol=1e-6)


def test_a_random_function_is_judged_by_its_vote_and_the_penalty(problem):
    model, x, y = problem
    averaged = eot(jax.tree_util.Partial(toys.noisy, model), 2, KEY, votes=4)
    vote = LogitsFunction.of(Evading.of(averaged, brightness, y, limit=0.25, weight=8.0)).judge
    penalty = 8 * (np.asarray(x).mean(axis=(1, 2, 3)) / 0.25 - 1)
    expected = np.array(averaged.judge()(x))
    expected[np.arange(len(y)), y] += penalty
    np.testing.assert_allclose(vote(x), expected, rtol=1e-5)
    assert LogitsFunction.of(Evading.of(model, brightness, y, limit=0.25)).judge is None
