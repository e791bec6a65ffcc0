"""A user's own rows: what they teach, what they ask, and how each metric scores."""

import json

import pytest

from lab.errors import LabError
from lab.evaluation.evaluate import evaluate
from lab.evaluation.judge import Deterministic
from lab.evaluation.likelihood import most_likely
from lab.lora.base import load_base
from lab.tasks import Example
from lab.tasks.metrics import METRICS, read_asked, task_of
from lab.tasks.own import example, rows_to_ask, rows_to_learn


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def score(metric, completion, *targets, **options):
    (verdict,) = task_of("own", metric, **options).score([completion], [Example("1", "Ask.", targets=targets)])
    return verdict


def test_lines_are_split_at_line_ends_only_and_blank_ones_counted(tmp_path):
    row = {"prompt": "a\u2028b", "completion": "c"}
    file = tmp_path / "rows.jsonl"
    file.write_text(f"\n{json.dumps(row, ensure_ascii=False)}\n", encoding="utf-8")
    (found,) = rows_to_learn(file)
    assert (found.where, found.prompt, found.completion) == (f"{file}, line 2", "a\u2028b", "c")


def test_a_chats_last_turn_is_its_answer_where_it_is_the_assistants(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    asked = rows_to_ask(write(tmp_path / "rows.jsonl", {"messages": turns}, {"messages": turns[:1], "answer": 4}))
    assert [(row.prompt, row.completion) for row in asked] == [(tuple(turns[:1]), "4"), (tuple(turns[:1]), "")]
    assert [row.targets for row in read_asked(tmp_path / "rows.jsonl", "number")[1]] == [("4",), ("4",)]
    with pytest.raises(LabError, match="no chat template"):
        example(asked[0], tokenizer)


def test_what_a_template_refuses_is_said_with_the_line(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('System role not supported') }}")
    (row,) = rows_to_ask(write(tmp_path / "rows.jsonl", {"messages": [{"role": "user", "content": "Hi"}], "answer": "a"}))
    with pytest.raises(LabError, match="line 1: the base's chat template does not take these turns .System role not supported"):
        example(row, tokenizer)


@pytest.mark.parametrize(
    ("completion", "targets", "exact"),
    [
        ("The copper pipe.", ("copper pipe",), 1.0),
        ("copper", ("copper pipe", "Copper"), 1.0),
        ("It carries oil.\nThe answer is the copper pipe.", ("copper pipe",), 1.0),
        ("copper pipe\nQuestion: what else?", ("copper pipe",), 1.0),  # its first line
        ("first line\nsecond line", ("First line second line",), 1.0),  # the whole
        ("iron", ("copper pipe",), 0.0),
        ("", ("copper pipe",), 0.0),
    ],
)
def test_exact_match(completion, targets, exact):
    verdict = score("exact", completion, *targets)
    assert verdict.score == exact and verdict.reason == ("right" if exact else "no answer" if not completion else "wrong")


def test_f1_is_squads():
    verdict = score("f1", "a long copper pipe", "copper pipe")
    assert verdict.score == pytest.approx(0.8) and verdict.reason == "partly right" and verdict.extras == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("completion", "targets", "right"),
    [("6 * 7 = 42. The answer is 42.", ("42",), 1.0), ("so 1,080", ("1080",), 1.0), ("41", ("42", "41"), 1.0), ("none", ("42",), 0.0)],
)
def test_number(completion, targets, right):
    assert score("number", completion, *targets).score == right


def test_program_is_run():
    assert score("program", "def solution():\n    return 6 * 7", "41", "42").score == 1.0
    assert score("program", "def solution():\n    import torch\n    return 1", "1").reason == "module not offered"
    assert score("program", "def solution():\n    return 1 / 0", "1").reason == "raised"


def test_choices_are_taken_by_likelihood_and_nothing_is_written(tmp_path, tiny_base, monkeypatch):
    rows = [{"prompt": f"Take {n}.\n", "choices": ["add 2", "a much longer continuation", "stop"], "answer": "stop"} for n in range(5)]
    metric, asked = read_asked(write(tmp_path / "rows.jsonl", *rows), None)
    model, tokenizer = load_base(str(tiny_base), device="cpu")
    monkeypatch.setattr("lab.evaluation.evaluate.generate", lambda *_, **__: pytest.fail("nothing is to be written"))
    examples = [row.example(tokenizer, False) for row in asked]
    found = evaluate(model, tokenizer, task_of("own", metric), examples)
    places = most_likely(model, tokenizer, [e.prompt for e in examples], [e.choices for e in examples])
    assert metric == "choice" and [row["completion"] for row in found.rows] == [rows[0]["choices"][place] for place in places]
    assert found.scores == [float(place == 2) for place in places]
    assert [row["extras"] for row in found.rows] == [{}] * 5


def test_a_choice_is_named_by_its_text_or_its_place(tmp_path):
    choices = ["5", "2", "9"]
    rows = [{"prompt": "a", "choices": choices, "answer": given} for given in ("9", 2, 0)]
    assert [row.targets for row in read_asked(write(tmp_path / "r.jsonl", *rows), "choice")[1]] == [("9",), ("2",), ("5",)]


def test_the_judge_grades_and_its_log_keeps_it(tmp_path):
    log = tmp_path / "judge.jsonl"
    assert score("judge", "the copper pipe", "copper pipe", judge=Deterministic(), log=log).score == 1.0
    half = score("judge", "copper", "copper pipe", judge=Deterministic(), log=log)
    assert half.score == 0.5 and half.reason == "partly right" and len(log.read_text().splitlines()) == 2


def test_a_judge_that_cannot_be_reached_gives_unscored():
    class Silent(Deterministic):
        def grade(self, question, answer):
            from lab.evaluation.judge import Judgement

            return Judgement(None, "no reply", reached=False)

    with pytest.warns(UserWarning, match="unscored"):
        verdict = score("judge", "copper", "copper pipe", judge=Silent())
    assert verdict.score is None and verdict.reason == "unscored"


def test_held_out_rows_of_a_skill_carry_their_answers(tmp_path):
    """Of a worked solution its number, of a program its value, of a text what it states."""
    worked = {"prompt": "a", "completion": "3 boxes of 14.\nThe answer is 42.", "id": "worked"}
    program = {"prompt": "a", "completion": "def solution():\n    return [6 * 7, 'x']"}
    file = write(tmp_path / "rows.jsonl", worked)
    assert read_asked(file, "number")[1][0].targets == ("42",)
    assert read_asked(file, None) == ("exact", read_asked(file, "exact")[1])
    assert read_asked(file, "exact")[1][0].targets == ("3 boxes of 14.\nThe answer is 42.", "42")
    assert read_asked(file, "exact")[1][0].id == "worked"
    (asked,) = read_asked(write(tmp_path / "rows.jsonl", program), "program")[1]
    assert asked.targets == ("[42, 'x']",) and asked.id == "1"
    assert score("program", "def solution():\n    return [42, 'x']", *asked.targets).score == 1.0


def test_every_metric_is_told():
    assert set(METRICS) == {"exact", "f1", "number", "program", "choice", "judge"}
    assert all(metric.summary and (metric.tokens > 0) == (name != "choice") for name, metric in METRICS.items())
