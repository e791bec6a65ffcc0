"""From a section's records to ratings: the methods' answers judged pair by pair (paper, Appendix C.3)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lab.errors import LabError
from lab.evaluation import ratings
from lab.evaluation.judge import Judge, Question, judge_pairs
from lab.experiments.candidates import describe
from lab.records import tables
from lab.records.record import RunRecord, skill_names


def judge_records(
    records: Sequence[RunRecord], methods: Sequence[str], judge: Judge, *, log: Path | str | None = None
) -> list[ratings.Vote]:
    """Votes on the answers of these methods, every pair of them on every question and seed, each in both orders.

    Answers are those that the scorer found in the completions. A question's votes of all seeds go by its id, so that
    ratings resample them together. log, and what goes wrong: see lab.evaluation.judge.judge_pairs. Raises LabError for
    fewer than two methods.
    """
    if len(set(methods)) < 2:
        raise LabError(f"There are {len(set(methods))} methods to judge; name at least two to compare.")
    votes = []
    for by_method in tables.paired_rows(records, methods).values():
        questions = [question(rows) for rows in zip(*by_method.values(), strict=True)]
        answers = {
            name: [None if row["score"] is None else row["extracted"] for row in rows]
            for name, rows in by_method.items()
        }
        votes += judge_pairs(questions, answers, judge, log=log)
    return votes


def question(rows: Sequence[dict]) -> Question:
    """What several methods were asked, from their completions rows of technical passages."""
    facts = rows[0]["metadata"]
    return Question(rows[0]["id"], facts["question"], facts["passage"], "\n".join(rows[0]["targets"]))


def rate(votes: Sequence[ratings.Vote], records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per method, the best Elo first.

    Columns: label, role; elo and bt, each with _low and _high; n, wins, ties, losses, unscored (votes).
    """
    skills = skill_names(records)
    elo, bt = ratings.elo(votes), ratings.bradley_terry(votes)
    infos = [describe(name, skills) for name in elo.index]
    table = pd.DataFrame([{"label": info.label, "role": info.role} for info in infos], index=elo.index)
    for name, found in {"elo": elo, "bt": bt}.items():
        table[[name, f"{name}_low", f"{name}_high"]] = found.loc[elo.index, ["rating", "low", "high"]]
    return table.join(elo[["n", "wins", "ties", "losses", "unscored"]])


def format_ratings(table: pd.DataFrame) -> pd.DataFrame:
    """A table of ratings as people read it. Strings throughout."""

    def spans(name: str) -> list[str]:
        rows = table[[name, f"{name}_low", f"{name}_high"]].to_numpy(dtype=float)
        return [f"{mean:.0f} ({low:.0f}–{high:.0f})".replace("nan", "?") for mean, low, high in rows]

    rated = {f"{name} (95 % interval)": spans(column) for name, column in {"Elo": "elo", "Bradley–Terry": "bt"}.items()}
    shown = pd.DataFrame({"method": table["label"], **rated})
    for name in ("wins", "ties", "losses", "n", "unscored"):
        shown["votes" if name == "n" else name] = table[name].astype(str)
    return shown.set_index("method").rename_axis(None)


def finding(table: pd.DataFrame, method: str = "cat") -> str:
    """One sentence: where the method stands in the pairwise verdicts, and whether intervals part it from the best other.

    "" where it was not judged.
    """
    if method not in table.index:
        return ""
    own, best = table.loc[method], table.drop(index=method).iloc[0]
    upper, lower = (own, best) if own["elo"] >= best["elo"] else (best, own)
    apart = upper["elo_low"] > lower["elo_high"]
    order = "level with" if round(own["elo"]) == round(best["elo"]) else "ahead of" if upper is own else "behind"
    return (
        f"In pairwise verdicts {own['label']} stands {order} {best['label']} "
        f"(Elo {own['elo']:.0f} against {best['elo']:.0f}; with these seeds their intervals {'do not overlap' if apart else 'overlap'})."
    )
