"""The target of Section 5.3, never trained on: technical passages, and questions in plain words."""

import json
import re
from pathlib import Path

from lab.errors import LabError
from lab.tasks import Example, Task, prompts
from lab.tasks.extraction import Row, completion, gold, prompt, score, text, told
from lab.tasks.rows import HubSet, hub_rows, read_json, read_rows, take
from lab.world.reading import passages

# BioASQ's factoid questions as the MRQA 2019 shared task has them, with short answers; the paper's are sentences.
BIOASQ = HubSet("lucadiliello/bioasqqa", "main", "test")  # no commit of it could be verified
BIOASQ_FILE = "test_first100.json"
PUBMEDQA_FILE = "ori_pqal_first500.json"
_ASKED = re.compile(r"Context:\s*(.*?)\s*\n\s*Question:\s*(.*)", re.DOTALL)


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (BioASQ), or a folder with BioASQ's file or PubMedQA's. Only a test split exists."""
    if split != "test":
        raise LabError("The target of Section 5.3 is never trained on: it has a test split only.")
    if source == "world":
        rows = [(*row[:2], (row[2],)) for row in passages.technical("test", seed, count or 500)]
    else:
        rows = take(_hub() if source == "hub" else _folder(Path(source)), count, "technical reading")
    return [
        Example(f"technical-{i}", prompt(passage, question), targets=targets, metadata={"passage": passage, "question": question})
        for i, (passage, question, targets) in enumerate(rows)
    ]


def _hub() -> list[Row]:
    rows = hub_rows(BIOASQ, ("context", "question", "answers"))
    return [(row["context"], row["question"], gold(row["answers"])) for row in rows]


def _folder(folder: Path) -> list[Row]:
    return _pubmedqa(folder / PUBMEDQA_FILE) if (folder / PUBMEDQA_FILE).is_file() else _bioasq(folder / BIOASQ_FILE)


def _bioasq(file: Path) -> list[Row]:
    rows = []
    for number, row in enumerate(read_rows(file, ("instruction", "answer")), 1):
        asked = _ASKED.search(row["instruction"])
        rows.append(_checked(f"{file}, row {number}", *(asked.groups() if asked else ("", "")), row["answer"]))
    return rows


def _pubmedqa(file: Path) -> list[Row]:
    try:
        return [
            _checked(f"{file}, {number}", " ".join(row["CONTEXTS"]), row["QUESTION"], row["LONG_ANSWER"])
            for number, row in read_json(file).items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise LabError(f"{file} is not in PubMedQA's form (CONTEXTS, QUESTION, LONG_ANSWER): {error}.") from error


def _checked(where: str, passage: str, question: str, answer: str) -> Row:
    """Raises LabError for a row that lacks something: nothing can be asked, or scored."""
    for name, value in {"passage": passage, "question": question, "gold answer": answer}.items():
        if not value.strip():
            raise LabError(f"{where} has no {name}; give one, or leave this row out.")
    return passage.strip(), question.strip(), gold([answer])


def demonstrations(source: str, count: int | None = None) -> list[tuple[str, str]]:
    """The first `count` (default 5) texts and completions: generated ones never tested, or the project's own."""
    if source == "world":
        return [(text(*row[:2]), told(*row[2:])) for row in passages.technical("shown", 0, count or 5)]
    shown = json.loads((Path(__file__).parent / "technical_reading.json").read_text())
    return [(text(row["passage"], row["question"]), completion(row["answer"])) for row in shown[:count]]


TASK = Task(
    "technical_reading", 1, "Questions on technical passages", prompts.READING, load, score, 24,
    stop=("\nPassage:", "\nQuestion:"), demonstrations=demonstrations, folder="bioasq", hub=(BIOASQ,),
)  # fmt: skip
