"""Section 5.1 for a small real base: worked steps from equations, functions of Code Alpaca, three sets of word problems."""

import ast
import json
import re
from collections import Counter

import pytest

from lab.errors import LabError
from lab.evaluation.scorers import Verdict
from lab.experiments import sections
from lab.tasks import word_problems
from lab.tasks.word_problems import CODE, MATHS, TARGET, mawps, worked


def test_steps_of_an_equation_compute_it():
    assert worked("X=((22.0-14.0)/4.0)") == (" 22 - 14 = 8. 8 / 4 = 2.", 2)
    assert worked("x = -2*(3+0.5)") == (" 3 + 0.5 = 3.5. -2 * 3.5 = -7.", -7)
    for other in ("X-6=52", "x+(1.0/x)=3.3333", "x=5", "x=1/0", "x=2**9", "x=a+1", "x=__import__('os')", ""):
        assert worked(other) is None


def test_every_step_of_the_real_rows_is_true(data_folder):
    rows = mawps(data_folder)
    assert len(rows) > 1700 and len({question for question, _ in rows}) == len(rows)
    for _, answer in rows:
        *steps, last = re.findall(r"(\S+ \S \S+) = (\S+)\.(?=\s|$)", answer)
        for left, right in [*steps, last]:
            assert abs(eval(left) - float(right)) < 1e-3 * max(1, abs(float(right)))  # operands may be rounded to four places
        assert answer.endswith(f" The answer is {last[1]}.")


def test_splits_share_no_row_and_nothing_of_the_target_is_trained_on(data_folder):
    for task in (MATHS, CODE):
        split = {name: {e.prompt for e in task.load(str(data_folder), name, None, 0)} for name in ("train", "calibration", "test")}
        assert not split["train"] & split["test"] and not split["calibration"] & (split["train"] | split["test"])
        assert len(split["train"]) >= 600
    asked = {word_problems._letters(e.prompt) for e in TARGET.load(str(data_folder), "test", None, 0)}
    learned = {word_problems._letters(e.prompt) for name in ("train", "calibration") for e in MATHS.load(str(data_folder), name, None, 0)}
    assert not {text.removesuffix("program") for text in asked} & {text.removesuffix("answer") for text in learned}
    with pytest.raises(LabError, match="test split only"):
        TARGET.load(str(data_folder), "train", 1, 0)


def test_functions_are_python_and_the_target_asks_as_many_of_each_set(data_folder):
    for example in CODE.load(str(data_folder), "train", 50, 0):
        assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(example.completion).body)
    rows = TARGET.load(str(data_folder), "test", 30, 0)
    assert Counter(e.group for e in rows) == {"SVAMP": 10, "ASDiv": 10, "GSM-Hard": 10}
    assert TARGET.load(str(data_folder), "test", 60, 0)[:30] == rows


def test_the_score_is_told_by_set(data_folder):
    rows = TARGET.load(str(data_folder), "test", 3, 0)
    texts = [f"def solution():\n    return {rows[0].targets[0]}", "no program", f"def solution():\n    return {rows[2].targets[0]}"]
    found = word_problems.score(texts, rows)
    assert [v.extras for v in found] == [{"SVAMP": 1.0}, {"ASDiv": 0.0}, {"GSM-Hard": 1.0}] and isinstance(found[0], Verdict)


def test_a_folder_is_needed_and_a_missing_file_is_named(tmp_path):
    for source in ("world", "hub"):
        with pytest.raises(LabError, match="word_problems/, gsm8k/, code_alpaca/ and gsm_hard/"):
            MATHS.load(source, "train", 1, 0)
    (tmp_path / "word_problems").mkdir()
    row = {"input": "How many?", "equation": "x=1+1", "target": 2}
    (tmp_path / word_problems.MAWPS).write_text(json.dumps(row))
    with pytest.raises(LabError, match="gsm8k/train.jsonl"):
        MATHS.load(str(tmp_path), "train", 1, 0)


def test_the_preset_chooses_the_section():
    assert sections.math_code("embedded") is sections.MATH_CODE
    assert sections.math_code("laptop").preset("laptop").shots == 1 and not sections.math_code("laptop").passed_on
