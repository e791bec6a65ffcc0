"""The maths skill: word problems with small numbers, answered by worked steps in words."""

import re
from collections.abc import Sequence
from pathlib import Path

from lab.evaluation.scorers import Verdict, score_final_number
from lab.tasks import Example, Task, prompts
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.stories import make_stories, solution_in_words

METAMATH = HubSet("meta-math/MetaMathQA", "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18", "train")
GSM8K_TEST = HubSet("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "test", "main")


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (MetaMathQA to train, GSM8K to test), or a folder with GSM8K's train.jsonl and test.jsonl."""
    if source == "world":
        stories = make_stories(split, seed, count or 1000)
        return [
            Example(f"maths-{split}-{seed}-{i}", prompts.MATHS.format(text=s.text), " " + solution_in_words(s), (str(s.chain.result),))
            for i, s in enumerate(stories)
        ]
    if source == "hub":
        if split == "test":
            pairs = [(row["question"], gsm8k_solution(row["answer"])) for row in hub_rows(GSM8K_TEST, ("question", "answer"))]
        else:
            # GSM8K_Backward questions are made from GSM8K's test set: never train on them.
            rows = [r for r in hub_rows(METAMATH, ("query", "response", "type", "original_question")) if r["type"] != "GSM8K_Backward"]
            # A question's rephrasings stay together: calibration holds other questions than training.
            chosen = set(split_rows(list(dict.fromkeys(r["original_question"] for r in rows)), split))
            pairs = [(r["query"], r["response"]) for r in rows if r["original_question"] in chosen]
    else:
        file = Path(source) / ("test.jsonl" if split == "test" else "train.jsonl")
        pairs = [(row["question"], gsm8k_solution(row["answer"])) for row in read_rows(file, ("question", "answer"))]
        pairs = pairs if split == "test" else split_rows(pairs, split)
    pairs = shuffled(pairs, seed) if split != "test" else pairs
    return [
        Example(f"maths-{split}-{i}", prompts.MATHS.format(text=question), " " + solution, final_number(solution))
        for i, (question, solution) in enumerate(take(pairs, count, f"maths, {split}"))
    ]


def gsm8k_solution(answer: str) -> str:
    """GSM8K's working without its calculator annotations, and 'The answer is N.' in place of '#### N'."""
    return re.sub(r"\n?#### (.+)", r"\nThe answer is \1.", re.sub(r"<<.*?>>", "", answer))


def final_number(solution: str) -> tuple[str, ...]:
    """The number after "answer is"; () where there is none."""
    found = re.findall(r"answer is:? *\$?(-?[\d,]*\.?\d+)", solution)
    return tuple(number.replace(",", "") for number in found[-1:])


def score(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The number that the working ends in, against the answer."""
    return [score_final_number(text, e.targets[0]) for text, e in zip(completions, examples, strict=True)]


TASK = Task(
    "maths", 1, "Word problems, small numbers", prompts.MATHS, load, score, 90, stop=("\nQuestion:",), folder="gsm8k",
    hub=(METAMATH, GSM8K_TEST),
)  # fmt: skip
