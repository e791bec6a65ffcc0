"""Intervals and tests against formulas, brute force and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from lab.errors import LabError
from lab.evaluation.statistics import holm, mean_interval, paired_test, proportion_interval, retention, super_linearity


def test_wilson_against_its_formula():
    k, n, z = 81, 263, stats.norm.ppf(0.975)
    middle, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert proportion_interval(k, n) == pytest.approx((middle - half, middle + half))
    assert proportion_interval(0, 10)[0] == 0.0 and proportion_interval(10, 10)[1] == 1.0
    for bad in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(LabError, match="not a proportion"):
            proportion_interval(*bad)


def test_one_seed():
    scores = [1, 0, 0, 1, None, 1]
    got = mean_interval(scores)
    assert (got.mean, got.n, got.seeds, got.unscored, got.method) == (0.6, 5, 1, 1, "Wilson")
    assert (got.low, got.high) == proportion_interval(3, 5)
    f1 = [0.2, 0.5, 0.9, 0.4]
    got = mean_interval(f1)
    assert (got.low, got.high) == pytest.approx(stats.ttest_1samp(f1, 0).confidence_interval())
    assert got.method == "t over problems"


def test_seeds_are_not_more_problems():
    """Three identical seeds tell no more than one: the interval must not shrink by the square root of
    three.
    """
    one = np.random.default_rng(0).random((1, 200))
    single, triple = mean_interval(one), mean_interval(np.repeat(one, 3, axis=0))
    assert triple.high - triple.low == pytest.approx(single.high - single.low)
    assert triple.n == 200 and triple.seeds == 3


def test_all_right_is_not_certain():
    got = mean_interval(np.ones((3, 50)))
    assert (got.low, got.high, got.method) == (*proportion_interval(50, 50), "Wilson")


@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.3])
def test_coverage_over_new_seeds_and_problems(seed_spread):
    """Crossed random effects: about 95 % of the intervals hold the truth, where problems-only intervals
    fail.
    """
    rng, trials, covered, naive = np.random.default_rng(1), 400, 0, 0
    for _ in range(trials):
        table = seed_spread * rng.normal(size=(3, 1)) + rng.normal(size=(1, 60)) + rng.normal(size=(3, 60))
        got = mean_interval(table)
        covered += got.low <= 0 <= got.high
        low, high = stats.ttest_1samp(table.mean(axis=0), 0).confidence_interval()
        naive += low <= 0 <= high
    assert 0.92 <= covered / trials <= 1.0
    if seed_spread == 0.3:
        assert naive / trials < 0.9


def test_exact_mcnemar():
    a, b = (
        np.array([1] * 12 + [0] * 3 + [1] * 20 + [0] * 5),
        np.array([0] * 12 + [1] * 3 + [1] * 20 + [0] * 5),
    )
    got = paired_test(a, b)
    assert got.test == "exact McNemar" and (got.wins, got.losses) == (12, 3)
    assert got.p_value == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert got.difference.mean == pytest.approx(9 / 40) and got.difference.low < 9 / 40 < got.difference.high
    assert (
        paired_test(b, a).p_value == got.p_value and paired_test(b, a).difference.mean == -got.difference.mean
    )
    same = paired_test(a, a)
    assert same.p_value == 1.0 and (same.difference.low, same.difference.high) == (0.0, 0.0)


def test_a_difference_of_shares_stays_within_the_whole():
    a = np.stack([np.ones(20), np.zeros(20), np.ones(20)])  # seeds that differ as much as they can
    got = paired_test(a, np.zeros((3, 20))).difference
    assert got.mean == pytest.approx(2 / 3) and got.high == 1.0 and -1.0 <= got.low < 0
    lengths = paired_test(50 * a, np.zeros((3, 20))).difference  # scores of another scale have no such bound
    assert lengths.high > 50


def test_permutation_is_clustered_by_problem():
    """On few problems it is exact: all 2^n sign flips of the problems' mean differences."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, (3, 8)), rng.integers(0, 2, (3, 8))
    a[:, 0] = 1 - b[:, 0]
    per_problem = (a - b).mean(axis=0)
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    means = per_problem @ flips
    expected = min(
        1.0, 2 * min((means >= per_problem.sum() - 1e-9).mean(), (means <= per_problem.sum() + 1e-9).mean())
    )
    got = paired_test(a, b)
    assert got.test == "paired permutation by problem" and got.p_value == pytest.approx(expected)
    repeated = paired_test(np.repeat(a[:1], 5, axis=0), np.repeat(b[:1], 5, axis=0))
    assert repeated.p_value == pytest.approx(paired_test(a[:1], b[:1]).p_value, abs=0.01)


def test_permutation_is_seeded_and_false_alarms_are_rare():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(100):
        tables = rng.integers(0, 2, (2, 2, 60))
        p_values.append(paired_test(*tables, resamples=199).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11 and min(p_values) > 0
    assert paired_test(*tables, resamples=199).p_value == p_values[-1]


def test_unscored_problems_leave_both_methods():
    got = paired_test([1, 1, None, 0], [0, 1, 1, math.nan])
    assert (got.difference.n, got.difference.unscored, got.wins, got.losses) == (2, 2, 1, 0)
    with pytest.raises(LabError, match="No problem was scored"):
        mean_interval([None, None])


def test_holm_against_the_textbook():
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(given) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert (
        list(holm(given)) == list(given)
        and holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
        and holm({}) == {}
    )


def test_super_linearity_counts():
    merged = [1, 1, 1, 1, 1, 0, 0, 0]
    maths_ = [1, 0, 0, 0, 0, 1, 0, 0]
    code__ = [1, 1, 0, 0, 0, 0, 0, 0]
    got = super_linearity(merged, [maths_, code__])
    assert (
        got.merged_only_count,
        got.lost_count,
        got.merged_count,
        got.any_skill_count,
        got.sum_of_skills,
    ) == (3, 1, 5, 3, 4)
    assert got.super_linear and got.merged_only.mean == 3 / 8
    assert (got.merged_only.low, got.merged_only.high) == proportion_interval(3, 8)
    assert not super_linearity([1, 0], [[1, 0], [0, 0]]).super_linear
    seeds = super_linearity([merged, maths_], [[maths_] * 2, [code__] * 2])
    assert (seeds.merged_only_count, seeds.merged_count, seeds.merged_only.seeds) == (1.5, 3.5, 2)


def test_bad_input():
    with pytest.raises(LabError, match="not of the same problems"):
        paired_test([1, 0], [1, 0, 1])
    with pytest.raises(LabError, match="one shape"):
        super_linearity([1, 0], [[1]])
    with pytest.raises(LabError, match="0 and 1"):
        super_linearity([1, 0.5], [[1, 0]])
    with pytest.raises(LabError, match="must be numbers"):
        mean_interval([[1, 0], [1]])
    with pytest.raises(LabError, match="not \\(1, 1, 1\\)"):
        mean_interval([[[1]]])
    with pytest.raises(LabError, match="at least two"):
        mean_interval([0.5])


def test_one_problem_alone_proves_nothing():
    """Both flips of its sign are as extreme, so p is 1; scipy refuses to count them."""
    found = paired_test([[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]])
    assert (found.p_value, found.wins, found.losses) == (1.0, 1, 0)


def test_retention_is_the_share_of_the_skills_gain():
    base, skill = [0.0] * 90 + [1.0] * 10, [1.0] * 60 + [0.0] * 30 + [1.0] * 10
    merged = [1.0] * 30 + [0.0] * 60 + [1.0] * 10
    found = retention(base, skill, merged)
    assert found.kept == pytest.approx(0.5) and 0.3 < found.low < 0.5 < found.high < 0.7
    assert found.difference.difference.mean == pytest.approx(-0.3) and found.difference.losses == 30
    assert retention(base, skill, skill).kept == 1.0 and retention(base, skill, base).kept == 0.0
    # No clear gain, no share of it; unscored problems are left out everywhere.
    assert retention(base, base, merged).kept is None
    assert retention([None, *base], [1.0, *skill], [1.0, *merged]).kept == pytest.approx(0.5)
