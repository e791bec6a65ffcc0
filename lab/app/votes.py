"""Blind votes: kept in a file, one JSON object to a line, and the ratings that follow from them."""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lab.errors import LabError
from lab.evaluation import ratings

RESAMPLES = 500


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
                with open(self.file, "a+b") as file:
                    if file.tell():
                        file.seek(-1, os.SEEK_END)
                        if file.read(1) != b"\n":  # what an interrupted program left half written stays a line of its own
                            file.write(b"\n")
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise LabError(f"The vote could not be written: {error.strerror}.") from error

    def votes(self) -> tuple[list[Vote], list[int]]:
        """All votes, and the numbers of the lines that are damaged. Raises LabError when the file cannot be read."""
        try:
            text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"The votes in {self.file.name} cannot be read; mend the file, or move it away.") from error
        found, damaged = [], []
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):  # splitlines would part prompts too
            vote = _read(line)
            damaged += [number] if vote is None else []
            found += [] if vote is None else [vote]
        return found, damaged


def _read(line: str) -> Vote | None:
    """None for a line that is no vote."""
    try:
        row = json.loads(line)
        vote = Vote(row["prompt"], tuple(row["players"]), row["winner"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    named = isinstance(row["players"], list) and all(isinstance(name, str) for name in (vote.prompt, vote.winner, *vote.players))
    return vote if named and len(set(vote.players)) > 1 and vote.winner in ("", *vote.players) else None


def elo(votes: Sequence[Vote]) -> pd.DataFrame:
    """Bradley-Terry ratings on the Elo scale, mean 1000, by player, best first: see lab.evaluation.ratings.

    The winner of a vote beats each of the others; without one all pairs are drawn.
    """
    pairs = []
    for vote in votes:
        names = list(dict.fromkeys(vote.players))
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if vote.winner in ("", a, b):
                    outcome = {a: "first", b: "second"}.get(vote.winner, "tie")
                    pairs.append(ratings.Vote(vote.prompt, a, b, outcome))
    return ratings.bradley_terry(pairs, start=1000, bootstraps=RESAMPLES)
