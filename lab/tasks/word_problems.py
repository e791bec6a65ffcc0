"""Section 5.1 for a small real base: short word problems. Skills learn from MAWPS (with some of GSM8K) and from Python functions of
Code Alpaca; the target asks three sets for a program, SVAMP, ASDiv and GSM-Hard, and tells each one's score."""

import ast
import operator
import re
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.evaluation.scorers import Verdict, score_programs
from lab.tasks import Example, Task, code, hard_math_code, maths, prompts
from lab.tasks.rows import read_rows, take
from lab.tasks.splits import shuffled, split_rows

TEST_ROWS = 100  # MAWPS has no test set here: its first rows are never trained on
GSM8K_SHARE = 1 / 3  # rows of GSM8K for each of MAWPS
LONGEST = {"function": 300, "GSM8K": 400}  # characters of a row: on a CPU, a real base learns from short ones
SETS = {"SVAMP": "word_problems/svamp_first500.jsonl", "ASDiv": "word_problems/asdiv_first1000.jsonl", "GSM-Hard": "gsm_hard/gsmhardv2_first660.jsonl"}
MAWPS = "word_problems/mawps_train.jsonl"
_SIGNS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul), ast.Div: ("/", operator.truediv)}


def worked(equation: str) -> tuple[str, float] | None:
    """Steps in words, " 22 - 14 = 8. 8 / 4 = 2.", and the value of an equation "x = (22 - 14) / 4"; None for one that is not of this form."""
    found = re.fullmatch(r"\s*[xX]\s*=(.+)", equation)
    steps: list[str] = []

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SIGNS:
                symbol, act = _SIGNS[type(sign)]
                a, b = value(left), value(right)
                steps.append(f" {_number(a)} {symbol} {_number(b)} = {_number(act(a, b))}.")
                return act(a, b)
        raise ValueError

    try:
        result = value(ast.parse(found[1].strip(), mode="eval").body) if found else None
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return ("".join(steps), result) if steps else None


def _number(value: float) -> str:
    return f"{round(value, 4):.10g}"


def mawps(folder: Path) -> list[tuple[str, str]]:
    """Problems and worked answers of the rows whose equation gives their target; a text that stands there twice, once."""
    pairs = {}
    for row in read_rows(folder / MAWPS, ("input", "equation", "target")):
        found = worked(row["equation"])
        if found and abs(found[1] - float(row["target"])) < 1e-3:
            pairs[row["input"]] = f"{found[0][1:]} The answer is {_number(found[1])}."
    return list(pairs.items())


def load_maths(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: a folder with word_problems/ and gsm8k/."""
    folder = _folder(source)
    rows = mawps(folder)
    if split == "test":
        rows = rows[:TEST_ROWS]
    else:
        found = read_rows(folder / "gsm8k/train.jsonl", ("question", "answer"))
        longer = [(row["question"], maths.gsm8k_solution(row["answer"])) for row in found]
        longer = [pair for pair in longer if sum(map(len, pair)) <= LONGEST["GSM8K"]]
        rows = rows[TEST_ROWS:]
        rows = shuffled(split_rows(rows, split) + split_rows(longer[: int(len(rows) * GSM8K_SHARE)], split), seed)
    return [
        Example(f"maths-{split}-{i}", prompts.MATHS.format(text=question), " " + solution, maths.final_number(solution))
        for i, (question, solution) in enumerate(take(rows, count, f"short word problems, {split}"))
    ]


def load_code(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """source: a folder with code_alpaca/. The rows of its two files that are a Python function, none twice, without a target."""
    rows = {}
    for file in (code.FILE, "new_codealpaca.json"):
        for row in read_rows(_folder(source) / "code_alpaca" / file, ("instruction", "input", "output")):
            if len(row["output"]) <= LONGEST["function"] and _is_function(row["output"]):
                rows.setdefault(f"{row['instruction']}\n{row['input']}".strip(), row["output"].rstrip())
    pairs = list(rows.items())
    pairs = pairs[: code.TEST_ROWS] if split == "test" else shuffled(split_rows(pairs[code.TEST_ROWS :], split), seed)
    return [
        Example(f"code-{split}-{i}", prompts.CODE.format(text=text), output)
        for i, (text, output) in enumerate(take(pairs, count, f"Python functions, {split}"))
    ]


def _is_function(text: str) -> bool:
    try:
        return any(isinstance(node, ast.FunctionDef) for node in ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def load_target(source: str, split: str, count: int | None, seed: int) -> list[Example]:
    """`count` rows in all, as many of each set; ASDiv without the rows that stand in MAWPS. Only a test split exists."""
    if split != "test":
        raise LabError("The target of Section 5.1 is never trained on: it has a test split only.")
    folder = _folder(source)
    known = {_letters(row["input"]) for row in read_rows(folder / MAWPS, ("input",))}
    rows = []
    for name, file in SETS.items():
        asked = [row for row in read_rows(folder / file, ("input", "target")) if _letters(row["input"]) not in known]
        rows += [(name, i, row) for i, row in enumerate(take(asked, None if count is None else -(-count // len(SETS)), name))]
    rows = sorted(rows, key=lambda row: row[1])[:count]  # the sets in turns, so that fewer rows are fewer of each
    return [
        Example(f"{name} {i}", prompts.HARD_MATH_CODE.format(text=row["input"].strip()), targets=(str(row["target"]),), group=name)
        for name, i, row in rows
    ]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _folder(source: str) -> Path:
    if source in ("world", "hub"):
        raise LabError(
            "The short word problems of Section 5.1 come from a folder with word_problems/, gsm8k/, code_alpaca/ and gsm_hard/; "
            "name it with data."
        )
    return Path(source)


def score(completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The value of the program, which is run, against the answer; extras: the score by set."""
    verdicts = score_programs(completions, [example.targets[0] for example in examples])
    return [
        v if v.score is None else Verdict(v.reason, v.score, v.extracted, {e.group: v.score})
        for v, e in zip(verdicts, examples, strict=True)
    ]


# Named as the skills of the paper's section are: the same two, learned from shorter rows. No folder of their own: each reads several.
MATHS = Task("maths", 1, "Short word problems", prompts.MATHS, load_maths, maths.score, 90, stop=("\nQuestion:",))
CODE = Task("code", 1, "Python functions", prompts.CODE, load_code, code.TASK.score, 110, stop=("\nQuestion:",))
TARGET = Task(
    "short_math_code", 1, "Short word problems by program", prompts.HARD_MATH_CODE, load_target, score, 110, stop=("\nQuestion:",),
    demonstrations=hard_math_code.demonstrations,
)  # fmt: skip
