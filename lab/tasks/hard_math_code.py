"""The target of Section 5.1, never trained on: word problems with large numbers, to be answered by a program that is run."""

import json
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.scorers import score_programs
from lab.tasks import Example, Task, by_target, prompts
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.world.chains import program_lines
from lab.world.stories import make_stories

GSM_HARD = HubSet("reasoning-machines/gsm-hard", "960448f73503112d4226baeb8eb41d3fb5ae2506", "train")
FILE = "gsmhardv2_first660.jsonl"


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (GSM-Hard), or a folder with its jsonl file. Only a test split exists."""
    if split != "test":
        raise LabError("The target of Section 5.1 is never trained on: it has a test split only.")
    if source == "world":
        stories = make_stories("test", seed, count or 500, large=True)
        rows = [(s.text, str(s.chain.result)) for s in stories]
    else:
        fields = ("input", "target")
        found = hub_rows(GSM_HARD, fields) if source == "hub" else read_rows(Path(source) / FILE, fields)
        rows = [(row["input"], str(row["target"])) for row in take(found, count, "GSM-Hard")]
    return [
        Example(f"hard-{i}", prompts.HARD_MATH_CODE.format(text=text), targets=(answer,)) for i, (text, answer) in enumerate(rows)
    ]


def demonstrations(source: str, count: int | None = None) -> list[tuple[str, str]]:
    """The first `count` problem and program pairs, generated ones (default 3) or the project's own for real problems (all).

    For the few-shot baseline and for methods that learn from a few examples of the target.
    Generated demonstrations come from training stories, so no test story is among them.
    """
    if source == "world":
        return [
            (s.text, "\n    ".join(["def solution():", *program_lines(s.chain, "total"), "return total"]))
            for s in make_stories("train", 12345, count or 3, large=True)
        ]
    return [(row["problem"], row["program"]) for row in json.loads((Path(__file__).parent / "pal.json").read_text())[:count]]


TASK = Task(
    "hard_math_code", 1, "Hard word problems by program", prompts.HARD_MATH_CODE, load, by_target(score_programs), 110,
    stop=("\nQuestion:",), demonstrations=demonstrations, folder="gsm_hard", hub=(GSM_HARD,),
)  # fmt: skip
