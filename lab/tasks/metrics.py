"""How answers to a user's own rows are scored: one scorer per metric, and the task that a file of rows makes with it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.judge import MOST_POINTS, Judge, Question, grade_answers
from lab.evaluation.reading_scores import exact_match, stated_answer, token_f1
from lab.evaluation.sandbox import run_programs
from lab.evaluation.scorers import Verdict, extract_program, score_final_number, score_program, stated_number
from lab.tasks import own
from lab.tasks.task import Example, Task

VERSION = 1  # raised when a scorer changes
Score = Callable[[Sequence[str], Sequence[Example]], list[Verdict]]


@dataclass(frozen=True)
class Metric:
    """summary: for people. tokens: how many are written by default. score: as a Task's. golds: the right answers in what a row gives as
    one; raises LabError, without naming the row, where there is none."""

    summary: str
    tokens: int
    score: Score
    golds: Callable[[str], tuple[str, ...]]


def _exact(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    return [_words(*pair, main="exact_match") for pair in zip(completions, examples, strict=True)]


def _f1(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    return [_words(*pair, main="f1") for pair in zip(completions, examples, strict=True)]


def _words(completion: str, example: Example, main: str) -> Verdict:
    """The whole answer, what it states after "the answer is", or else its first line, against the nearest target."""
    forms = dict.fromkeys([*_stated(completion)[1:], stated_answer(completion), completion.strip()])
    exact = max(exact_match(form, gold) for form in forms for gold in example.targets)
    f1 = max(token_f1(form, gold) for form in forms for gold in example.targets)
    said = max(forms, key=lambda form: max(token_f1(form, gold) for gold in example.targets))
    score, other = (exact, {"f1": f1}) if main == "exact_match" else (f1, {"exact_match": exact})
    reason = "no answer" if not completion.strip() else "right" if score == 1 else "partly right" if f1 else "wrong"
    return Verdict(reason, score, said, other)


def _number(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    pairs = zip(completions, examples, strict=True)
    return [max((score_final_number(said, gold) for gold in e.targets), key=lambda verdict: verdict.score) for said, e in pairs]


def _program(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    outcomes = run_programs([extract_program(completion) for completion in completions])
    return [
        max((score_program(said, gold, outcome) for gold in e.targets), key=lambda verdict: verdict.score or 0.0)
        for said, e, outcome in zip(completions, examples, outcomes, strict=True)
    ]


def _choice(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    rights = [said in e.targets for said, e in zip(completions, examples, strict=True)]
    return [Verdict("right" if right else "wrong", float(right), said) for said, right in zip(completions, rights, strict=True)]


def _judged(completions: Sequence[str], examples: Sequence[Example], *, judge: Judge, log: Path | None) -> list[Verdict]:
    questions = [Question(e.id, e.prompt, gold="\n".join(" ".join(gold.split()) for gold in e.targets)) for e in examples]
    points = grade_answers(questions, {"answer": list(completions)}, judge, log=log)["answer"]
    reasons = {MOST_POINTS: "right", 0.0: "wrong", None: "unscored"}
    return [
        Verdict(reasons.get(found, "partly right"), None if found is None else found / MOST_POINTS, said.strip())
        for said, found in zip(completions, points, strict=True)
    ]


def _stated(answer: str) -> tuple[str, ...]:
    """An answer as it stands, and, of a worked one, what it states after "the answer is"."""
    stating = [line for line in answer.split("\n") if "answer is" in line.lower()]
    return tuple(dict.fromkeys([answer.strip(), *map(stated_answer, stating[-1:])]))


def _stated_number(answer: str) -> tuple[str, ...]:
    found = stated_number(answer).rstrip(".,")
    if not found:
        raise LabError("holds no number")
    return (found,)


def _returned(answer: str) -> tuple[str, ...]:
    """The value itself, or, of a program, what it returns."""
    program = extract_program(answer)
    if not program:
        return _stated(answer)[:1]
    outcome = run_programs([program])[0]
    if outcome.status != "ok":
        raise LabError(f"is a program that gives no value ({outcome.status}: {outcome.message})")
    return (outcome.value,)


METRICS = {
    "exact": Metric("exact match, without case, punctuation and articles (SQuAD's)", 200, _exact, _stated),
    "f1": Metric("token F1 (SQuAD's)", 200, _f1, _stated),
    "number": Metric("the number that the answer ends in", 200, _number, _stated_number),
    "program": Metric("what the program that it writes returns, run in the sandbox", 300, _program, _returned),
    "choice": Metric("the most likely of the row's choices; nothing is written", 0, _choice, _stated),
    "judge": Metric("points of a judge: a model behind an endpoint, or the words shared with the gold answer", 200, _judged, _stated),
}  # fmt: skip


def task_of(
    name: str, metric: str, *, max_new_tokens: int | None = None, stop: Sequence[str] = (), judge: Judge | None = None,
    log: Path | None = None,
) -> Task:  # fmt: skip
    """A task of a user's own rows. judge, log: of the metric "judge" (lab.evaluation.judge)."""
    found = METRICS[metric]
    score = functools.partial(found.score, judge=judge, log=log) if metric == "judge" else found.score
    tokens = found.tokens if max_new_tokens is None or not found.tokens else max_new_tokens
    return Task(metric, VERSION, name, "", lambda *_: [], score, tokens, tuple(stop))


@dataclass(frozen=True)
class Asked:
    """A row that is asked, with its right answers. choices: () unless it is multiple choice."""

    row: own.Row
    id: str
    targets: tuple[str, ...]
    choices: tuple[str, ...]

    def example(self, tokenizer, chat: bool) -> Example:
        facts = {"id": self.id, "completion": "", "targets": self.targets}
        if not self.choices:
            return own.example(self.row, tokenizer, chat, **facts)
        return own.example(self.row, tokenizer, chat, **facts, choices=self.choices)


def read_asked(path: Path, metric: str | None) -> tuple[str, list[Asked]]:
    """(metric, the rows of a file with their right answers). metric None: choice where the first row has choices, else exact.

    The right answers are the field "answer" (text or number; of a choice also its place, from 0) or "answers" (a list, each of
    which counts), else the completion, or the assistant's last turn. Raises LabError naming file, line and field.
    """
    rows = own.rows_to_ask(path)
    metric = metric or ("choice" if "choices" in rows[0].fields else "exact")
    asked = []
    for row in rows:
        choices = _choices(row) if metric == "choice" else ()
        name, answers = _answers(row)
        if metric == "choice":
            targets = tuple(_chosen(row, name, answer, choices) for answer in answers)
        else:
            if not all(str(answer).strip() for answer in answers):
                raise LabError(f"{row.where}: the field {name!r} is empty; write the right answer.")
            try:
                targets = tuple(dict.fromkeys(gold for answer in answers for gold in METRICS[metric].golds(str(answer))))
            except LabError as problem:
                raise LabError(f"{row.where}: the field {name!r} {problem}, so the metric {metric} cannot score it.") from problem
        given = row.fields.get("id")
        number = row.where.rpartition("line ")[2]
        asked.append(Asked(row, str(given) if isinstance(given, str | int) else number, targets, choices))
    return metric, asked


def _answers(row: own.Row) -> tuple[str, list]:
    """(the field, what it holds as right answers)."""
    for name in ("answer", "answers"):
        if name in row.fields:
            value = row.fields[name]
            values = value if isinstance(value, list) else [value]
            if not values or not all(isinstance(v, str | int | float) for v in values):
                raise LabError(f"{row.where}: the field {name!r} is no text, number or list of these.")
            return name, values
    if not row.completion:
        raise LabError(f"{row.where}: the field 'answer' is missing, and so is a completion to compare with.")
    return "messages" if "messages" in row.fields else "completion", [row.completion]


def _choices(row: own.Row) -> tuple[str, ...]:
    given = row.fields.get("choices")
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(choice, str) and choice for choice in given):
        raise LabError(f"{row.where}: the field 'choices' is missing or no list of two or more texts.")
    return tuple(given)


def _chosen(row: own.Row, name: str, answer: object, choices: Sequence[str]) -> str:
    text = next((choice for choice in choices if choice.strip() == str(answer).strip()), None)
    if text is None and type(answer) is int and 0 <= answer < len(choices):
        text = choices[answer]
    if text is None:
        raise LabError(f"{row.where}: the field {name!r} ({answer!r}) is none of the row's choices, nor the place of one, from 0.")
    return text
