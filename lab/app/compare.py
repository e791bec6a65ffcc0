"""Side by side: the same questions to several columns, streamed together, judged and compared."""

import difflib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from lab.app import html
from lab.app.engine import Engine, Lane
from lab.app.memory import give_back
from lab.app.session import Part, Session
from lab.app.showcase import Showcase
from lab.app.streaming import Answer, Decoding, stream
from lab.errors import LabError
from lab.evaluation.scorers import Verdict
from lab.experiments.presets import Preset
from lab.tasks import Example, Task, prompts

ROWS = 32  # of one batch
AS_TYPED = "as typed"
CHAT = "chat template of the base"
LETTERS = "ABCDEFGHIJKL"  # of blind answers
COLUMNS = len(LETTERS)
QUESTIONS = 500


@dataclass(frozen=True)
class Question:
    """prompt: what the model reads. gold: the answer, "" when unknown. program: an answer must be a program. task, example: where
    it comes from; None for what a visitor typed. stop: where an answer ends."""

    prompt: str
    gold: str = ""
    program: bool = False
    task: Task | None = None
    example: Example | None = None
    stop: tuple[str, ...] = Decoding.stop


Judge = Callable[[Sequence[tuple[Question, str]]], Sequence[tuple[Verdict | None, str]]]


@dataclass
class Comparison:
    """answers, verdicts, values: [question][column]. order: of the columns as shown. players: their names in votes. stale: what was
    asked has been edited since. recipes: of the columns as they were asked. seed: of the decoding."""

    columns: tuple[str, ...]
    players: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: list[list[Answer]]
    verdicts: list[list[Verdict | None]]
    values: list[list[str]]
    order: tuple[int, ...]
    blind: bool = False
    voted: str | None = None
    note: str = ""
    done: bool = False
    stale: bool = False
    recipes: tuple[Mapping[str, object], ...] = ()
    seed: int = 0
    asked: int = field(default=0)  # questions begun

    @property
    def ballot(self) -> dict[str, list[int]]:
        """What a blind vote chooses from: its label -> the columns that gave this answer, in the order shown."""
        same: dict[str, list[int]] = {}
        for at, column in enumerate(self.order):
            same.setdefault(self.answers[0][column].text.strip(), []).append(at)
        labels = ["Answer " + " = ".join(LETTERS[at] for at in places) for places in same.values()]
        return {label: [self.order[at] for at in places] for label, places in zip(labels, same.values(), strict=True)}


def shapes(showcase: Showcase, tokenizer) -> list[str]:
    """In what a text can be put to the model."""
    return [*showcase.shapes, AS_TYPED, *([CHAT] if tokenizer.chat_template else [])]


def wrap(showcase: Showcase, text: str, shape: str, tokenizer, chat: bool = False) -> str:
    """The prompt that the model reads. chat: the preset's; a task's prompt then stands in the chat template, as in training."""
    if not text.strip():
        raise LabError("The prompt is empty; write something.")
    if shape == CHAT:
        return prompts.chat(tokenizer, text)
    if shape == AS_TYPED:
        return text
    if shape not in showcase.shapes:
        raise LabError(f"There is no template {shape!r}; choose {', '.join(shapes(showcase, tokenizer))}.")
    prompt = showcase.tasks[showcase.shapes[shape]].template.replace("{text}", text)
    return prompts.chat(tokenizer, prompt) if chat else prompt


def of_example(task: Task, example: Example) -> Question:
    return Question(example.prompt, " or ".join(example.targets), task.template == prompts.CODE, task, example, task.stop)


def task_questions(showcase: Showcase, name: str, preset: Preset, count: int, first: int = 0) -> list[Question]:
    """Test problems of a task, from number `first`. Raises LabError."""
    if name not in showcase.tasks:
        raise LabError(f"There is no task {name!r}; choose {', '.join(showcase.tasks)}.")
    if not (1 <= count <= QUESTIONS and first >= 0):
        raise LabError(f"Ask 1 to {QUESTIONS} problems, from number 0 on.")
    task = showcase.tasks[name]
    found = task.load(preset.source(task.folder), "test", first + count, 0)[first:]
    if not found:
        raise LabError(f"{name} has fewer than {first + 1} test problems.")
    return [of_example(task, example) for example in found]


def compare(
    engine: Engine,
    session: Session,
    questions: Sequence[Question],
    columns: Sequence[str],
    decoding: Decoding,
    *,
    judge: Judge | None = None,
    blind: bool = False,
) -> Iterator[Comparison]:
    """Yield the comparison as it grows. It ends early, keeping what there is, when session.stop is set.

    judge: gives (verdict, value to show) for pairs of question and answer; None: nothing is judged.
    """
    columns = tuple(dict.fromkeys(columns))
    if not columns:
        raise LabError("Choose at least one column.")
    if len(columns) > COLUMNS:
        raise LabError(f"Choose at most {COLUMNS} columns.")
    if not questions:
        raise LabError("There is no question.")
    parts = session.parts(columns)
    lanes = [engine.lane(part.adapters, part.routing) for part in parts]
    session.stop.clear()
    n, k = len(questions), len(columns)
    order = tuple(random.sample(range(k), k)) if blind else tuple(range(k))
    state = Comparison(
        columns,
        tuple(session.player(c) for c in columns),
        tuple(questions),
        [[Answer()] * k for _ in range(n)],
        [[None] * k for _ in range(n)],
        [[""] * k for _ in range(n)],
        order,
        blind,
        recipes=tuple(session.recipe(c) for c in columns),
        seed=decoding.seed,
    )
    session.run = state
    try:
        yield from _grow(engine, session, state, parts, lanes, decoding, judge)
    finally:
        give_back()


def _grow(
    engine: Engine,
    session: Session,
    state: Comparison,
    parts: Sequence[Part],
    lanes: Sequence[Lane],
    decoding: Decoding,
    judge: Judge | None,
) -> Iterator[Comparison]:
    n, k, questions = len(state.questions), len(state.columns), state.questions
    step = max(1, ROWS // k)
    for start in range(0, n, step):
        chunk = range(start, min(start + step, n))
        state.asked = chunk[-1] + 1
        for part, answers in _together(engine, parts, lanes, [questions[i].prompt for i in chunk], decoding, session):
            for place, answer in enumerate(answers):
                state.answers[chunk[place // len(part.places)]][part.places[place % len(part.places)]] = answer
            yield state
        if session.stop.is_set():
            state.note = "stopped"
            break
        if judge is not None:
            places = [(i, c) for i in chunk for c in range(k)]
            found = judge([(questions[i], state.answers[i][c].text) for i, c in places])
            for (i, c), (verdict, value) in zip(places, found, strict=True):
                state.verdicts[i][c], state.values[i][c] = verdict, value
            yield state
    state.done = True
    yield state


def _together(
    engine: Engine,
    parts: Sequence[Part],
    lanes: Sequence[Lane],
    prompts: Sequence[str],
    decoding: Decoding,
    session: Session,
) -> Iterator[tuple[Part, list[Answer]]]:
    """The parts' answers (prompt by prompt, each with all columns of the part) as they grow, turn by turn."""
    growing = []
    for part, lane in zip(parts, lanes, strict=True):
        batch = [prompt for prompt in prompts for _ in part.places]
        rows = part.rows.repeat(len(prompts), 1, 1)
        growing.append((part, stream(engine, lane, batch, rows, decoding, session.stop.is_set)))
    while growing:
        for entry in list(growing):
            part, answers = entry[0], next(entry[1], None)
            if answers is None:
                growing.remove(entry)
            else:
                yield part, answers


# How it is shown

_MARKS = {"right": "good", "ran": "good", "unscored": "dim"}


def show(state: Comparison, against: str = "") -> str:
    """HTML of the comparison so far. against: a column whose text the others' differences are marked from."""
    hidden = state.blind and state.voted is None
    names = {c: (f"Answer {LETTERS[at]}" if hidden else state.columns[c]) for at, c in enumerate(state.order)}
    if hidden:
        against = ""
        if state.done:  # the same answer is shown once
            names = {columns[0]: label for label, columns in state.ballot.items()}
    parts = [html.dim("These answers are to what stood here before it was edited; ask again.")] if state.stale else []
    if len(state.questions) > 1:
        parts.append(_summary(state, names))
    for i in range(min(state.asked, len(state.questions))):
        cards = "".join(_card(state, i, c, names[c], against, hidden) for c in names)
        body = f'<div class="answers">{cards}</div>'
        if len(state.questions) == 1:
            parts.append(body)
        else:
            question = state.questions[i]
            gold = f' <span class="dim">gold {escape(question.gold)}</span>' if question.gold else ""
            marks = "".join(_dot(state.verdicts[i][c], names[c]) for c in names)
            parts.append(
                f'<details class="question"><summary><span class="marks">{marks}</span> '
                f"{escape(_first_line(question.prompt))}</summary>"
                f'<pre class="prompt">{escape(question.prompt)}</pre>{gold}{body}</details>'
            )
    if state.note:
        parts.append(html.dim(state.note))
    return "".join(parts)


def _first_line(prompt: str) -> str:
    line = prompt.strip().removeprefix("Question: ").splitlines()[0]
    return line if len(line) < 120 else line[:117] + "…"


def _summary(state: Comparison, names: dict[int, str]) -> str:
    rows = []
    for c in state.order:
        verdicts = [v[c] for v in state.verdicts if v[c] is not None]
        scores = [v.score for v in verdicts if v.score is not None]
        ran = sum(v.reason in ("right", "wrong", "ran") for v in verdicts)
        right = f"{sum(scores):.0f} of {len(scores)} ({100 * sum(scores) / len(scores):.0f} %)" if scores else "–"
        rows.append((names[c], [right, str(ran), str(sum(a[c].tokens for a in state.answers))]))
    done = sum(all(a.done for a in answers) for answers in state.answers)
    return html.table(["right", "ran", "tokens"], rows, f"{done} of {len(state.questions)} questions answered")


def _dot(verdict: Verdict | None, name: str) -> str:
    mark = "dim" if verdict is None or verdict.score is None else "good" if verdict.score else "bad"
    told = "not judged" if verdict is None else verdict.reason
    return html.dot(mark, f"{name}: {told}")


def _card(state: Comparison, i: int, c: int, name: str, against: str, hidden: bool) -> str:
    answer, verdict, value, question = state.answers[i][c], state.verdicts[i][c], state.values[i][c], state.questions[i]
    text = escape(answer.text)
    if against in state.columns and state.columns[c] != against:
        text = differences(state.answers[i][state.columns.index(against)].text, answer.text)
    speed = f"{answer.tokens} tokens · {answer.speed:.0f}/s" if answer.tokens else "waiting"
    foot = ""
    if hidden or state.stale:  # a verdict would decide the vote, or speak of another question
        pass
    elif verdict is not None:
        mark = _MARKS.get(verdict.reason, "bad")
        shown = f" <code>{escape(value[:300])}</code>" if value else ""
        gold = (
            f' <span class="dim">gold {escape(question.gold[:80])}</span>'
            if question.gold and verdict.score == 0
            else ""
        )
        foot = f'<footer><span class="verdict {mark}">{html.SIGNS[mark]} {escape(verdict.reason)}</span>{shown}{gold}</footer>'
    elif answer.done and not state.done:
        foot = '<footer class="dim">…</footer>'
    caret = "" if answer.done else '<i class="caret"></i>'
    column = "" if hidden else state.columns[c]
    return (
        f'<article data-column="{escape(column)}">'
        f'<header><b>{escape(name)}</b><span class="dim">{speed}</span></header>'
        f"<pre>{text}{caret}</pre>{foot}</article>"
    )


def differences(reference: str, text: str) -> str:
    """HTML of `text`: what the reference does not have is marked, what only the reference has is struck out."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", t) for t in (reference, text))
    parts = []
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        old, new = escape("".join(a[a0:a1])), escape("".join(b[b0:b1]))
        if kind == "equal":
            parts.append(new)
            continue
        if old.strip():
            parts.append(f"<del>{old}</del>")
        parts.append(f"<mark>{new}</mark>" if new.strip() else new)
    return "".join(parts)
