"""From a completion to a verdict: whether its program returns the answer, or its worked solution ends in
it.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lab.errors import LabError
from lab.evaluation.sandbox import Limits, Outcome, run_programs

ABSOLUTE_TOLERANCE = 1e-3  # the paper's, from PAL: |value - answer| < 1e-3
RELATIVE_TOLERANCE = (
    1e-6  # |value - answer| <= 1e-6 max(1, |answer|): large answers may differ in the last digits of a float
)

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_MARKER = re.compile(r"the answer is|####", re.IGNORECASE)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SOLUTION = re.compile(r"def\s+solution\s*\(")


@dataclass(frozen=True)
class Verdict:
    """One scored completion.

    reason: 'no code' | 'syntax error' | 'raised' | 'timed out' | 'wrong' | 'right' | 'unscored'.
    score: 1.0 right, 0.0 otherwise, None when unscored (sandbox or judge failed): never counted as zero.
    extracted: the answer that was compared, as text; "" if there was none.
    extras: other metrics of the same completion. Empty when unscored.
    """

    reason: str
    score: float | None
    extracted: str
    extras: Mapping[str, float] = field(default_factory=dict)


def extract_program(completion: str) -> str:
    """The program in a completion: the first one that defines solution(), or "".

    Looks inside ``` fences first. Keeps the imports, functions, classes and assignments directly around
    solution(), drops chatter, calls and any second solution(). What is inside solution() stays as it is,
    errors included.
    """
    fenced = [block for block in _FENCE.findall(completion) if _SOLUTION.search(block)]
    blocks = _top_level_blocks(fenced[0] if fenced else completion)
    first = next((i for i, block in enumerate(blocks) if _SOLUTION.match(block)), None)
    if first is None:
        return ""
    start = end = first
    while start > 0 and _belongs(blocks[start - 1]):
        start -= 1
    while end + 1 < len(blocks) and _belongs(blocks[end + 1]) and not _SOLUTION.match(blocks[end + 1]):
        end += 1
    return "\n".join(blocks[start : end + 1]).rstrip() + "\n"


def _top_level_blocks(text: str) -> list[str]:
    """Lines grouped under the unindented one above; multi-line strings and brackets stay whole."""
    blocks: list[list[str]] = []
    for line in text.lstrip().split("\n"):
        starts = line[:1].strip() != "" and line[0] not in ")]}"
        if not blocks or (starts and not _inside_string("\n".join(blocks[-1]))):
            blocks.append([line])
        else:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks]


def _inside_string(block: str) -> bool:
    return block.count('"""') % 2 == 1 or block.count("'''") % 2 == 1


def _belongs(block: str) -> bool:
    """Whether a block beside solution() is code that it may need."""
    try:
        statements = ast.parse(block).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A decorator is a block of its own only when its function follows on the next line.
        return block.startswith("@") and "\n" not in block.strip()
    wanted = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return all(isinstance(statement, wanted) for statement in statements)


def score_program(completion: str, answer: str, outcome: Outcome) -> Verdict:
    """Compare what the completion's program returned with the answer.

    The answer is text; numbers and other Python literals are their repr.

    Numbers: the score uses the paper's absolute tolerance; a string that reads as a number counts as one (as
    in PAL), a boolean does not. Extras: 'relative', the same with a relative tolerance; 'last_number',
    whether the last number in the completion's text is the answer, which is how the paper's released code
    scores. Other answers: equal literals, lists and tuples alike.
    """
    if outcome.status == "unscored":
        return Verdict("unscored", None, "")
    gold = _literal(answer)
    returned = outcome.status == "ok"
    value = _literal(outcome.value) if returned else None
    right = returned and _same(value, gold, _absolutely_close)
    extras = {}
    if _as_number(gold) is not None:
        extras["relative"] = float(returned and _same(value, gold, _relatively_close))
        extras["last_number"] = float(_last_number_is(completion, gold))
    reason = ("right" if right else "wrong") if returned else outcome.status
    return Verdict(reason, float(right), outcome.value if returned else "", extras)


def score_programs(
    completions: Sequence[str],
    answers: Sequence[str],
    *,
    limits: Limits = Limits(),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Extract, run and score every completion; arguments after `answers` as for sandbox.run_programs.

    Raises LabError when there are not as many answers as completions.
    """
    if len(completions) != len(answers):
        raise LabError(
            f"There are {len(completions)} completions but {len(answers)} answers; give one answer for each."
        )
    programs = [extract_program(completion) for completion in completions]
    outcomes = run_programs(programs, limits=limits, workers=workers, progress=progress)
    return [score_program(*row) for row in zip(completions, answers, outcomes, strict=True)]


def score_final_number(completion: str, answer: str) -> Verdict:
    """Score a worked solution in words by its final number, absolute tolerance 1e-3; extras: 'relative'.

    The number is the first one after the first "The answer is" or "####" on the same line, else the last one
    in the text. Raises LabError when the answer is not a number.
    """
    gold = _as_number(_literal(answer.replace(",", "")))
    if gold is None:
        raise LabError(
            f"The answer {answer!r} is not a number; worked solutions are scored by their final number."
        )
    marker = _MARKER.search(completion)
    marked = _NUMBER.findall(completion[marker.end() :].split("\n", 1)[0]) if marker else []
    found = marked[:1] or _NUMBER.findall(completion)[-1:]
    if not found:
        return Verdict("wrong", 0.0, "", {"relative": 0.0})
    value = float(found[0].replace(",", ""))
    right = _absolutely_close(value, gold)
    return Verdict(
        "right" if right else "wrong",
        float(right),
        found[0],
        {"relative": float(_relatively_close(value, gold))},
    )


def _literal(text: str) -> object:
    """The Python value that a text stands for; the stripped text itself where it stands for none."""
    text = text.strip()
    try:
        return float(text) if text.lower().lstrip("+-") in ("nan", "inf") else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _as_number(value: object) -> float | int | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _absolutely_close(value: float | int, answer: float | int) -> bool:
    return value == answer or _distance(value, answer) < ABSOLUTE_TOLERANCE


def _relatively_close(value: float | int, answer: float | int) -> bool:
    return value == answer or _distance(value, answer) <= RELATIVE_TOLERANCE * max(1, abs(answer))


def _distance(value: float | int, answer: float | int) -> float:
    try:
        return abs(value - answer)
    except OverflowError:  # an integer beyond the range of floats
        return float("inf")


def _same(value: object, answer: object, close: Callable[[float | int, float | int], bool]) -> bool:
    """Equality of literals, with `close` for the numbers in them."""
    if isinstance(answer, bool) or isinstance(value, bool):
        return value is answer
    numbers = _as_number(value), _as_number(answer)
    if None not in numbers:
        return close(*numbers)
    if isinstance(answer, str) and isinstance(value, str):
        return value.strip() == answer.strip()
    if isinstance(answer, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(value) == len(answer) and all(
            _same(v, a, close) for v, a in zip(value, answer, strict=True)
        )
    if isinstance(answer, dict) and isinstance(value, dict):
        return value.keys() == answer.keys() and all(_same(value[key], answer[key], close) for key in answer)
    return value == answer


def _last_number_is(text: str, answer: object) -> bool:
    """The released code's rule: commas removed, `-?\\d+\\.?\\d*`, the last match, within 1e-3."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return bool(numbers) and abs(float(numbers[-1]) - float(_as_number(answer))) <= ABSOLUTE_TOLERANCE
