"""Tasks: generated and real rows through the same loaders; what is wrong with a file is named."""

import json
import math

import pytest

from lab.errors import LabError
from lab.tasks import code, hard_math_code, maths
from lab.tasks.maths import gsm8k_solution
from lab.tasks.rows import read_rows


@pytest.mark.parametrize("task", [maths.TASK, code.TASK])
def test_generated_rows_score_right_on_their_own_completion(task):
    rows = task.load("world", "test", 12, 0)
    assert all(v.reason == "right" for v in task.score([r.completion for r in rows], rows))
    wrong = task.score([rows[i - 1].completion for i in range(len(rows))], rows)
    assert sum(v.score for v in wrong) < len(rows) / 2


def test_demonstrations_are_right_and_not_from_the_test(tmp_path):
    shown = hard_math_code.demonstrations("world")
    texts = {e.prompt for e in hard_math_code.load("world", "test", 300, 0)}
    assert not any(text in prompt for text, _ in shown for prompt in texts)
    for text, program in [*shown, *hard_math_code.demonstrations("somewhere")]:
        names: dict = {}
        exec(program, names)
        assert isinstance(names["solution"](), (int, float)) and text


def test_gsm8k_rows(data_folder):
    source = str(data_folder / "gsm8k")
    train, calibration = (maths.load(source, split, 50, 0) for split in ("train", "calibration"))
    assert not {r.prompt for r in train} & {r.prompt for r in calibration}
    rows = maths.load(source, "test", 50, 0)
    assert "<<" not in rows[0].completion and "####" not in rows[0].completion
    assert all(v.reason == "right" for v in maths.TASK.score([r.completion for r in rows], rows))


def test_code_alpaca_rows(data_folder):
    source = str(data_folder / "code_alpaca")
    prompts = {split: {r.prompt for r in code.load(source, split, 100, 0)} for split in ("train", "calibration", "test")}
    assert not prompts["train"] & prompts["calibration"]
    assert all(len(p) == 100 for p in prompts.values())


def test_repeated_instructions_stay_in_one_split(tmp_path):
    rows = [{"instruction": f"do {i % 300}", "input": "", "output": "x"} for i in range(900)]
    (tmp_path / code.FILE).write_text(json.dumps(rows))
    prompts = [{r.prompt for r in code.load(str(tmp_path), split, None, 0)} for split in ("train", "calibration", "test")]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 300


def test_rephrasings_of_one_question_stay_in_one_split(monkeypatch):
    rows = [{"query": f"{i}", "response": "The answer is: 1", "type": "GSM_Rephrased", "original_question": str(i % 50)} for i in range(500)]
    rows.append({"query": "never", "response": "", "type": "GSM8K_Backward", "original_question": "51"})
    monkeypatch.setattr(maths, "hub_rows", lambda *_: rows)
    train, calibration = ({int(r.prompt.split()[1]) % 50 for r in maths.load("hub", split, None, 0)} for split in ("train", "calibration"))
    assert len(train) == 45 and len(calibration) == 5 and not train & calibration


def test_gsm_hard_rows(data_folder):
    rows = hard_math_code.load(str(data_folder / "gsm_hard"), "test", None, 0)
    assert len(rows) == 660 and all(math.isfinite(float(r.targets[0])) for r in rows)


def test_gsm8k_solution_reads_as_worked_steps():
    assert gsm8k_solution("It is 2+3=<<2+3=5>>5.\n#### 5") == "It is 2+3=5.\nThe answer is 5."


def test_bad_files_are_named(tmp_path):
    with pytest.raises(LabError, match="does not exist"):
        maths.load(str(tmp_path), "train", 1, 0)
    file = tmp_path / "train.jsonl"
    file.write_text("")
    with pytest.raises(LabError, match="is empty"):
        maths.load(str(tmp_path), "train", 1, 0)
    file.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n{broken\n")
    with pytest.raises(LabError, match="line 2: not valid JSON"):
        maths.load(str(tmp_path), "train", 1, 0)
    file.write_text(json.dumps({"question": "a"}) + "\n")
    with pytest.raises(LabError, match="row 1: the field 'answer' is missing"):
        maths.load(str(tmp_path), "train", 1, 0)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="UTF-8"):
        maths.load(str(tmp_path), "train", 1, 0)
    file.write_text(json.dumps({"question": "a\u2028b", "answer": "#### 1"}, ensure_ascii=False) + "\n")
    assert len(read_rows(file, ("question",))) == 1
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(LabError, match="no list of rows"):
        read_rows(tmp_path / "x.json", ("a",))
