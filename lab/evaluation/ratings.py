"""Ratings from pairwise votes: Elo as the paper computes it, and Bradley-Terry, which does not depend on the votes'
order.

A vote says which of two methods' answers to one question is better. Votes on the same question hang together, so both
ratings resample questions, never single votes: intervals speak of new questions. Everything is numpy over all
bootstraps at once, in this process.

    votes = judge_pairs(questions, answers, Deterministic())
    elo(votes)            # the paper's: start 200, base 10, scale 400, K 4, 5,000 bootstraps
    bradley_terry(votes)  # beside it

Read them together: Elo with K 4 moves by at most 4 points a vote, so with few votes all ratings stay close to the
start; Bradley-Terry has no such brake, only a small ridge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lab.errors import LabError

OUTCOMES = ("first", "second", "tie", None)
RIDGE = 0.1  # FastChat's logistic regression has about this one: 1 / (2 ln(10)^2) per vote
_BATCH = 2**22  # votes replayed at once: bounds the memory, changes no result but the draws


@dataclass(frozen=True)
class Vote:
    """Which of two methods answered a question better.

    question: its id. first, second: names of two different methods. outcome: "first", "second" or "tie" (neither is
    better); None when it could not be judged: counted as unscored and used in no rating. Raises LabError for anything
    else.
    """

    question: str
    first: str
    second: str
    outcome: str | None

    def __post_init__(self):
        if self.outcome not in OUTCOMES:
            raise LabError(f"{self.outcome!r} is no outcome of a vote; it is one of 'first', 'second', 'tie' or None.")
        if self.first == self.second:
            raise LabError(f"A vote compares two different methods, not {self.first!r} with itself.")


def elo(
    votes: Sequence[Vote],
    start: float = 200,
    base: float = 10,
    scale: float = 400,
    k: float = 4,
    bootstraps: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Elo ratings of the paper (Appendix C.3), by the procedure FastChat published; one row a method, best first.

    Each bootstrap draws as many questions as there are, with replacement, puts all their votes in a random order and
    replays them: the winner's rating rises, and the other's falls, by k (score - 1 / (1 + base^((other - own) /
    scale))), where score is 1, 1/2 for a tie, or 0. FastChat resamples single votes; here a question's votes are drawn
    together.

    Columns: rating (median over the bootstraps), low and high (95 % interval), n (votes used), wins, ties, losses,
    unscored. A bootstrap without a vote on a method says nothing about it. Without a scored vote the rating is NaN;
    with votes on one question only, low and high are. Raises LabError unless base > 1 and scale, k and bootstraps are
    positive.
    """
    _check(base, scale, bootstraps)
    if not k > 0:
        raise LabError(f"k is {k!r}; it must be above 0.")
    table = _Table(votes)
    if not table.scored:
        return table.frame(np.full(len(table.methods), np.nan))
    places = len(table.methods) + 1  # the last one is nobody's: padding plays there
    at_once = max(1, _BATCH // table.by_question.size)
    finals = []
    for rng, drawn in _draws(table, bootstraps, seed, at_once):
        replay = rng.permuted(table.by_question[drawn].reshape(len(drawn), -1), axis=1).T  # (votes, bootstraps)
        own = np.arange(len(drawn)) * places
        ratings = np.full(len(drawn) * places, float(start))
        for first, second, score in zip(table.first[replay], table.second[replay], table.score[replay], strict=True):
            first, second = first + own, second + own
            a, b = ratings[first], ratings[second]
            gain = k * (score - 1 / (1 + base ** ((b - a) / scale)))
            ratings[first], ratings[second] = a + gain, b - gain
        ratings = ratings.reshape(len(drawn), places)[:, :-1]
        finals.append(np.where(table.played[drawn].any(axis=1), ratings, np.nan))
    return table.frame(None, np.concatenate(finals))


def bradley_terry(
    votes: Sequence[Vote],
    start: float = 200,
    base: float = 10,
    scale: float = 400,
    ridge: float = RIDGE,
    bootstraps: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Bradley-Terry ratings on the Elo scale, by Newton's method; the same columns as `elo`, best first.

    Maximises sum over votes of log p(outcome) - ridge/2 |strength|^2, with p(first wins) = 1 / (1 + exp(strength_second
    - strength_first)); a tie is half a win for each. rating = start + scale / ln(base) * strength, mean `start`. The
    ridge keeps a method that always wins finite (and its interval narrow: nothing in the votes says how much better it
    is).

    rating: of all votes. low, high: 95 % of the bootstraps over questions, stretched to hold the rating; NaN with votes
    on one question only. Raises LabError unless base > 1 and scale, ridge and bootstraps are positive.
    """
    _check(base, scale, bootstraps)
    if not ridge > 0:
        raise LabError(f"ridge is {ridge!r}; it must be above 0, or a method that always wins has no finite rating.")
    table = _Table(votes)
    if not table.scored:
        return table.frame(np.full(len(table.methods), np.nan))
    points, questions = scale / np.log(base), len(table.wins)
    flat = table.wins.reshape(questions, -1)
    _, drawn = next(_draws(table, bootstraps, seed, bootstraps))
    counts = np.zeros((bootstraps, questions))
    np.add.at(counts, (np.arange(bootstraps)[:, None], drawn), 1)
    wins = np.concatenate([flat.sum(0, keepdims=True), counts @ flat]).reshape(bootstraps + 1, *table.wins.shape[1:])
    ratings = start + points * _strengths(wins, ridge)
    ratings[(wins + wins.transpose(0, 2, 1)).sum(2) == 0] = np.nan
    return table.frame(ratings[0], ratings[1:])


def _strengths(wins: np.ndarray, ridge: float) -> np.ndarray:
    """wins: (bootstraps, methods, methods), of row over column. Returns (bootstraps, methods), in log-odds, mean 0."""
    games, identity = wins + wins.transpose(0, 2, 1), np.eye(wins.shape[1])
    strength = np.zeros(wins.shape[:2])
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))  # of row over column
        gradient = (wins - games * chance).sum(2) - ridge * strength
        curvature = games * chance * (1 - chance)
        hessian = identity * (curvature.sum(2) + ridge)[:, None] - curvature
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        # A full step overshoots where a method wins nearly always and the curvature is next to nothing.
        strength += step * np.minimum(1, 2 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return strength


class _Table:
    """Votes as arrays. A vote's number indexes `first`, `second` and `score`; the last number is the padding's."""

    def __init__(self, votes: Sequence[Vote]):
        self.methods = sorted({name for vote in votes for name in (vote.first, vote.second)})
        self.scored = [vote for vote in votes if vote.outcome is not None]
        place, nobody = {name: i for i, name in enumerate(self.methods)}, len(self.methods)
        questions = {name: i for i, name in enumerate(sorted({vote.question for vote in self.scored}))}
        self.first = np.array([*(place[vote.first] for vote in self.scored), nobody])
        self.second = np.array([*(place[vote.second] for vote in self.scored), nobody])
        self.score = np.array([*({"first": 1.0, "second": 0.0, "tie": 0.5}[vote.outcome] for vote in self.scored), 0.5])
        rows: list[list[int]] = [[] for _ in questions]
        for number, vote in enumerate(self.scored):
            rows[questions[vote.question]].append(number)
        width, padding = max(map(len, rows), default=0), len(self.scored)
        # (questions, most votes on one): each question's votes, padded
        self.by_question = np.array([row + [padding] * (width - len(row)) for row in rows], dtype=np.int32)
        self.wins = np.zeros((len(questions), nobody, nobody))  # by question, of row over column
        at = np.array([questions[vote.question] for vote in self.scored], dtype=int)
        np.add.at(self.wins, (at, self.first[:-1], self.second[:-1]), self.score[:-1])
        np.add.at(self.wins, (at, self.second[:-1], self.first[:-1]), 1 - self.score[:-1])
        self.played = (self.wins + self.wins.transpose(0, 2, 1)).any(axis=2)  # (questions, methods)
        names = ["wins", "ties", "losses", "unscored"]
        columns = {"first": (0, 2), "second": (2, 0), "tie": (1, 1), None: (3, 3)}
        counts = np.zeros((nobody, len(names)), dtype=int)
        for vote in votes:
            for name, column in zip((vote.first, vote.second), columns[vote.outcome], strict=True):
                counts[place[name], column] += 1
        self.counts = pd.DataFrame(counts, index=pd.Index(self.methods, name="method"), columns=names)

    def frame(self, ratings: np.ndarray | None, bootstraps: np.ndarray | None = None) -> pd.DataFrame:
        """ratings: (methods,), or None for the median of `bootstraps`: (bootstraps, methods), NaN where a method did
        not play.
        """
        nothing = np.full(len(self.methods), np.nan)
        low, high = nothing.copy(), nothing.copy()
        if bootstraps is not None:
            median, seen = nothing.copy(), ~np.isnan(bootstraps).all(axis=0)
            median[seen], low[seen], high[seen] = np.nanquantile(bootstraps[:, seen], [0.5, 0.025, 0.975], axis=0)
            ratings = median if ratings is None else ratings
            low, high = np.fmin(low, ratings), np.fmax(high, ratings)
            alone = self.played.sum(axis=0) < 2
            low[alone], high[alone] = np.nan, np.nan
        used = self.counts[["wins", "ties", "losses"]].sum(axis=1)
        table = pd.DataFrame({"rating": ratings, "low": low, "high": high, "n": used}).join(self.counts)
        return table.sort_values("rating", ascending=False, kind="stable")


def _draws(table: _Table, bootstraps: int, seed: int, at_once: int):
    """Yield (generator, questions drawn with replacement: (up to at_once, questions)) until there are enough
    bootstraps.
    """
    rng, questions = np.random.default_rng(seed), len(table.by_question)
    for begun in range(0, bootstraps, at_once):
        yield rng, rng.integers(questions, size=(min(at_once, bootstraps - begun), questions))


def _check(base: float, scale: float, bootstraps: int) -> None:
    if not base > 1:
        raise LabError(f"base is {base!r}; it must be above 1.")
    for name, value in (("scale", scale), ("bootstraps", bootstraps)):
        if not value > 0:
            raise LabError(f"{name} is {value!r}; it must be above 0.")
