"""The reading skill of Section 5.3: a passage and a question, answered by words copied from the passage."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.reading_scores import NOT_IN_CONTEXT, score_reading
from lab.evaluation.scorers import Verdict
from lab.tasks import Example, Task, prompts
from lab.tasks.rows import HubSet, hub_rows, read_json, take
from lab.tasks.splits import shuffled, split_rows
from lab.world.reading import passages

SQUAD = HubSet("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412", "train")
SQUAD_TEST = HubSet("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412", "validation")
FILES = {"train": "train-v2.0.json", "test": "dev-v2.0.json"}  # SQuAD's own
ONE_FILE = "xquad.en.json"  # a set without splits: its first articles are the test
TEST_ARTICLES = 8
Row = tuple[str, str, tuple[str, ...]]


def load(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: "world", "hub" (SQuAD 2.0), or a folder with SQuAD's two files or xquad.en.json.

    A question that its passage does not answer has the answer "Not in context". Splits share no article.
    """
    if source == "world":
        rows = [(*row[:2], (row[2],), told(*row[2:])) for row in passages.plain(split, seed, count or 1000)]
    else:
        chosen = _hub(split) if source == "hub" else _folder(Path(source), split)
        found = take(chosen if split == "test" else shuffled(chosen, seed), count, f"extraction, {split}")
        rows = [(*row, completion(row[2][0])) for row in found]
    return [
        Example(f"extraction-{split}-{i}", prompt(passage, question), done, targets)
        for i, (passage, question, targets, done) in enumerate(rows)
    ]


def text(passage: str, question: str) -> str:
    """What the reading template asks about."""
    return f"{passage}\nQuestion: {question}"


def prompt(passage: str, question: str) -> str:
    return prompts.READING.format(text=text(passage, question))


def completion(answer: str) -> str:
    """The form in which the skill answers."""
    return f" {answer}." if answer == NOT_IN_CONTEXT else f" The answer is {answer.removesuffix('.')}."


def told(answer: str, note: str) -> str:
    """The form in which the skill answers the world's questions: a note on the passage, then the answer."""
    return f" {note}{completion(answer)}"


def _hub(split: str) -> list[Row]:
    found = hub_rows(SQUAD_TEST if split == "test" else SQUAD, ("title", "context", "question", "answers"))
    articles = list(dict.fromkeys(row["title"] for row in found))
    chosen = set(articles if split == "test" else split_rows(articles, split))
    return [
        (row["context"], row["question"], gold(row["answers"]["text"] or [NOT_IN_CONTEXT]))
        for row in found
        if row["title"] in chosen
    ]


def _folder(folder: Path, split: str) -> list[Row]:
    alone = folder / ONE_FILE
    file = alone if alone.is_file() else folder / FILES["test" if split == "test" else "train"]
    articles = read_squad(file)
    if split != "test":
        articles = split_rows(articles[TEST_ARTICLES:] if file == alone else articles, split)
    elif file == alone:
        articles = articles[:TEST_ARTICLES]
    return [row for article in articles for row in article]


def read_squad(file: Path) -> list[list[Row]]:
    """The (passage, question, wordings of the answer) rows of each article of a file in SQuAD's form.

    Raises LabError for another form, and for a question without a passage or an answer, or whose answer is not in its
    passage.
    """
    try:
        return [
            [
                (part["context"], asked["question"], _answer(f"{file}, question {asked['id']}", part["context"], asked))
                for part in article["paragraphs"]
                for asked in part["qas"]
            ]
            for article in read_json(file)["data"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        wanted = "data, paragraphs, context, qas, id, question, answers"
        raise LabError(f"{file} is not in SQuAD's form ({wanted}): {error}.") from error


def _answer(where: str, context: str, asked: dict) -> tuple[str, ...]:
    if not context.strip() or not asked["question"].strip():
        raise LabError(f"{where}: the passage or the question is empty; leave this row out.")
    answers = [answer["text"] for answer in asked["answers"]]
    if not answers and asked.get("is_impossible"):
        return (NOT_IN_CONTEXT,)
    if not any(answer.strip() for answer in answers):
        raise LabError(f"{where} has no gold answer; give one, or say is_impossible.")
    absent = [answer for answer in answers if answer not in context]
    if absent:
        raise LabError(f"{where}: the answer {absent[0]!r} is not in its passage; leave this row out.")
    return gold(answers)


def gold(answers: Iterable[str]) -> tuple[str, ...]:
    """The different wordings of an answer."""
    return tuple(dict.fromkeys(" ".join(answer.split()) for answer in answers))


def score(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """Each answer against the wordings of its gold answer (lab.evaluation.reading_scores)."""
    return score_reading(completions, [example.targets for example in examples])


TASK = Task(
    "extraction", 1, "Answers copied from a passage", prompts.READING, load, score, 24,
    stop=("\nPassage:", "\nQuestion:"), folder="xquad",
    hub=(SQUAD, SQUAD_TEST),
)  # fmt: skip
