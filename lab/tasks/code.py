"""The code skill: instructions, not story problems, answered by a Python function."""

from pathlib import Path

from lab.evaluation.scorers import score_programs
from lab.tasks import Example, Task, by_target, prompts
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.orders import make_orders

CODE_ALPACA = HubSet("sahil2801/CodeAlpaca-20k", "152bb5e9a29651266b018106053980070a0521a1", "train")
FILE = "code_alpaca_2k.json"
TEST_ROWS = 200  # Code Alpaca has no test set: the first rows are never trained on


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (Code Alpaca 20k), or a folder with Code Alpaca's json file.

    Generated rows carry the value that the program must return, as text. Code Alpaca's carry none, so they have no target.
    """
    if source == "world":
        return [
            Example(f"code-{split}-{seed}-{i}", prompts.CODE.format(text=o.text), o.program, (repr(o.value),))
            for i, o in enumerate(make_orders(split, seed, count or 1000))
        ]
    fields = ("instruction", "input", "output")
    rows = hub_rows(CODE_ALPACA, fields) if source == "hub" else read_rows(Path(source) / FILE, fields)
    # As a dict: Code Alpaca repeats instructions, and one must not be in two splits.
    texts = list({f"{row['instruction']}\n{row['input']}".strip(): row["output"] for row in rows}.items())
    rows = texts[:TEST_ROWS] if split == "test" else shuffled(split_rows(texts[TEST_ROWS:], split), seed)
    return [
        Example(f"code-{split}-{i}", prompts.CODE.format(text=text), output)
        for i, (text, output) in enumerate(take(rows, count, f"code, {split}"))
    ]


TASK = Task(
    "code", 1, "Instructions to programs", prompts.CODE, load, by_target(score_programs), 110, stop=("\nQuestion:",), folder="code_alpaca",
    hub=(CODE_ALPACA,),
)  # fmt: skip
