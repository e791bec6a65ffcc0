"""How sure a number is: intervals over problems and seeds, paired tests, correction for many comparisons,
super-linearity.

Scores are arrays of shape (problems,) or (seeds, problems): the same problems in the same order for every
seed and method. NaN (or None) marks an unscored problem; it is left out for all seeds, and n says how many
remain. All intervals are 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lab.errors import LabError

CONFIDENCE = 0.95
SHARE = (0.0, 1.0)  # between which a proportion lies


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    n: problems, seeds: repetitions, unscored: problems left out, method: of the interval.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int
    unscored: int
    method: str


@dataclass(frozen=True)
class Comparison:
    """Method a against method b on the same problems.

    difference: mean of a minus mean of b, with its interval. p_value is two-sided, of `test`. wins and
    losses: problems where a scores higher or lower than b on average over the seeds.
    """

    difference: Estimate
    p_value: float
    test: str
    wins: int
    losses: int


@dataclass(frozen=True)
class SuperLinearity:
    """Which problems a merge solves, against its skills (Table 1 of the paper). Counts are means over seeds.

    merged_only: share solved by the merge and by no skill, with its interval. lost: solved by a skill but not
    by the merge. merged, any_skill, sum_of_skills: problems solved by the merge, by at least one skill, and
    each skill's count added up. super_linear: merged > sum_of_skills, the paper's sense of the word.
    """

    merged_only: Estimate
    merged_only_count: float
    lost_count: float
    merged_count: float
    any_skill_count: float
    sum_of_skills: float
    super_linear: bool


@dataclass(frozen=True)
class Retention:
    """What a merge keeps of a skill, on the skill's own problems.

    difference: merge minus skill, with its paired test. kept: the share of the skill's gain over the base that the merge has too, with
    low and high (95 %, resampled by problem); None where the skill is not clearly above the base, so that there is no gain to keep.
    """

    difference: Comparison
    kept: float | None
    low: float | None
    high: float | None


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion. Raises LabError unless 0 <= successes <= n and n > 0."""
    if not (n > 0 and 0 <= successes <= n):
        raise LabError(
            f"{successes} successes of {n} is not a proportion; both must be counts and n at least 1."
        )
    z2 = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) ** 2
    middle, half = successes + z2 / 2, math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4))
    # The bounds of none and of all are exact, whatever rounding says.
    low, high = (middle - half) / (n + z2), (middle + half) / (n + z2)
    return (float(low) if successes else 0.0), (float(high) if successes < n else 1.0)


def mean_interval(scores: Sequence | np.ndarray) -> Estimate:
    """Mean of scores, (problems,) or (seeds, problems), with an interval for new problems and new seeds.

    One seed: Wilson for scores of 0 and 1, else Student's t over problems. Several seeds: seeds and problems
    are two crossed random effects; the variance of the grand mean is (MS_seed + MS_problem - MS_residual) /
    (seeds x problems), with Satterthwaite's degrees of freedom, so that few seeds give an honestly wide
    interval. Where nothing varies over problems (all right, or all wrong), Wilson over the problems. Raises
    LabError when no problem is scored.
    """
    table, unscored = _scored(_table(scores))
    return _estimate(table, unscored, _bounds(table))


def paired_test(
    a: Sequence | np.ndarray, b: Sequence | np.ndarray, *, resamples: int = 9999, seed: int = 0
) -> Comparison:
    """Two-sided test of methods a and b on the same problems; both of shape (problems,) or (seeds, problems).

    One seed and scores of 0 and 1: exact McNemar (binomial test on the problems that only one of them
    solves). Otherwise a sign-flip permutation test clustered by problem: all seeds of a problem are flipped
    together. The test speaks of these seeds; the interval of the difference also holds for new ones. Problems
    unscored for either method are left out of both.
    """
    import scipy.stats  # here, as below: a proportion's interval needs none of it

    first, second = _table(a), _table(b)
    if first.shape != second.shape:
        raise LabError(
            f"Scores of shape {first.shape} and {second.shape} are not of the same problems and seeds."
        )
    both, unscored = _scored(np.stack([first, second]))
    difference = both[0] - both[1]
    per_problem = difference.mean(axis=0)
    wins, losses = int((per_problem > 0).sum()), int((per_problem < 0).sum())
    if len(difference) == 1 and _binary(both):
        test = "exact McNemar"
        p_value = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    else:
        test = "paired permutation by problem"
        moved = per_problem[per_problem != 0]
        p_value = 1.0
        if len(moved) > 1:  # the sign of one can only be as extreme either way
            p_value = scipy.stats.permutation_test(
                (moved, np.zeros_like(moved)),
                lambda x, y, axis: (x - y).sum(axis=axis),
                permutation_type="samples",
                n_resamples=resamples,
                vectorized=True,
                batch=500,
                rng=np.random.default_rng(seed),
            ).pvalue
    low, high = _bounds(both)
    return Comparison(
        _estimate(difference, unscored, (low - high, high - low)), float(min(p_value, 1.0)), test, wins, losses
    )


def retention(
    base: Sequence | np.ndarray, skill: Sequence | np.ndarray, merged: Sequence | np.ndarray, *, resamples: int = 4999, seed: int = 0
) -> Retention:
    """Scores of base, skill and merge on the skill's own problems, each of shape (problems,) or (seeds, problems)."""
    difference, gain = paired_test(merged, skill), paired_test(skill, base)
    if not gain.difference.low > 0:
        return Retention(difference, None, None, None)
    tables, _ = _scored(np.stack([_table(base), _table(skill), _table(merged)]))
    by_problem = tables.mean(axis=1)  # (3, problems)
    draws = np.random.default_rng(seed).integers(by_problem.shape[1], size=(resamples, by_problem.shape[1]))
    means = np.stack([row[draws].mean(axis=1) for row in by_problem])
    gained = means[1] - means[0]
    shares = ((means[2] - means[0])[gained > 0]) / gained[gained > 0]
    rest = (1 - CONFIDENCE) / 2
    own = by_problem.mean(axis=1)
    low, high = np.quantile(shares, [rest, 1 - rest])
    return Retention(difference, float((own[2] - own[0]) / (own[1] - own[0])), float(low), float(high))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, which control the chance of any false claim among them. Same keys and
    order.
    """
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def super_linearity(merged: Sequence | np.ndarray, skills: Sequence[Sequence | np.ndarray]) -> SuperLinearity:
    """Which problems the merge solves and no skill does.

    Scores of 0 and 1, each of shape (problems,) or (seeds, problems). Raises LabError for other scores, or
    when the shapes differ.
    """
    tables = [_table(merged), *(_table(skill) for skill in skills)]
    if len(tables) < 2 or len({table.shape for table in tables}) > 1:
        raise LabError(
            f"The merge and its skills need scores of one shape, not {[table.shape for table in tables]}."
        )
    stacked, unscored = _scored(np.stack(tables))
    if not _binary(stacked):
        raise LabError("Super-linearity counts solved problems; give scores of 0 and 1.")
    merge, any_skill = stacked[0] > 0, (stacked[1:] > 0).any(axis=0)
    only = merge & ~any_skill
    counts = [table.sum(axis=-1).mean() for table in (only, ~merge & any_skill, merge, any_skill)]
    total = stacked[1:].sum(axis=(0, -1)).mean()
    share = _estimate(only.astype(float), unscored, SHARE)
    return SuperLinearity(share, *map(float, counts), float(total), bool(counts[2] > total))


def _table(scores: Sequence | np.ndarray) -> np.ndarray:
    """Scores as (seeds, problems), unscored problems as NaN."""
    try:
        table = np.atleast_2d(np.asarray(scores, dtype=float))
    except (TypeError, ValueError) as error:
        raise LabError("Scores must be numbers, as many problems for every seed.") from error
    if table.ndim != 2:
        raise LabError(f"Scores need the shape (problems,) or (seeds, problems), not {table.shape}.")
    return table


def _scored(tables: np.ndarray) -> tuple[np.ndarray, int]:
    """Only the problems (last axis) that are scored everywhere, and how many were left out."""
    scored = ~np.isnan(tables).any(axis=tuple(range(tables.ndim - 1)))
    if not scored.any():
        raise LabError("No problem was scored; there is nothing to average.")
    return tables[..., scored], int((~scored).sum())


def _binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _bounds(scores: np.ndarray) -> tuple[float, float]:
    """Between which a mean of such scores can lie."""
    return SHARE if ((scores >= 0) & (scores <= 1)).all() else (-np.inf, np.inf)


def _estimate(table: np.ndarray, unscored: int, bounds: tuple[float, float]) -> Estimate:
    """mean_interval of a clean table. bounds: of the mean; those of differences tell them from proportions that look alike."""
    seeds, n = table.shape
    mean = float(table.mean())
    constant = bool((table == table.flat[0]).all())
    if _binary(table) and (seeds == 1 or constant) and bounds == SHARE:
        low, high = proportion_interval(round(mean * n), n)
        return Estimate(mean, low, high, n, seeds, unscored, "Wilson")
    if n == 1:
        raise LabError("One problem gives no interval; score at least two.")
    by_problem = table.mean(axis=0)
    ms_problem = seeds * by_problem.var(ddof=1)
    if seeds == 1:
        variance, freedom, method = ms_problem / n, n - 1, "t over problems"
    else:
        by_seed = table.mean(axis=1)
        ms_seed = n * by_seed.var(ddof=1)
        residual = table - by_seed[:, None] - by_problem + mean
        ms_residual = (residual**2).sum() / ((seeds - 1) * (n - 1))
        parts = np.array([ms_seed, ms_problem, -ms_residual])
        total = max(parts.sum(), ms_seed, ms_problem)  # a variance component estimated below zero is zero
        below = (parts**2 / np.array([seeds - 1, n - 1, (seeds - 1) * (n - 1)])).sum()
        variance = total / (seeds * n)
        freedom = total**2 / below if below > 0 else n - 1
        method = "t over seeds and problems"
    import scipy.stats

    half = float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * np.sqrt(variance))
    lowest, highest = bounds
    return Estimate(mean, max(lowest, mean - half), min(highest, mean + half), n, seeds, unscored, method)
