"""Completions to verdicts; the oracle is GSM-Hard's own reference programs."""

import ast
import json
import time
import warnings
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.evaluation import scorers
from lab.evaluation.sandbox import Outcome, isolation_level
from lab.evaluation.scorers import extract_program, score_final_number, score_program, score_programs

GSM_HARD = Path(__file__).parents[3] / "shared" / "data" / "gsm_hard" / "gsmhardv2_first660.jsonl"

PROGRAM = "def solution():\n    x = 2\n\n    return x\n"
DOCSTRING = 'def solution():\n    """A question\nat the margin?"""\n    return 2\n'
HELPER = "import math\n\nSIZES = [\n    1,\n]\n\n@staticmethod\ndef helper(n):\n    return n\n\n"


@pytest.mark.parametrize(
    "completion, program",
    [
        (PROGRAM, PROGRAM),
        (" \n " + PROGRAM, PROGRAM),
        (PROGRAM.replace("\n", "\r\n"), PROGRAM.replace("\n", "\r\n").rstrip() + "\n"),
        ("Sure, from here:\n```python\n" + PROGRAM + "```\nIt returns 2.\n", PROGRAM),
        ("```\n" + PROGRAM, PROGRAM),
        ("```python\nprint(1)\n```\n```python\n" + PROGRAM + "```", PROGRAM),
        ("Let us see.\n" + PROGRAM + "\n\nQ: And now?\n\ndef solution():\n    return 3\n", PROGRAM),
        (PROGRAM + "def solution():\n    return 3\n", PROGRAM),
        (PROGRAM + "print(solution())\n", PROGRAM),
        (PROGRAM + "```\nThe answer is 2.", PROGRAM),
        (PROGRAM.replace("\n\n", "\n# note\n\n# and\n"), PROGRAM.replace("\n\n", "\n# note\n\n# and\n")),
        (PROGRAM + "# Explanation\n   it is\n      two", PROGRAM),
        ("def helper(n):\n# note\n    return n\n" + PROGRAM, "def helper(n):\n# note\n    return n\n" + PROGRAM),
        ("x = '\\d'\n" + PROGRAM, "x = '\\d'\n" + PROGRAM),
        ("y = \\d\n" + PROGRAM, PROGRAM),
        ("y = 1if 2else 3\n" + PROGRAM, "y = 1if 2else 3\n" + PROGRAM),
        (HELPER + PROGRAM, HELPER + PROGRAM),
        ("I use a helper.\n" + HELPER + PROGRAM, HELPER + PROGRAM),
        (PROGRAM + "\ndef helper():\n    return 2\nDone", PROGRAM + "\ndef helper():\n    return 2\n"),
        (DOCSTRING + "So 2.", DOCSTRING),
        ("def solution():\n    return (1 +\n", "def solution():\n    return (1 +\n"),
        ("def solution():\nreturn 2\n", "def solution():\n"),
        ("The answer is 2.", ""),
        ("```python\nprint(2)\n```", ""),
        ("def other():\n    return 1\n", ""),
        ("", ""),
    ],
)
def test_extract_program(completion, program):
    assert extract_program(completion) == program


def verdict(value, answer: str, completion: str = ""):
    return score_program(completion, answer, Outcome("ok", repr(value)))


@pytest.mark.parametrize(
    "value, answer, right, relative",
    [
        (42, "42", 1, 1),
        (42.0, "42", 1, 1),
        (42.0009, "42", 1, 0),
        (42.0011, "42", 0, 0),
        (1e12 + 1, "1000000000000.0", 0, 1),
        (1e12 + 2e6, "1e12", 0, 0),
        (0.0, "0", 1, 1),
        (5e-4, "0", 1, 0),
        (-9867630, "-9867630.0", 1, 1),
        ("42", "42", 1, 1),
        ("about 42", "42", 0, 0),
        (True, "1", 0, 0),
        (None, "1", 0, 0),
        ([1], "1", 0, 0),
        (float("nan"), "1", 0, 0),
        (float("inf"), "1", 0, 0),
        (10**400, "1", 0, 0),
        (10**400, str(10**400), 1, 1),
        (10**400 + 1, str(10**400), 0, 1),
        (1, str(10**400), 0, 0),
        (1.5e300, str(10**400), 0, 0),
        (float("inf"), str(10**400), 0, 0),
        (1, "7" * 5000, 0, 0),
        (float("inf"), "7" * 5000, 0, 0),
        ("1e999", "7" * 5000, 0, 0),
        (float("inf"), "1e999", 0, 0),
        (int("7" * 3000), "7" * 3000, 1, 1),
        (42 + 0j, "42", 0, 0),
        (1e16, "10000000000000001", 0, 1),
        (10**16, "10000000000000001", 0, 1),
        (10**16 + 1, "10000000000000001", 1, 1),
        ("10000000000000001", "10000000000000001", 1, 1),
        (1234567890123456789, repr(float(1234567890123456789)), 1, 1),
        (1080, "1,080", 1, 1),
        ("1,080", "1080", 1, 1),
        (1280.5, "1,280.5", 1, 1),
        (-1234567, "-1,234,567", 1, 1),
        ((1, 280), "1,280", 0, 0),
    ],
)
def test_numbers(value, answer, right, relative):
    if answer == "1e999":  # beyond floats: no number, and no program's value
        assert verdict(value, answer).reason == "wrong"
        return
    got = verdict(value, answer)
    assert (got.score, got.extras["relative"]) == (right, relative)
    assert got.reason == ("right" if right else "wrong") and got.extracted == repr(value)


@pytest.mark.parametrize(
    "value, answer, right",
    [
        ("cat", "cat", True),
        ("cat", "'cat'", True),
        ("cat ", "cat", True),
        ("Cat", "cat", False),
        ("it's", "it's", True),
        ([1, 2.0], "[1.0, 2]", True),
        ((1, 2), "[1, 2]", True),
        ([2, 1], "[1, 2]", False),
        ([1, 2, 3], "[1, 2]", False),
        ([["a", True]], "[['a', True]]", True),
        ([["a", 1]], "[['a', True]]", False),
        ({"a": 1.0}, "{'a': 1}", True),
        ({"a": 1, "b": 2}, "{'a': 1}", False),
        ({1, 2}, "{2, 1}", True),
        (True, "True", True),
        (1, "True", False),
        (None, "None", True),
        ("", "''", True),
        (42 + 0j, "(42+0j)", True),
        (42, "(42+0j)", False),
        ({1, 2}, "{True, 2}", False),
        ({True: 1}, "{1: 1}", False),
        ({1: 5}, "{1.0: 5}", True),
        ([1, 280], "[1,280]", True),
        ((1, 28), "1,28", True),
    ],
)
def test_other_answers(value, answer, right):
    got = verdict(value, answer)
    assert (got.score, got.extras) == (float(right), {})


@pytest.mark.parametrize(
    "value", ["<int of 999999 bits>", "<object>", "[" * 300, "-" * 9000 + "1", "__import__('os')"]
)
def test_texts_that_are_no_literals_are_wrong(value):
    assert score_program("", "1", Outcome("ok", value)).reason == "wrong"


def test_hostile_texts_warn_of_nothing():
    """Neither a completion nor an answer nor what a hostile program sent makes the lab's own process warn."""
    odd = "'\\d'", "[1if 2else 3]", "5in 3", "'\\400'"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for text in odd:
            extract_program(f"x = {text}\n{PROGRAM}y = {text}\n")
            score_program("", text, Outcome("ok", text))
    assert warned == []
    assert score_program("", "'\\d'", Outcome("ok", repr("\\d"))).reason == "right"
    assert score_program("", "'\\400'", Outcome("ok", repr("\u0100"))).reason == "right"
    assert score_program("", "'5in'", Outcome("ok", repr("5in"))).reason == "right"


HEAVY = {
    "triple quotes": "def solution():\n    '''\n", "indented lines": "    x = 1\n", "comments": "#\n", "going on": "#\n x\n",
    "assignments": "x=1\n", "one line": "x=1;", "decorators": "@a\n", "digits": "9", "commas": "1,", "dots": "1.",
    "fences": "```", "escapes": "\\'", "glued": "1if ", "lines in a string": "word\n",
    "brackets": "(", "functions": "def solution():\n", "markers": "#### ",
}  # fmt: skip


@pytest.mark.parametrize(
    "part", ["x=1\n", "x=1;x=1\n", "x=f'{a}'\n", "#\n b\n", "import a\n", f"x=[{'1,' * 30_000}]\n", f"x=f'{'{a}' * 9000}'\n"]
)
def test_what_the_parser_reads_of_a_completion_is_bounded(part, monkeypatch):
    """It takes 2 µs for a character of the densest code, and ten times as long for an f-string's: 0.8 s for 100 kB."""
    read, parse = [], ast.parse

    def counted(text):
        read.append(text)
        return parse(text)

    monkeypatch.setattr(scorers.ast, "parse", counted)
    program = part * (50_000 // len(part) + 1) + PROGRAM + part * (50_000 // len(part) + 1)
    assert "def solution()" in extract_program(program)
    assert sum(len(text) + 20 * text.count("{") for text in read) <= 50_000 and len(read) <= 2000


@pytest.mark.parametrize("name", HEAVY)
def test_scoring_takes_time_in_proportion(name):
    """Sixteen times the text takes about sixteen times the time, where what is quadratic takes 256 times."""

    def seconds(characters: int) -> float:
        head = 'x = """\n' if name == "lines in a string" else "def solution():\n    return 1\n"
        text = head + HEAVY[name] * (characters // len(HEAVY[name]))
        taken = []
        for _ in range(3):
            started = time.process_time()
            extract_program(text)
            score_program(text, "42", Outcome("ok", "42"))
            score_final_number(text, "42")
            taken.append(time.process_time() - started)
        return min(taken)

    assert seconds(160_000) < 100 * max(seconds(10_000), 1e-3)


def test_reading_around_solution_is_bounded(monkeypatch):
    read = []
    parse = ast.parse
    monkeypatch.setattr(ast, "parse", lambda text, *rest: read.append(len(text)) or parse(text, *rest))
    for heavy in HEAVY.values():
        text = heavy * (50_000 // len(heavy)) + "\n" + PROGRAM + heavy * (50_000 // len(heavy))
        read.clear()
        extract_program(text)
        assert sum(read) <= 3 * len(text) and len(read) <= 2100, heavy


@pytest.mark.parametrize(
    "status", ["no code", "syntax error", "raised", "module not offered", "not permitted", "timed out"]
)
def test_failures_keep_their_class_and_count_as_zero(status):
    got = score_program("so 3", "3", Outcome(status))
    assert (got.reason, got.score, got.extracted, got.extras) == (
        status,
        0.0,
        "",
        {"relative": 0.0, "last_number": 1.0},
    )


def test_a_failed_sandbox_is_not_a_wrong_answer():
    got = score_program("so 3", "3", Outcome("unscored", message="no memory"))
    assert (got.reason, got.score, got.extras) == ("unscored", None, {})


@pytest.mark.parametrize(
    "text, answer, hit",
    [("is 1,234.5 or so", "1234.5", 1), ("2 then 3", "2", 0), ("none", "2", 0), ("return x - 7.", "-7", 0)],
)
def test_last_number_is_the_released_rule(text, answer, hit):
    assert verdict(None, answer, text).extras["last_number"] == hit


def test_score_programs_end_to_end():
    completions = [
        "def solution():\n    return 7",
        "def solution():\n    return 8",
        "The answer is 7.",
        "def solution():\n    return 7 +",
        "def solution():\n    return 7 / 0",
        "```python\ndef solution():\n    return sorted('ba')\n```",
    ]
    got = score_programs(completions, ["7"] * 5 + ["['a', 'b']"])
    assert [v.reason for v in got] == ["right", "wrong", "no code", "syntax error", "raised", "right"]
    assert [v.score for v in got] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert [v.extras.get("last_number") for v in got] == [1.0, 0.0, 1.0, 1.0, 0.0, None]
    with pytest.raises(LabError, match="1 completions but 2 answers"):
        score_programs(["x"], ["1", "2"])


@pytest.mark.parametrize(
    "text, extracted, right",
    [
        ("6 * 7 = 42. The answer is 42.", "42.", True),
        ("The answer is: $1,042 in 3 boxes.\nThe answer is 5.", "1,042", False),
        ("The answer is 42.\n\nQ: Two and 3?", "42.", True),
        ("6*7=<<6*7=42>>42\n#### 42", "42", True),
        ("The answer is unknown, maybe 42", "42", True),
        ("first 7, then 42", "42", True),
        ("10-42", "42", True),
        ("it is -42", "-42", False),
        ("The answer is 4.2e1", "4.2e1", True),
        ("none", "", False),
    ],
)
def test_final_number(text, extracted, right):
    got = score_final_number(text, "42")
    assert (got.extracted, got.score, got.reason) == (extracted, float(right), "right" if right else "wrong")
    assert got.extras == {"relative": float(right)}


@pytest.mark.parametrize(
    "text, answer, right",
    [
        ("it is 10000000000000000", "10000000000000001", False),
        ("it is 10000000000000001", "10000000000000001", True),
        ("it is 1e16", "10000000000000001", False),
        ("7" * 400, "7" * 400, True),
        ("7" * 399 + "8", "7" * 400, False),
        ("7" * 5000, "7" * 5000, True),
        ("9" * 50_000, "7" * 5000, False),
        ("9e999", "7" * 5000, False),
        ("9e999", "42", False),
    ],
)
def test_large_final_numbers(text, answer, right):
    assert score_final_number(text, answer).score == float(right)


def test_final_number_needs_a_number():
    assert score_final_number("#### 1,000", "1,000").score == 1.0
    with pytest.raises(LabError, match="'blue' is not a number"):
        score_final_number("blue", "blue")


@pytest.mark.skipif(
    not GSM_HARD.exists(), reason="../shared/data/gsm_hard is absent; it is not part of the project"
)
def test_all_gsm_hard_reference_programs_are_right(capsys):
    rows = [json.loads(line) for line in GSM_HARD.read_text().splitlines()]
    started = time.monotonic()
    verdicts = score_programs([row["code"] for row in rows], [repr(row["target"]) for row in rows])
    seconds = time.monotonic() - started
    right = sum(v.reason == "right" for v in verdicts)
    relative = sum(v.extras["relative"] for v in verdicts)
    with capsys.disabled():
        level = isolation_level().name
        print(f"\nGSM-Hard: {right}/{len(rows)} right ({relative:g} relative) in {seconds:.1f} s, {level}")
    assert (
        [(n, v) for n, v in enumerate(verdicts) if v.reason != "right"] == []
        and len(rows) == 660
        and relative == 660
    )
    assert all(ast.literal_eval(v.extracted) is not None for v in verdicts)
