"""From a completion to a verdict: whether its program returns the answer, or its worked solution ends in
it.
"""

import ast
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

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
# What Python's parser reads of one completion, in characters: at 2 µs each under 0.1 s in all. A field of an f-string takes it as
# long as 20 characters do, and so does beginning.
_READ = 40_000
_DIGITS = 10_000  # of a whole number: reading it takes their square, and no program's value has more characters
_INTEGER = re.compile(r"[+-]?\d+(?:_\d+)*", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", re.ASCII)
_ESCAPE = re.compile(r"\\([4-7][0-7]{2}|.)", re.DOTALL)
_KNOWN_ESCAPES = frozenset("\\'\"abfnrtvxuUN01234567\r\n")
_GLUED = re.compile(r"\b(\d\w*?)(?=and|else|for|if|in|is|not|or)")  # a number and a keyword without a space between
_STRING = re.compile(r"""\\.|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """One scored completion.

    reason: 'wrong' | 'right', or the status of a program that gave no value, see sandbox.Outcome.
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
    reader = _Reader()
    blocks = _top_level_blocks(fenced[0] if fenced else completion, reader)
    first = next((i for i, block in enumerate(blocks) if _SOLUTION.match(block)), None)
    if first is None:
        return ""
    start, end = first, first
    while start > 0 and _belongs(blocks[start - 1], reader):
        start -= 1
    while end + 1 < len(blocks) and not _SOLUTION.match(blocks[end + 1]) and _belongs(blocks[end + 1], reader):
        end += 1
    return "\n".join(blocks[start : end + 1]).rstrip() + "\n"


def _top_level_blocks(text: str, reader: "_Reader") -> list[str]:
    """Lines grouped under the unindented one above; multi-line strings and brackets stay whole, and a comment at the
    margin parts no block that goes on below it.
    """
    blocks: list[list[str]] = []
    quotes, inside = [0, 0], False  # of triple quotes of either kind in the block so far; whether one is open
    for line in text.lstrip().split("\n"):
        starts = line[:1].strip() != "" and line[0] not in ")]}"
        if not blocks or (starts and not inside):
            blocks.append([])
            quotes = [0, 0]
        blocks[-1].append(line)
        quotes = [quotes[0] + line.count('"""'), quotes[1] + line.count("'''")]
        inside = quotes[0] % 2 == 1 or quotes[1] % 2 == 1
    parts = ["\n".join(block) for block in blocks]
    whole, end = [], 0
    while (start := end) < len(parts):
        end = start + 1
        while end < len(parts) and parts[end].startswith("#"):
            end += 1
        goes_on = any("\n" in comment.strip() for comment in parts[start + 1 : end])
        together = "\n".join(parts[start:end])
        whole += [together] if goes_on and reader.statements(together) is not None else parts[start:end]
    return whole


class _Reader:
    """Reads the parts of one completion, up to _READ of it."""

    def __init__(self):
        self.left = _READ

    def statements(self, text: str) -> list[ast.stmt] | None:
        """As `_statements`; None too when that would be too much."""
        cost = len(text) + 20 * (1 + text.count("{"))
        if cost > self.left:
            return None
        self.left -= cost
        return _statements(text)


def _statements(text: str) -> list[ast.stmt] | None:
    """The statements of a text; None where it is no Python.

    Never warns: what Python would warn of is written differently first, since a filter of warnings is every thread's.
    """
    try:
        return ast.parse(_GLUED.sub(r"\1 ", _known_escapes(text))).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _known_escapes(text: str) -> str:
    """The same program or literal (except raw strings and bytes) without escapes that Python would warn of."""

    def known(match: re.Match) -> str:
        if len(match[1]) == 3:  # octal, beyond a byte
            return f"\\u{int(match[1], 8):04x}"
        return match[0] if match[1] in _KNOWN_ESCAPES else "\\" + match[0]

    return _ESCAPE.sub(known, text)


def _belongs(block: str, reader: _Reader) -> bool:
    """Whether a block beside solution() is code that it may need."""
    if block.startswith("@") and "\n" not in block.strip():
        return True  # a decorator is a block of its own when its function follows on the next line
    wanted = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    statements = reader.statements(block)
    return statements is not None and all(isinstance(statement, wanted) for statement in statements)


def score_program(completion: str, answer: str, outcome: Outcome) -> Verdict:
    """Compare what the completion's program returned with the answer.

    The answer is text; numbers and other Python literals are their repr, and 1,080 is a number.

    Numbers: the score uses the paper's absolute tolerance, in floats where the answer is one and exactly where it is an
    integer; a string that reads as a number counts as one (as in PAL), a boolean or complex number does not. Extras:
    'relative', the same with a relative tolerance; 'last_number', whether the last number in the completion's text is the
    answer, which is how the paper's released code
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
    found = stated_number(completion)
    if not found:
        return Verdict("wrong", 0.0, "", {"relative": 0.0})
    value = _number(found.replace(",", ""))
    right = value is not None and _absolutely_close(value, gold)
    return Verdict(
        "right" if right else "wrong",
        float(right),
        found,
        {"relative": float(value is not None and _relatively_close(value, gold))},
    )


def stated_number(text: str) -> str:
    """The number that a worked solution ends in, as it is written; "" where there is none. See score_final_number."""
    marker = _MARKER.search(text)
    marked = _NUMBER.findall(text[marker.end() :].split("\n", 1)[0]) if marker else []
    return next(iter(marked[:1] or _NUMBER.findall(text)[-1:]), "")


def _literal(text: str) -> object:
    """The number or other Python value that a text stands for; the stripped text itself where it stands for none."""
    text = text.strip()
    number = _number(text)
    if number is not None or _GLUED.search(_STRING.sub("", text)):
        return text if number is None else number
    try:
        value = ast.literal_eval(_known_escapes(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return text if value in (math.inf, -math.inf) else value  # 1e999: what float() made of it is not what it says


def _number(text: str) -> int | float | None:
    """A number as a person reads it: 1,080 too, and whole numbers exactly; None for what is none, or beyond all bounds."""
    text = text.strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if _INTEGER.fullmatch(text):
        if len(text) > _DIGITS:
            return None
        return int(text) if len(text) < 4000 else int(Decimal(text))  # int() reads up to 4300 digits
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isinf(number) and "inf" not in text.lower() else number


def _as_number(value: object) -> float | int | None:
    if isinstance(value, str):
        return _number(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _absolutely_close(value: float | int, answer: float | int) -> bool:
    return value == answer or _distance(value, answer) < ABSOLUTE_TOLERANCE


def _relatively_close(value: float | int, answer: float | int) -> bool:
    if value == answer:
        return True
    try:
        return _distance(value, answer) <= RELATIVE_TOLERANCE * max(1, abs(answer))
    except OverflowError:  # an integer beyond the range of floats
        return _distance(value, answer) <= Fraction(RELATIVE_TOLERANCE) * abs(answer)


def _distance(value: float | int, answer: float | int) -> float | int | Fraction:
    """|value - answer|: exactly for an integer answer; a float answer is known no better than floats are."""
    if isinstance(answer, float):
        return abs(_float(value) - answer)
    if isinstance(value, float):
        return abs(Fraction(value) - answer) if math.isfinite(value) else math.inf
    return abs(value - answer)


def _float(number: float | int) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number > 0 or -1)


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
    if type(value) is not type(answer):  # Python holds 42+0j and 42 for equal
        return False
    if isinstance(answer, (dict, set)) and _kinds(value) != _kinds(answer):
        return False
    if isinstance(answer, dict):
        return all(_same(value[key], answer[key], close) for key in answer)
    return value == answer


def _kinds(items: Collection) -> set[tuple[bool, object]]:
    """Keys or members, in which True is not 1 and 1+0j is not 1."""
    return {(isinstance(item, (bool, complex)), item) for item in items}


def _last_number_is(text: str, answer: object) -> bool:
    """The released code's rule: commas removed, `-?\\d+\\.?\\d*`, the last match, within 1e-3 as floats."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    number, gold = _number(numbers[-1]) if numbers else None, _as_number(answer)
    return number is not None and (number == gold or abs(_float(number) - _float(gold)) <= ABSOLUTE_TOLERANCE)
