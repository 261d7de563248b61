"""Wilson's interval against the equation it solves and against SciPy."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from memdef_jax.evaluation import wilson_interval

COUNTS = [(0, 1), (1, 1), (0, 500), (500, 500), (1, 7), (250, 500), (421, 500), (99, 100)]


@pytest.mark.parametrize(("correct", "total"), COUNTS)
def test_it_is_scipys(correct, total):
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize(("correct", "total"), [c for c in COUNTS if 0 < c[0] < c[1]])
def test_its_ends_are_the_proportions_that_a_score_test_just_rejects(correct, total):
    share, z = correct / total, norm.ppf(0.975)

    def score(p):
        return (share - p) / math.sqrt(p * (1 - p) / total)

    low = brentq(lambda p: score(p) - z, 1e-12, share)
    high = brentq(lambda p: score(p) + z, share, 1 - 1e-12)
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-9)


def test_it_holds_the_measured_share_and_stays_within_zero_and_one():
    for total in (1, 2, 3, 10, 100):
        for correct in range(total + 1):
            low, high = wilson_interval(correct, total)
            assert 0 <= low <= correct / total <= high <= 1


def test_another_quantile_gives_another_level():
    expected = binomtest(30, 50).proportion_ci(0.99, method="wilson")
    found = wilson_interval(30, 50, norm.ppf(0.995))
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
