"""Section 5.4's claims of the paper against measured tables."""

import pandas as pd

from lab.experiments import prompt_formats


def table(**scores):
    """method -> (role, score, scores in formats 3 and 7)."""
    lines = {name: {"label": name.upper(), "role": role, "score": score, "format 3": a, "format 7": b}
             for name, (role, score, a, b) in scores.items()}  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def test_each_claim_is_told_with_what_decides_it():
    skill, mix = ("skill", 0.6, 0.6, 0.6), ("data", 0.5, 0.5, 0.5)
    first = table(format_1=skill, format_4=("skill", 0.3, 0.3, 0.3), data_mix=mix, cat=("learned", 0.5, 0.7, 0.3), moe=("router", 0.4, 0.4, 0.4))
    second = table(format_1=skill, data_mix=("data", 0.7, 0.7, 0.7), ties=("static", 0.4, 0.4, 0.4), cat=("learned", 0.3, 0.3, 0.3))
    third = second.drop(index="ties").rename(index={"cat": "new"})
    told = prompt_formats.claims({"1 and 4": first, "1 and 2": second, "2 and 4": third}, 0.4)
    assert told == (
        "The same answer every time is right in 40.0 %. The paper's claims: "
        "CAT good in every new format (1 and 4): above a guess in 1 of 2, 30.0 % to 70.0 %; "
        "TIES best (1 and 2): the best merge is TIES (40.0 %); "
        "every merge fails (2 and 4): the best is CAT (30.0 %); "
        "data-mix below the better skill alone: in 1 of 3 pairs (1 and 4). "
        "The best merge against the best skill alone: 1 and 4 CAT (50.0 %) against FORMAT_1 (60.0 %); "
        "1 and 2 TIES (40.0 %) against FORMAT_1 (60.0 %); 2 and 4 CAT (30.0 %) against FORMAT_1 (60.0 %)."
    )
    best = second.copy()
    best.loc["cat", "score"] = 0.5
    assert "the best merge is CAT (50.0 %), TIES has 40.0 %" in prompt_formats.claims({"1 and 4": first, "1 and 2": best, "2 and 4": third}, 0.4)
