"""Section 5.4: what the paper says of prompt formats, held against what was measured."""

from collections.abc import Mapping

import pandas as pd

MERGES = ("static", "learned", "router")  # roles


def claims(pairs: Mapping[str, pd.DataFrame], guess: float) -> str:
    """The paper's four claims (Section 5.4, Figure 10), each with the measured numbers that decide it.

    pairs: "1 and 4", "1 and 2" and "2 and 4" -> `tables.result_table` (lab.records) with the columns of `letters.score`, a score per format.
    guess: fraction right for the one most frequent answer.
    """
    formats = pairs["1 and 4"].filter(regex=r"^format \d+$").loc["cat"].astype(float)
    best = {name: _best(table[table["role"].isin(MERGES)]) for name, table in pairs.items()}
    alone = {name: _best(table[table["role"] == "skill"]) for name, table in pairs.items()}
    below = [name for name, table in pairs.items() if table.at["data_mix", "score"] < alone[name]["score"]]
    ties = pairs["1 and 2"].at["ties", "score"] if "ties" in pairs["1 and 2"].index else None
    told = [
        f"CAT good in every new format (1 and 4): above a guess in {(formats > guess).sum()} of {len(formats)}, "
        f"{_percent(formats.min())} to {_percent(formats.max())}",
        f"TIES best (1 and 2): the best merge is {_said(best['1 and 2'])}"
        + (f", TIES has {_percent(ties)}" if ties is not None and best["1 and 2"].name != "ties" else ""),
        f"every merge fails (2 and 4): the best is {_said(best['2 and 4'])}",
        f"data-mix below the better skill alone: in {len(below)} of {len(pairs)} pairs" + (f" ({', '.join(below)})" if below else ""),
    ]
    distances = "; ".join(f"{name} {_said(best[name])} against {_said(alone[name])}" for name in pairs)
    return (
        f"The same answer every time is right in {_percent(guess)}. The paper's claims: {'; '.join(told)}. "
        f"The best merge against the best skill alone: {distances}."
    )


def _best(table: pd.DataFrame) -> pd.Series:
    return table.loc[table["score"].astype(float).idxmax()]


def _said(row: pd.Series) -> str:
    return f"{row['label']} ({_percent(row['score'])})"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
