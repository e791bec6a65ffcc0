"""Counting the words of a sentence that contain a letter (Super-NaturalInstructions 161), in the prompt formats of Section 5.4.

A skill is the task in one format; the target is the task in formats that no skill was trained on.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.scorers import Verdict
from lab.tasks import Example, Task
from lab.tasks.formats import ANSWER, FORMATS, Format, get_format
from lab.tasks.rows import HubSet, hub_rows, read_rows, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.letters.sentences import make_questions

HUB = "Lots-of-LoRAs/task161_count_words_containing_letter"
REVISION = "main"  # no commit of it could be verified
HUB_TRAIN, HUB_TEST = HubSet(HUB, REVISION, "train"), HubSet(HUB, REVISION, "test")
# The files of the other formats hold the same rows.
TRAIN_FILE, TEST_FILE = "train_instructions_task_format1.json", "test_instructions_format7.json"
TARGET_FORMATS = (3, 7, 8, 10)
_STATED = re.compile(r"answer is:? *(\d+)")
_ROW = re.compile(r"'(.*)'\. How many words contain the letter '(.)' in the sentence", re.DOTALL)


def questions(source: str, split: str, count: int | None, seed: int) -> list[tuple[str, str, int]]:
    """(sentence, letter, number of words that contain it). source: "world", "hub", or a folder with the task_161 files."""
    if source == "world":
        return make_questions(split, seed, count or 1000)
    if source == "hub":
        rows = hub_rows(HUB_TEST if split == "test" else HUB_TRAIN, ("input", "output"))
        found = [(*_parse(row["input"]), _number("".join(row["output"]))) for row in rows]
    else:
        number, file = (7, TEST_FILE) if split == "test" else (1, TRAIN_FILE)
        rows = read_rows(Path(source) / file, ("instruction", "output"))
        found = [(*FORMATS[number].parse(row["instruction"]), _number(row["output"])) for row in rows]
    if split != "test":
        found = shuffled(split_rows(found, split), seed)
    return take(found, count, f"counting words, {split}")


def _parse(text: str) -> tuple[str, str]:
    """(sentence, letter) of a Hub row, whose prompt has worked examples before the question."""
    found = _ROW.search(text.rpartition("Now complete the following example")[2])
    if not found:
        raise LabError(f"This row asks no question about the letters of a sentence: {text[-100:]!r}.")
    return found[1], found[2]


def _number(text: str) -> int:
    found = re.findall(r"\d+", text)
    if not found:
        raise LabError(f"This row's output {text!r} holds no number of words.")
    return int(found[-1])


def _load_skill(source: str, split: str, count: int | None, seed: int, *, number: int) -> list[Example]:
    form = get_format(number)
    return [
        Example(f"{form.name}, {split} {i}", form.render(sentence, letter), ANSWER.format(number=n), (str(n),))
        for i, (sentence, letter, n) in enumerate(questions(source, split, count, seed))
    ]


def _load_target(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """The same questions in each of the target's formats; `count` rows in all. Only a test split exists."""
    if split != "test":
        raise LabError("The target of Section 5.4 is never trained on: it has a test split only.")
    forms = [get_format(number) for number in TARGET_FORMATS]
    asked = questions(source, "test", None if count is None else -(-count // len(forms)), seed)
    rows = [
        Example(f"{form.name}, {i}", form.render(sentence, letter), targets=(str(n),), question=str(i), group=form.name)
        for i, (sentence, letter, n) in enumerate(asked)
        for form in forms
    ]
    return rows[:count]


def demonstrations(source: str, count: int | None = None) -> list[tuple[str, str]]:
    """Prompts in the target's formats, one after the other, with their answers; the questions are training rows."""
    asked = questions(source, "train", count or 4, 12345)
    forms = [get_format(TARGET_FORMATS[i % len(TARGET_FORMATS)]) for i in range(len(asked))]
    return [(f.render(sentence, letter), ANSWER.format(number=n)) for f, (sentence, letter, n) in zip(forms, asked, strict=True)]


def score(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The number after "answer is", or the only one there is, against the answer; extras: the score by format."""
    verdicts = []
    for completion, example in zip(completions, examples, strict=True):
        stated, numbers = _STATED.search(completion), re.findall(r"\d+", completion)
        said = stated[1] if stated else numbers[0] if len(numbers) == 1 else ""
        value = float(said == example.targets[0])
        reason = "right" if value else "wrong" if said else "no answer"
        verdicts.append(Verdict(reason, value, said, {example.group: value} if example.group else {}))
    return verdicts


def majority(targets: Iterable[Sequence[str]]) -> tuple[str, float]:
    """The most frequent answer and its share: what a model scores that never reads the sentence."""
    counts = Counter(target for (target,) in targets)
    (number, count), = counts.most_common(1)
    return number, count / counts.total()


@functools.cache
def skill(number: int) -> Task:
    """The task in one format, to be trained on. Raises LabError for a format that there is not."""
    form: Format = get_format(number)
    return Task(
        f"format_{number}", 1, f"Counting words, {form.name}", form.template(),
        functools.partial(_load_skill, number=number), score, 12, stop=("\n",), folder="task_161",
        hub=(HUB_TRAIN, HUB_TEST),
    )  # fmt: skip


TARGET = Task(
    "new_formats", 1, "Counting words, in formats that no skill has seen", "{text}", _load_target, score, 12, stop=("\n",),
    demonstrations=demonstrations, folder="task_161", hub=(HUB_TRAIN, HUB_TEST),
)  # fmt: skip
