"""Multiple choice asked in two prompt versions (paper, Appendix C.4 and Table 3).

A skill is the same questions in one version; the target is test questions in both. Answers are taken from what the model writes
and, beside that, from the choice that it finds most likely (Example.choices).
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.scorers import Verdict
from lab.tasks import Example, Task, prompts
from lab.tasks.formats import QUESTION
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.letters.sentences import make_questions

TRAIN_SETS = ("ARC-Easy", "ARC-Challenge", "openbookqa")  # the sets whose training rows lie in the folder
TEST_SETS = ("piqa", "social_i_qa", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
HUB = {  # id, revision, config; PIQA's and SIQA's revisions are of the Hub's own conversion, since their sources are programs
    "piqa": ("ybisk/piqa", "142c51238b3ca2bc61e9a075913871b8b600e8e1", None),
    "social_i_qa": ("allenai/social_i_qa", "537a2ec8ec565adc0b70b70752893e59e024df26", None),
    "hellaswag": ("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", None),
    "winogrande": ("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "winogrande_xl"),
    "ARC-Easy": ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "ARC-Easy"),
    "ARC-Challenge": ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "ARC-Challenge"),
    "openbookqa": ("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", "main"),
}
COUNTS = ("none", "one", "two", "more")  # what there is to choose from in a generated question
_SAID = re.compile(r"(?:answer|solution|option|ending|choice) ?\(?(\d)")


@dataclass(frozen=True)
class Question:
    """right: the number of the right choice, from 1. kind: what the first version calls a choice. first: that version, where a
    row brings it already."""

    source: str
    text: str
    choices: tuple[str, ...]
    right: int
    kind: str = "answer"
    first: str = ""

    def names(self) -> list[str]:
        return [f"{self.kind}{i}" for i in range(1, len(self.choices) + 1)]


def _first(question: Question) -> tuple[str, list[str]]:
    """(prompt, what to write for each choice) in the words of the rows that the paper used (LLM-Adapters')."""
    names = question.names()
    template, between = prompts.CHOICE_1_OF.get(question.kind, (prompts.CHOICE_1, " "))
    listed = between.join(f"{name.capitalize()}: {choice}" for name, choice in zip(names, question.choices, strict=True))
    asked = question.first or template.format(text=question.text, choices=listed, names="/".join(names))
    return asked, [f"the correct answer is {name}" for name in names]


def _second(question: Question) -> tuple[str, list[str]]:
    numbers = range(1, len(question.choices) + 1)
    listed = "\n".join(f"({n}) {choice}" for n, choice in zip(numbers, question.choices, strict=True))
    return prompts.CHOICE_2.format(text=question.text, choices=listed), [f"choice ({n})" for n in numbers]


VERSIONS = {1: _first, 2: _second}


def parse(instruction: str, answer: str, source: str) -> Question:
    """The question behind a row of the commonsense files. Raises LabError for another text."""
    kind = re.sub(r"\d+$", "", answer)
    head, opening, tail = instruction.partition(f"{kind.capitalize()}1: ")
    body = re.split(r"\s*Answer format: ", tail)[0]
    if not opening or not head.startswith("Please choose") or ": " not in head or not answer[len(kind) :].isdigit():
        raise LabError(f"This row of {source} is no multiple choice question: {instruction[:100]!r}.")
    choices = re.split(rf"\s*{kind.capitalize()}\d+: ", body)
    text, right = head.partition(": ")[2].strip(), int(answer[len(kind) :])
    return Question(source, text, tuple(map(str.strip, choices)), right, kind, instruction)


def questions_of(name: str, source: str, split: str) -> list[Question]:
    """All of one set's. source: "hub", or a folder with the commonsense sets."""
    if source == "hub":
        return _hub_questions(name, split)
    file = Path(source) / name / ("test.json" if split == "test" else "train.json")
    return [parse(row["instruction"], row["answer"], name) for row in read_rows(file, ("instruction", "answer"))]


def questions(source: str, split: str, count: int | None, seed: int) -> list[Question]:
    """source: "world", "hub", or a folder with the commonsense sets. Test rows take turns between the sets."""
    if source == "world":
        return [
            Question("world", QUESTION.format(sentence=sentence, letter=letter), COUNTS, min(number, len(COUNTS) - 1) + 1)
            for sentence, letter, number in make_questions(split, seed, count or 1000)
        ]
    names = HUB if source == "hub" else TEST_SETS if split == "test" else TRAIN_SETS
    sets = [questions_of(name, source, split) for name in names]
    if split == "test":
        rows = [q for turn in itertools.zip_longest(*sets) for q in turn if q is not None]
    else:
        rows = shuffled([q for rows in sets for q in split_rows(rows, split)], seed)
    return take(rows, count, f"multiple choice, {split}")


def _hub_set(name: str, split: str) -> HubSet:
    path, revision, config = HUB[name]
    labelled = "test" if name in ("ARC-Easy", "ARC-Challenge", "openbookqa") else "validation"  # the others' test sets have no answers
    return HubSet(path, revision, labelled if split == "test" else "train", config)


def _hub_questions(name: str, split: str) -> list[Question]:
    """The sets' own fields as questions."""
    if name == "piqa":
        rows = hub_rows(_hub_set(name, split), ("goal", "sol1", "sol2", "label"))
        return [Question(name, r["goal"], (r["sol1"], r["sol2"]), int(r["label"]) + 1, "solution") for r in rows]
    if name == "social_i_qa":
        choices = ("answerA", "answerB", "answerC")
        rows = hub_rows(_hub_set(name, split), ("context", "question", *choices, "label"))
        return [Question(name, f"{r['context']} {r['question']}", tuple(r[c] for c in choices), int(r["label"])) for r in rows]
    if name == "hellaswag":
        rows = hub_rows(_hub_set(name, split), ("activity_label", "ctx", "endings", "label"))
        return [
            Question(name, f"{r['activity_label']}: {r['ctx']}", tuple(r["endings"]), int(r["label"]) + 1, "ending") for r in rows
        ]
    if name == "winogrande":
        rows = hub_rows(_hub_set(name, split), ("sentence", "option1", "option2", "answer"))
        return [Question(name, r["sentence"], (r["option1"], r["option2"]), int(r["answer"]), "option") for r in rows]
    stem = "question_stem" if name == "openbookqa" else "question"
    rows = hub_rows(_hub_set(name, split), (stem, "choices", "answerKey"))
    return [
        Question(name, r[stem], tuple(r["choices"]["text"]), list(r["choices"]["label"]).index(r["answerKey"]) + 1) for r in rows
    ]


def _example(question: Question, version: int, number: int, target: bool) -> Example:
    prompt, written = VERSIONS[version](question)
    name = f"prompt {version}" + ("" if question.source == "world" else f" of {question.source}")
    facts = {"question": str(number), "group": f"prompt {version}", "metadata": {"set": question.source}} if target else {}
    done = "" if target else written[question.right - 1]
    return Example(f"{name}, {number}", prompt, done, (str(question.right),), choices=tuple(written), **facts)


def _load_skill(source: str, split: str, count: int | None, seed: int, *, version: int) -> list[Example]:
    return [_example(q, version, i, target=False) for i, q in enumerate(questions(source, split, count, seed))]


def _load_target(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """Each test question in both versions; `count` rows in all."""
    if split != "test":
        raise LabError("The target of C.4 is never trained on: it has a test split only.")
    asked = questions(source, "test", None if count is None else -(-count // len(VERSIONS)), seed)
    return [_example(q, version, i, target=True) for i, q in enumerate(asked) for version in VERSIONS][:count]


def score(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The number of the choice that is named first, against the right one; extras: the score by version and by set."""
    verdicts = []
    for completion, example in zip(completions, examples, strict=True):
        said = _SAID.search(completion)
        value = float(said is not None and said[1] == example.targets[0])
        asked_in = (example.group, example.metadata["set"]) if example.group else ()
        extras = {name: value for name in asked_in if name != "world"}
        verdicts.append(Verdict("right" if value else "wrong", value, said[1] if said else "", extras))
    return verdicts


_DATA = {
    "stop": ("\n",), "folder": "commonsense",
    "hub": tuple(_hub_set(name, split) for name in HUB for split in ("train", "test")),
}  # fmt: skip
PROMPT_1, PROMPT_2 = (
    Task(f"prompt_{version}", 1, f"Multiple choice, prompt version {version}", template,
         functools.partial(_load_skill, version=version), score, 12, **_DATA)
    for version, template in ((1, prompts.CHOICE_1), (2, prompts.CHOICE_2))
)  # fmt: skip
TARGET = Task("two_prompts", 1, "Multiple choice in both prompt versions", "{text}", _load_target, score, 12, **_DATA)
