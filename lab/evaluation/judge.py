"""Judges: which of two answers is better, and how good is one, by a rule or by a language model behind an endpoint.

    questions = [Question("q1", "What carries the oil?", context=passage, gold="the copper pipe")]
    answers = {"CAT": ["the copper pipe"], "data-mix": ["a pump"]}      # for each question, None if there is none
    votes = judge_pairs(questions, answers, Deterministic())            # offline, the default
    judge = Endpoint("http://localhost:8000/v1", "some-model")          # any OpenAI-compatible endpoint, only if named
    votes = judge_pairs(questions, answers, judge, log="judge.jsonl")   # run it again to go on where it stopped
    ratings.elo(votes)

A judge may fail: it cannot be reached, or answers nonsense. Its verdict is then None, unscored: counted, in the log
with the reason, never a zero or a tie. An answer is given to a judge as material, but a language model can still be
talked over by what it judges: read some of the replies in the log.
"""

import functools
import itertools
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2

from lab.errors import LabError
from lab.evaluation import judge_prompts
from lab.evaluation.ratings import Vote
from lab.evaluation.reading_scores import normalise, token_f1
from lab.files import content_hash

OUTCOMES = ("first", "second", "tie")
MOST_POINTS = 2.0
_PATIENCE = 3  # requests in a row without any reply, tries included, before the rest are not asked
_LONGEST_PAUSE = 60.0  # seconds, also where the server asks for more
_LONGEST_REPLY = 1_000_000  # bytes
_BETTER = re.compile(r"^\W*better\W*(?:candidate\s*)?(1|2|tie)\b\W*$", re.IGNORECASE | re.MULTILINE)
_POINTS = re.compile(r"^\W*points[^\w.-]*(\d+(?:\.\d+)?)\s*(?:(?:/|out of)\s*2)?\W*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """id: names it in votes and records. context: the passage, "" where there is none. gold: the reference answer;
    further lines are other wordings of it.
    """

    id: str
    question: str
    context: str = ""
    gold: str = ""


@dataclass(frozen=True)
class Judgement:
    """What a judge said once.

    value: "first", "second" or "tie" of a comparison, 0 to 2 points of a grade, None when unscored. why: of an unscored
    one. reply: the judge's own words. reached: False when no reply came, so that asking on may be in vain.
    """

    value: str | float | None
    why: str = ""
    reply: str = ""
    reached: bool = True


class Judge(Protocol):
    """identity: everything a verdict depends on besides question and answers; a log's verdicts are found by it."""

    @property
    def identity(self) -> str: ...

    def compare(self, question: Question, first: str, second: str) -> Judgement:
        """Which of two answers, shown in this order, is better."""

    def grade(self, question: Question, answer: str) -> Judgement:
        """0 to 2 points for one answer."""


def judge_pairs(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str | None]],
    judge: Judge,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    log: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Vote]:
    """One vote per question and pair of methods, questions outermost; every pair is judged in both orders.

    answers: method -> one answer per question, in their order; None where the method has none. pairs: of methods; all
    by default. The vote is a tie when the two orders disagree (LMSys's rule), and unscored when either is, or an answer
    is None. Equal answers are a tie without asking. log: JSONL file to which every verdict is added, with the judge's
    words; verdicts found there are not asked for again, except unscored ones. progress: called with (verdicts known,
    verdicts needed).

    Warns once, with the reasons, when verdicts are unscored, and once of a log's damaged lines; after three requests in a row without a reply the rest are
    not asked. Raises LabError for a question without gold, a method without an answer for each question, an unknown
    method in pairs, a log that cannot be written, and an endpoint that refuses the key, the model or the address.
    """
    _check(questions, answers)
    pairs = list(itertools.combinations(answers, 2)) if pairs is None else pairs
    for name in itertools.chain.from_iterable(pairs):
        if name not in answers:
            raise LabError(f"There are no answers of {name!r} to judge; there are those of {', '.join(answers)}.")
    meetings = [(q, a, b, answers[a][i], answers[b][i]) for i, q in enumerate(questions) for a, b in pairs]
    apart = [(q, x, y) for q, _, _, x, y in meetings if None not in (x, y) and not _same(x, y)]
    asks = [(q, *order) for q, x, y in apart for order in ((x, y), (y, x))]
    verdicts = _verdicts(judge.compare, "compare", judge.identity, asks, _outcome, log, progress)
    turned = {"first": "second", "second": "first", "tie": "tie", None: None}
    votes = []
    for q, a, b, x, y in meetings:
        if None in (x, y):
            outcome = None
        elif _same(x, y):
            outcome = "tie"
        else:
            outcome, other = verdicts[q, x, y], turned[verdicts[q, y, x]]
            if outcome != other:
                outcome = None if None in (outcome, other) else "tie"
        votes.append(Vote(q.id, a, b, outcome))
    return votes


def grade_answers(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str | None]],
    judge: Judge,
    *,
    log: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float | None]]:
    """Method -> 0 to 2 points per question, None when unscored. Arguments, warning and errors as for `judge_pairs`."""
    _check(questions, answers)
    asks = [(q, texts[i]) for texts in answers.values() for i, q in enumerate(questions) if texts[i] is not None]
    points = _verdicts(judge.grade, "grade", judge.identity, asks, _points, log, progress)
    return {name: [points.get(ask) for ask in zip(questions, texts, strict=True)] for name, texts in answers.items()}


@dataclass(frozen=True)
class Deterministic:
    """The default judge: counts words, asks nobody.

    compare: the answer with the higher token F1 against the gold is better, if by `threshold` or more; else the one
    with the higher recall of the gold's words, if by `threshold` or more; else neither. So two answers that share no
    word with the gold are a tie, and length has no rule of its own: it is in F1. grade: 2 points if all of the gold's
    words are in the answer, 1 if at least half are, else 0. It cannot see that other words may say the same.
    """

    threshold: float = 0.05

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise LabError(f"threshold is {self.threshold!r}; it must be above 0 and at most 1.")

    @property
    def identity(self) -> str:
        return f"deterministic, threshold {self.threshold:g}"

    def compare(self, question: Question, first: str, second: str) -> Judgement:
        a, b = overlap(first, question.gold), overlap(second, question.gold)
        reply = f"F1 {a[0]:.3f} and {b[0]:.3f}, recall {a[1]:.3f} and {b[1]:.3f}"
        for x, y in zip(a, b, strict=True):
            if abs(x - y) >= self.threshold - 1e-12:
                return Judgement("first" if x > y else "second", reply=reply)
        return Judgement("tie", reply=reply)

    def grade(self, question: Question, answer: str) -> Judgement:
        recall = overlap(answer, question.gold)[1]
        return Judgement(2.0 if recall == 1 else float(recall >= 0.5), reply=f"recall {recall:.3f}")


def overlap(answer: str, gold: str) -> tuple[float, float]:
    """SQuAD's token F1 and the recall of the gold's words (0 where F1 is), against the wording that gives the best."""
    return max(_overlap(answer, wording) for wording in gold.split("\n") if wording.strip())


def _overlap(answer: str, wording: str) -> tuple[float, float]:
    f1, given, wanted = token_f1(answer, wording), normalise(answer).split(), normalise(wording).split()
    return f1, (Counter(given) & Counter(wanted)).total() / len(wanted) if f1 and wanted else f1


class _Unanswered(Exception):
    """A request that brought no usable reply; reached: whether the endpoint replied at all."""

    def __init__(self, why: str, reached: bool = True):
        super().__init__(why)
        self.reached = reached


@dataclass(frozen=True)
class Endpoint:
    """A language model behind an OpenAI-compatible chat completions endpoint, off unless somebody names one.

    url: such as http://localhost:8000/v1, with or without /chat/completions; without user, password and query, which
    would end in logs. model: its name there. key_variable: the environment variable that holds the key, sent as a
    bearer; no key is sent when it is unset, and it is in no log, record, message or repr. timeout: seconds for a whole
    reply. tries: of a request that brings none, 429 or 5xx; between them it waits `wait` seconds, doubling, or what
    Retry-After says, at most a minute. options: further fields of the request. Only this url is ever contacted:
    redirects are not followed, the environment's proxies not used.

    Raises LabError for a bad url or setting, and, when asked, for a key, model or address that the endpoint refuses.
    """

    url: str
    model: str
    key_variable: str = "SOUP_LAB_JUDGE_KEY"
    timeout: float = 60.0
    tries: int = 4
    wait: float = 1.0
    options: Mapping[str, object] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self):
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            url = httpx2.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise LabError(
                "The judge's url must be like http://localhost:8000/v1: http or https, without user, password, query "
                "and fragment."
            )
        if not self.model:
            raise LabError("The judge's model has no name; give the one that its endpoint knows.")
        if not (self.timeout > 0 and self.tries >= 1 and self.wait >= 0):
            raise LabError(
                f"timeout {self.timeout!r}, tries {self.tries!r} and wait {self.wait!r} of the judge must be above 0, "
                "at least 1 and at least 0."
            )
        if taken := {"model", "messages", "stream", "n"} & set(self.options):
            raise LabError(f"The judge's options may not set {', '.join(sorted(taken))}.")

    @property
    def identity(self) -> str:
        return f"{self.model} at {self.url}, options {json.dumps(dict(self.options), sort_keys=True)}"

    def compare(self, question: Question, first: str, second: str) -> Judgement:
        return self._judge(judge_prompts.COMPARE, _read_better, question, first=first, second=second)

    def grade(self, question: Question, answer: str) -> Judgement:
        return self._judge(judge_prompts.GRADE, _read_points, question, answer=answer)

    def make_questions(self, context: str, n: int) -> list[Question]:
        """n questions on a passage, each with its gold answer. Raises LabError for an empty passage or an unusable
        reply.
        """
        if not context.strip() or n < 1:
            raise LabError("Questions are made from a passage that is not empty, and at least one of them.")
        try:
            reply = self.chat(judge_prompts.MAKE.format(context=context, n=n))
        except _Unanswered as problem:
            raise LabError(f"The judge {self.model} at {self.url} made no questions: {problem}.") from problem
        made = _read_questions(reply)
        if len(made) < n:
            raise LabError(
                f"The judge {self.model} at {self.url} made {len(made)} usable questions of {n}, its reply beginning "
                f"{reply[:60]!r}; ask for fewer or try another model."
            )
        name = content_hash(context)[:8]
        return [Question(f"{name}-{i}", text, context, gold) for i, (text, gold) in enumerate(list(made.items())[:n])]

    def chat(self, prompt: str) -> str:
        """The model's reply to one message, without its thinking aloud. Raises _Unanswered, or LabError as the class
        says.
        """
        key, why = self._key(), ""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.options}
        for number in range(self.tries):
            pause = self.wait * 2**number
            try:
                status, asked, content = self._post(body, key)
            except httpx2.TimeoutException:
                why = f"no reply within {self.timeout:g} s"
            except (httpx2.HTTPError, OSError) as problem:
                why = f"it could not be reached ({self._blot(str(problem) or type(problem).__name__, key)})"
            else:
                text = self._blot(content.decode(errors="replace"), key)
                if status == 200:
                    return _read_reply(text)
                why = f"it replied {status}" + (f" ({text[:200]!r})" if text.strip() else "")
                if status in (401, 403, 404) or 300 <= status < 400:
                    raise LabError(
                        f"The judge {self.model} at {self.url} cannot be used: {why}; check url, model and the key in "
                        f"the environment variable {self.key_variable}."
                    )
                if status != 429 and status < 500:
                    raise _Unanswered(why)
                pause = max(pause, asked)
            if number + 1 < self.tries:
                time.sleep(min(pause, _LONGEST_PAUSE))
        raise _Unanswered(f"{why}, {self.tries} tries", reached=False)

    def _judge(self, template: str, read: Callable[[str], object], question: Question, **parts: str) -> Judgement:
        context = question.context or "(none: judge by the reference)"
        try:
            reply = self.chat(template.format(context=context, question=question.question, gold=question.gold, **parts))
        except _Unanswered as problem:
            return Judgement(None, str(problem), reached=problem.reached)
        value = read(reply)
        return Judgement(value, "" if value is not None else "its reply holds no verdict", reply)

    def _post(self, body: Mapping, key: str) -> tuple[int, float, bytes]:
        """Status, seconds to wait that the server asks for, and the body, cut at a megabyte."""
        address = self.url.rstrip("/")
        address += "" if address.endswith("/chat/completions") else "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        ends, content = time.monotonic() + self.timeout, b""
        with self._client.stream("POST", address, content=json.dumps(body), headers=headers) as response:
            for piece in response.iter_raw():
                content += piece
                if time.monotonic() > ends:  # the client's own limit is for each piece
                    raise httpx2.ReadTimeout("too slow")
                if len(content) > _LONGEST_REPLY:
                    break
            asked = response.headers.get("Retry-After", "")
            return response.status_code, float(asked) if asked.isdecimal() else 0.0, content[:_LONGEST_REPLY]

    @functools.cached_property
    def _client(self) -> httpx2.Client:
        return httpx2.Client(timeout=self.timeout, trust_env=False, follow_redirects=False)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]*", key):  # the client would quote it in its error
            raise LabError(
                f"The key in the environment variable {self.key_variable} cannot be sent; it may hold only ASCII "
                "characters without spaces."
            )
        return key

    @staticmethod
    def _blot(text: str, key: str) -> str:
        return text.replace(key, "[key]") if key else text


def _read_reply(text: str) -> str:
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        content = None
    if not isinstance(content, str):
        raise _Unanswered("it sent no chat completion")
    return content.rpartition("</think>")[2].strip()


def _read_better(reply: str) -> str | None:
    found = {match.lower() for match in _BETTER.findall(reply)}
    return {"1": "first", "2": "second", "tie": "tie"}[found.pop()] if len(found) == 1 else None


def _read_points(reply: str) -> float | None:
    found = {float(match) for match in _POINTS.findall(reply)}
    return _points(found.pop()) if len(found) == 1 else None


def _read_questions(reply: str) -> dict[str, str]:
    """Question -> answer of the JSON list in a reply; what is no pair of texts is left out."""
    try:
        rows = json.JSONDecoder().raw_decode(reply, reply.index("["))[0]
    except (ValueError, RecursionError):
        return {}
    pairs = [(row.get("question"), row.get("answer")) for row in rows if isinstance(row, dict)]
    texts = [(q.strip(), a.strip()) for q, a in pairs if isinstance(q, str) and isinstance(a, str)]
    return {question: answer for question, answer in texts if question and answer}


def _outcome(value: object) -> str | None:
    return value if isinstance(value, str) and value in OUTCOMES else None


def _points(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= MOST_POINTS else None


def _same(a: str, b: str) -> bool:
    return a.strip() == b.strip()


def _check(questions: Sequence[Question], answers: Mapping[str, Sequence[str | None]]) -> None:
    for question in questions:
        if not question.gold.strip():
            raise LabError(f"Question {question.id!r} has no gold answer to judge by; give it one or leave it out.")
    for name, times in Counter(question.id for question in questions).items():
        if times > 1:
            raise LabError(f"{times} questions are called {name!r}; give each an id of its own.")
    for name, texts in answers.items():
        if len(texts) != len(questions):
            raise LabError(f"{name!r} has {len(texts)} answers to {len(questions)} questions; give each one, or None.")


def _verdicts(
    ask: Callable[..., Judgement],
    kind: str,
    identity: str,
    asks: Sequence[tuple],
    valid: Callable[[object], str | float | None],
    log: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> dict[Hashable, str | float | None]:
    """(question, answers...) -> value, each asked once, or taken from the log; None when unscored."""
    template = content_hash(judge_prompts.COMPARE if kind == "compare" else judge_prompts.GRADE)
    needed = list(dict.fromkeys(asks))
    keys = [content_hash(identity, template, kind, asdict(question) | {"id": ""}, texts) for question, *texts in needed]
    logged, damaged = _read_log(log)
    if damaged:
        warnings.warn(f"Damaged or foreign in {log}, and left out: line {', '.join(map(str, damaged))}.", stacklevel=3)
    known = {key: value for key, said in logged if (value := valid(said)) is not None}
    found, reasons, silent = {}, Counter(), 0
    for done, (what, key) in enumerate(zip(needed, keys, strict=True)):
        if progress is not None:
            progress(done, len(needed))
        if key in known:
            found[what] = known[key]
            continue
        if silent < _PATIENCE:
            said = ask(*what)
            silent = 0 if said.reached else silent + 1
            why = said.why
            _write_log(log, key, identity, kind, what, said)
        else:
            said = Judgement(None)
            why = f"not asked, after {_PATIENCE} requests in a row without a reply"
        found[what] = said.value
        if said.value is None:
            reasons[why] += 1
    if progress is not None:
        progress(len(needed), len(needed))
    if reasons:
        listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(3))
        count = f"{reasons.total()} of {len(needed)} verdicts of {identity}"
        warnings.warn(f"{count} are unscored: {listed}.", stacklevel=3)
    return found


def _read_log(log: str | Path | None) -> tuple[list[tuple[str, object]], list[int]]:
    """(key, value) of a log's lines, and the numbers of those that are damaged or foreign."""
    text = Path(log).read_text(encoding="utf-8", errors="replace") if log is not None and Path(log).is_file() else ""
    found, damaged = [], []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):  # splitlines would part answers too
        try:
            row = json.loads(line)
            found.append((str(row["key"]), row["value"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            damaged.append(number)
    return found, damaged


def _write_log(log: str | Path | None, key: str, identity: str, kind: str, what: tuple, said: Judgement) -> None:
    if log is None:
        return
    question, *texts = what
    row = {"key": key, "judge": identity, "kind": kind, "question": question.id, "answers": texts}
    row |= {"value": said.value, "why": said.why, "reply": said.reply}
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # an interrupted run's last line is its own
                    file.write(b"\n")
            file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    except OSError as error:
        raise LabError(f"Could not write the judge's log {log}: {error.strerror}; name another file.") from error
