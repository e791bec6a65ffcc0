"""The target of Section 5.2, never trained on: questions about the manual, with no manual in the prompt."""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.errors import LabError
from lab.tasks import Example, Task, prompts
from lab.tasks.instruction import completion, key_words, score_answers
from lab.tasks.rows import read_rows, take
from lab.world.reading import manual

GAME, CHAPTER = "game_test_first25.json", "biology_test_first20.json"


def load(source: str, split: str, count: int | None, seed: int, *, file: str = GAME) -> list[Example]:
    """source: "world", or a folder with the questions; they are on no Hub. Only a test split exists."""
    if split != "test":
        raise LabError("The target of Section 5.2 is never trained on: it has a test split only.")
    if source == "world":
        rows = [(text, answer, {}) for text, answer, _ in manual.questions("test", seed, count or 500)]
    else:
        chosen = take(read_questions(source, file), count, "questions about the manual")
        rows = [(q.text, q.gold, {"keys": key_words(q.text, q.gold)}) for q in chosen]
    return [
        Example(f"manual-qa-{i}", prompts.MANUAL_QA.format(text=text), targets=(answer,), metadata=metadata)
        for i, (text, answer, metadata) in enumerate(rows)
    ]


@dataclass(frozen=True)
class Question:
    """page: the text of the page that it was asked about."""

    text: str
    gold: str
    page: str


def read_questions(source: str, file: str) -> list[Question]:
    """The questions of a file. Raises LabError for one without text, gold answer or page."""
    if source == "hub":
        raise LabError(f'The questions about it are not on the Hub; give data="FOLDER+hub", where FOLDER has qabot/{file}.')
    rows = read_rows(Path(source) / file, ("instruction", "answer", "context"))
    for number, row in enumerate(rows, 1):
        for name, what in {"instruction": "question", "answer": "gold answer", "context": "page"}.items():
            if not row[name].strip():
                raise LabError(f"{Path(source) / file}, row {number} has no {what}; give one, or leave this row out.")
    return [Question(*(row[name].strip() for name in ("instruction", "answer", "context"))) for row in rows]


def file_of(task: Task) -> str:
    """The file of the real questions that a task asks."""
    return CHAPTER if task.name == BIOLOGY.name else GAME


def demonstrations(source: str, count: int | None = None) -> list[tuple[str, str]]:
    """The first `count` (default 5) questions and completions: about the manual and never tested, or the project's own on
    other matters."""
    if source == "world":
        return [(text, completion(answer, card)) for text, answer, card in manual.questions("shown", 0, count or 5)]
    shown = json.loads((Path(__file__).parent / "manual_qa.json").read_text())
    return [(row["question"], f" {row['answer']}") for row in shown[:count]]


TASK = Task(
    "manual_qa", 1, "Questions about a manual", prompts.MANUAL_QA, load, score_answers, 24, stop=("\nQuestion:",),
    demonstrations=demonstrations, folder="qabot",
)  # fmt: skip
BIOLOGY = dataclasses.replace(TASK, name="biology_qa", title="Questions about a chapter", load=partial(load, file=CHAPTER))
