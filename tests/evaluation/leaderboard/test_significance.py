"""McNemar's exact test and Holm's correction."""

import numpy as np
import pytest
from scipy.stats import binomtest

from memdef_jax.evaluation.leaderboard.significance import holm, mcnemar


@pytest.mark.parametrize(
    ("only_one", "only_other"), [(0, 0), (1, 0), (5, 0), (6, 0), (3, 9), (12, 12), (400, 700)]
)
def test_p_is_that_of_the_two_sided_binomial_test(only_one, only_other):
    one = np.repeat([True, False, True, False], [only_one, only_other, 30, 20])
    other = np.repeat([False, True, True, False], [only_one, only_other, 30, 20])
    first, second, p = mcnemar(one, other)
    assert (first, second) == (only_one, only_other)
    total = only_one + only_other
    expected = binomtest(only_one, total).pvalue if total else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


def test_thousands_of_images_do_not_overflow():
    one = np.arange(10_000) < 5200
    assert mcnemar(one, ~one)[2] == pytest.approx(binomtest(5200, 10_000).pvalue, rel=1e-9)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    # sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, then the running maximum
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []
