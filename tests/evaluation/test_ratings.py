"""Elo against a plain replay, Bradley-Terry against scikit-learn, and what both do with questions, ties and unscored
votes.
"""

import itertools
import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lab.errors import LabError
from lab.evaluation import ratings
from lab.evaluation.ratings import RIDGE, Vote, bradley_terry, elo

METHODS = ("cat", "data-mix", "maths", "ties")


def some_votes(questions=30, seed=0, flip=()):
    """Earlier methods tend to win; `flip`: questions whose pairs are shown the other way round."""
    rng, votes = random.Random(seed), []
    turned = {"first": "second", "second": "first", "tie": "tie"}
    for q in range(questions):
        for a, b in itertools.combinations(METHODS, 2):
            outcome = rng.choice(["first", "first", "first", "second", "tie"])
            votes.append(Vote(f"q{q}", b, a, turned[outcome]) if q in flip else Vote(f"q{q}", a, b, outcome))
    return votes


def replay(votes, start=200.0, k=4.0):
    """Elo by the book, one vote after the other."""
    found = {}
    for vote in votes:
        a, b = found.get(vote.first, start), found.get(vote.second, start)
        expected = 1 / (1 + 10 ** ((b - a) / 400))
        score = {"first": 1, "second": 0, "tie": 0.5}[vote.outcome]
        found[vote.first] = a + k * (score - expected)
        found[vote.second] = b + k * ((1 - score) - (1 - expected))
    return found


def test_a_first_win_moves_both_by_half_of_k():
    table = elo([Vote("q", "cat", "ties", "first")])
    assert table.rating.to_dict() == {"cat": 202.0, "ties": 198.0}
    table = elo([Vote("q", "cat", "ties", "first")] * 2)
    second = 4 * (1 - 1 / (1 + 10 ** (-4 / 400)))  # the favourite wins less for the same
    assert table.rating.to_dict() == pytest.approx({"cat": 202 + second, "ties": 198 - second})


def test_elo_replays_a_questions_votes_in_some_order():
    votes = [Vote("q", "cat", "ties", "first"), Vote("q", "ties", "maths", "first"), Vote("q", "cat", "maths", "tie")]
    names, found = ("cat", "maths", "ties"), set()
    orders = {tuple(round(replay(order)[m], 9) for m in names) for order in itertools.permutations(votes)}
    for seed in range(40):
        table = elo(votes, bootstraps=1, seed=seed).rating
        found.add(tuple(round(table[m], 9) for m in names))
    assert len(orders) > 3 and found == orders


def test_elo_keeps_the_sum_and_ranks_as_bradley_terry():
    votes = some_votes(40)
    one = elo(votes, bootstraps=1)
    assert one.rating.sum() == pytest.approx(4 * 200)
    table, reference = elo(votes, bootstraps=500), bradley_terry(votes, bootstraps=10)
    assert list(table.index) == list(reference.index) == list(table.sort_values("rating", ascending=False).index)
    assert (table.low <= table.rating).all() and (table.rating <= table.high).all() and (table.low < table.high).all()


def test_unequal_numbers_of_votes_on_a_question():
    votes = [Vote("q0", "cat", "ties", "first")] * 5 + [Vote("q1", "cat", "ties", "first")]
    seen = {round(elo(votes, bootstraps=1, seed=seed).rating["cat"], 6) for seed in range(25)}
    expected = {round(replay([votes[0]] * n)["cat"], 6) for n in (2, 6, 10)}  # q1 twice, both, q0 twice
    assert seen == expected


def test_same_seed_same_table_and_batches_change_nothing_much(monkeypatch):
    votes = some_votes(20)
    whole = elo(votes, bootstraps=600)
    assert whole.equals(elo(votes, bootstraps=600))
    monkeypatch.setattr(ratings, "_BATCH", 1000)
    assert np.allclose(elo(votes, bootstraps=600).rating.reindex(METHODS), whole.rating.reindex(METHODS), atol=2)


@pytest.mark.parametrize("rate", [elo, bradley_terry])
def test_who_comes_first_makes_no_difference(rate):
    plain, turned = rate(some_votes(), bootstraps=300), rate(some_votes(flip=range(0, 30, 2)), bootstraps=300)
    for column in plain.columns:
        assert np.allclose(plain[column], turned[column].reindex(plain.index))


def test_bradley_terry_does_not_depend_on_order_or_names_of_methods():
    votes = some_votes()
    plain = bradley_terry(votes, bootstraps=50)
    shuffled = random.Random(1).sample(votes, len(votes))
    assert np.allclose(bradley_terry(shuffled, bootstraps=50).rating, plain.rating)
    names = dict(zip(METHODS, ("z", "y", "x", "w"), strict=True))
    others = [Vote(v.question, names[v.first], names[v.second], v.outcome) for v in votes]
    renamed = bradley_terry(others, bootstraps=50)
    assert np.allclose(renamed.rating, plain.rating) and list(renamed.index) == [names[m] for m in plain.index]


def test_bradley_terry_agrees_with_logistic_regression():
    votes = some_votes()
    rows, wins = [], []
    for vote in votes:
        row = [(m == vote.first) - (m == vote.second) for m in METHODS]
        for outcome in ("first", "second") if vote.outcome == "tie" else (vote.outcome,) * 2:
            rows.append(row)
            wins.append(outcome == "first")
    reference = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(np.array(rows), wins, sample_weight=np.full(len(rows), 0.5))
    expected = 200 + 400 / np.log(10) * reference.coef_[0]
    assert np.allclose(bradley_terry(votes, bootstraps=5).rating.reindex(METHODS), expected, atol=1e-3)


def test_a_perfect_winner_stays_finite():
    votes = [Vote(f"q{q}", "cat", other, "first") for q in range(300) for other in METHODS[1:]]
    table = bradley_terry(votes, bootstraps=50)
    assert table.index[0] == "cat" and np.isfinite(table[["rating", "low", "high"]]).all(axis=None)
    assert table.rating.mean() == pytest.approx(200)
    assert np.allclose(table.rating.iloc[1:], table.rating.iloc[1])


@pytest.mark.parametrize("rate", [elo, bradley_terry])
def test_ties_alone_leave_all_at_the_start(rate):
    table = rate([Vote(f"q{q}", "cat", "ties", "tie") for q in range(9)], bootstraps=20)
    assert np.allclose(table[["rating", "low", "high"]], 200)
    assert table.ties.to_dict() == {"cat": 9, "ties": 9} and not table[["wins", "losses"]].any(axis=None)


@pytest.mark.parametrize("rate", [elo, bradley_terry])
def test_unscored_votes_are_counted_and_never_used(rate):
    votes = some_votes(10)
    unscored = [Vote("q0", "cat", "ties", None), Vote("elsewhere", "cat", "new", None)]
    plain, more = rate(votes, bootstraps=200), rate(votes + unscored, bootstraps=200)
    used = ["rating", "low", "high", "n", "wins", "ties", "losses"]
    assert np.allclose(more.loc[plain.index, used], plain[used])
    assert more.unscored.to_dict() == {"cat": 2, "ties": 1, "data-mix": 0, "maths": 0, "new": 1}
    assert np.isnan(more.rating["new"]) and more.n["new"] == 0 and more.index[-1] == "new"
    assert (plain.n == plain.wins + plain.ties + plain.losses).all() and plain.n["cat"] == 30


@pytest.mark.parametrize("rate", [elo, bradley_terry])
def test_no_votes_and_one_question(rate):
    assert rate([]).empty and list(rate([]).columns)[:3] == ["rating", "low", "high"]
    alone = rate([Vote("q", "cat", "ties", "first")] * 50, bootstraps=20)
    assert alone.rating["cat"] > alone.rating["ties"] and alone[["low", "high"]].isna().all(axis=None)


def test_questions_are_resampled_not_votes():
    votes = some_votes(25)
    once = bradley_terry(votes, ridge=1e-6, bootstraps=200)
    often = bradley_terry(votes * 10, ridge=1e-6, bootstraps=200)  # no new question: no more certainty
    assert np.allclose(often[["rating", "low", "high"]], once[["rating", "low", "high"]], atol=0.1)
    new = [Vote(f"{v.question}-{i}", v.first, v.second, v.outcome) for i in range(10) for v in votes]
    more = bradley_terry(new, ridge=1e-6, bootstraps=200)
    assert ((more.high - more.low) < 0.6 * (once.high - once.low)).all()


def test_bad_votes_and_settings():
    with pytest.raises(LabError, match="'draw' is no outcome"):
        Vote("q", "cat", "ties", "draw")
    with pytest.raises(LabError, match="not 'cat' with itself"):
        Vote("q", "cat", "cat", "tie")
    cases = [(elo, {"k": 0}), (elo, {"bootstraps": 0}), (bradley_terry, {"ridge": 0}), (bradley_terry, {"base": 1})]
    for rate, bad in cases:
        with pytest.raises(LabError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}; it must be above"):
            rate(some_votes(2), **bad)
