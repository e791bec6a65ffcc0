"""The file of votes: every line is read as it was written, or named as damaged."""

import json

import pytest

from lab.app.votes import Ballot, Vote


@pytest.fixture
def ballot(tmp_path):
    return Ballot(tmp_path / "votes.jsonl")


def test_prompts_may_hold_any_kind_of_line_end(ballot):
    cast = [Vote(f"a{mark}b", ("cat", "ties"), "cat") for mark in ("\u2028", "\x85", "\x0c", "\r", "\n", "\x1e")]
    for vote in cast:
        ballot.cast(vote)
    assert ballot.votes() == (cast, [])


def test_a_vote_after_a_torn_line_is_a_line_of_its_own(ballot):
    vote = Vote("p", ("cat", "ties"), "")
    ballot.cast(vote)
    ballot.file.write_text(ballot.file.read_text() + '{"prompt": "half')
    ballot.cast(vote)
    assert ballot.votes() == ([vote, vote], [2])


@pytest.mark.parametrize(
    "changes",
    [{"players": "cat"}, {"players": ["cat"]}, {"players": ["cat", 3]}, {"players": None}, {"winner": "moe"}, {"winner": 0}, {"prompt": None}],
    ids=str,
)
def test_what_is_no_vote_is_named(ballot, changes):
    good = {"prompt": "p", "players": ["cat", "ties"], "winner": "cat"}
    ballot.file.write_text("\n".join(json.dumps(row) for row in (good, good | changes, [good], good)) + "\n")
    votes, damaged = ballot.votes()
    assert len(votes) == 2 and damaged == [2, 3]
