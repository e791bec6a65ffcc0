"""Blind votes: kept in a file, one JSON object to a line, and the ratings that follow from them."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lab.errors import LabError

SCALE = 400 / np.log(10)  # Elo points per unit of log-odds
RIDGE = 0.1  # keeps the rating of a contender that always wins finite
RESAMPLES = 200


@dataclass(frozen=True)
class Vote:
    """winner: one of the players, or "" when none was better."""

    prompt: str
    players: tuple[str, ...]
    winner: str


class Ballot:
    """The file of votes."""

    def __init__(self, file: Path):
        self.file = file
        self._mutex = threading.Lock()

    def cast(self, vote: Vote) -> None:
        """Add a vote. Raises LabError for a winner who did not play, or when the file cannot be written."""
        if vote.winner and vote.winner not in vote.players:
            raise LabError(f"{vote.winner!r} was not among the answers; choose {', '.join(vote.players)}.")
        if len(set(vote.players)) < 2:
            raise LabError("A vote needs at least two different contenders.")
        line = {"time": round(time.time()), "prompt": vote.prompt, "players": list(vote.players), "winner": vote.winner}
        try:
            with self._mutex:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise LabError(f"The vote could not be written: {error.strerror}.") from error

    def votes(self) -> list[Vote]:
        """All votes; a damaged line is left out."""
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                row = json.loads(line)
                found.append(Vote(row["prompt"], tuple(row["players"]), row["winner"]))
            except (ValueError, KeyError, TypeError):
                continue
        return found


def elo(votes: Sequence[Vote], seed: int = 0) -> pd.DataFrame:
    """Ratings (Bradley-Terry, mean 1000), 95 % intervals from resampling prompts: rating, low, high, votes, won.

    The winner of a vote beats each of the others; without one all pairs are drawn. Best first.
    """
    columns = ["rating", "low", "high", "votes", "won"]
    players = sorted({player for vote in votes for player in vote.players})
    if not players:
        return pd.DataFrame(columns=columns)
    place = {player: i for i, player in enumerate(players)}
    prompts = sorted({vote.prompt for vote in votes})
    wins = np.zeros((len(prompts), len(players), len(players)))  # of row over column, by prompt
    for vote in votes:
        at, names = prompts.index(vote.prompt), list(dict.fromkeys(vote.players))
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if vote.winner == "":
                    wins[at, place[a], place[b]] += 0.5
                    wins[at, place[b], place[a]] += 0.5
                elif vote.winner in (a, b):
                    loser = b if vote.winner == a else a
                    wins[at, place[vote.winner], place[loser]] += 1
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(prompts), size=(RESAMPLES, len(prompts)))
    ratings = _ratings(wins.sum(0))
    spread = np.array([_ratings(wins[draw].sum(0)) for draw in draws])
    low, high = np.percentile(spread, [2.5, 97.5], axis=0)
    table = pd.DataFrame(
        {
            "rating": ratings,
            "low": np.minimum(low, ratings),
            "high": np.maximum(high, ratings),
            "votes": [sum(p in v.players for v in votes) for p in players],
            "won": [sum(v.winner == p for v in votes) for p in players],
        },
        index=players,
    )
    return table.sort_values("rating", ascending=False)


def _ratings(wins: np.ndarray) -> np.ndarray:
    """Maximum of the Bradley-Terry likelihood with a ridge, by Newton's method; in Elo points around 1000."""
    strength, games = np.zeros(len(wins)), wins + wins.T
    for _ in range(30):
        chance = 1 / (1 + np.exp(strength[None] - strength[:, None]))  # row beats column
        gradient = (wins - games * chance).sum(1) - RIDGE * strength
        curvature = games * chance * (1 - chance)
        hessian = np.diag(curvature.sum(1) + RIDGE) - curvature
        step = np.linalg.solve(hessian, gradient)
        strength = strength + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return 1000 + SCALE * (strength - strength.mean())
