"""From rows to a skill, to a merge, to what it keeps: train, evaluate, compare, records, each on a tiny base."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from lab.cli.main import main
from lab.files import PROJECT
from lab.lora.base import load_base
from lab.lora.peft_io import load, save
from lab.records.record import load_records
from tests.tiny_models import adapter

TRAIN = ["train", "maths.jsonl", "--rank", "2", "--steps", "3", "--batch-size", "4"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_base):
    """A folder with rows of two skills, and held-out ones; the base as `base`."""
    (tmp_path / "base").symlink_to(tiny_base)
    for name, sign in (("maths", "+"), ("code", "*")):
        rows = [{"prompt": f"Take {n}. {sign} 2.\n", "completion": f"total = {n} {sign} 2"} for n in range(14)]
        write(tmp_path / f"{name}.jsonl", rows[:10])
        write(tmp_path / f"{name}_test.jsonl", rows[10:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def skills(here):
    model, _ = load_base(str(here / "base"), device="cpu")
    for place, name in enumerate(("maths", "code"), 1):
        made = adapter(model, name, place, r=2)
        save(here / name, made.__class__(name, "base", made.modules))
    return ["maths", "code"]


def told(capsys, arguments):
    """What a failing command says: nothing but one line on stderr."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out and "Traceback" not in err
    return err


# train


def test_training_gives_an_adapter_with_its_losses_and_card_and_leaves_nothing_else(here, capsys):
    before = set(os.listdir(here))
    assert main([*TRAIN, "--base", "base", "--out", "skills/maths", "--learning-rate", "1e-2"]) == 0
    assert "rank 2" in capsys.readouterr().out
    trained = load("skills/maths")
    assert trained.name == "maths" and trained.base == "base" and trained.rank == 2
    kinds = {module.rpartition(".")[2] for module in trained.modules}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # all linear layers but the head
    learning = trained.recipe["learning"]
    assert learning["rows"] == 10 and learning["steps"] == 3 and list(learning["data"]) == ["maths.jsonl"]
    losses = json.loads((here / "skills/maths/training.json").read_text())["loss"]
    assert learning["loss of the last steps"] == pytest.approx(sum(losses) / 3, abs=1e-4)
    card = (here / "skills/maths/README.md").read_text()
    assert "trained on maths.jsonl" in card and "a merge" not in card and "truncated" not in card
    assert os.listdir(here / "skills") == ["maths"] and set(os.listdir(here)) == before | {"skills"}
    assert main([*TRAIN, "--base", "base", "--out", "skills/maths", "--overwrite", "--json", "--targets", "q_proj", "v_proj"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == "skills/maths" and told["modules"] == 4 and told["seconds"] >= 0


def test_training_is_the_labs_loop_and_continues_where_it_was(here, monkeypatch, capsys):
    from lab.training import loop

    command = [*TRAIN, "--base", "base", "--steps", "4"]
    assert main([*command, "--out", "whole"]) == 0
    monkeypatch.setitem(loop.fit.__kwdefaults__, "checkpoint_seconds", -1.0)
    steps, loss = [], loop.token_loss

    def counted(model, batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setitem(loop.fit.__kwdefaults__, "loss", counted)
    assert main([*command, "--out", "cut"]) == 130
    assert "the same command continues" in capsys.readouterr().err and not (here / "cut").exists()
    steps[:] = [1] * 10
    assert main([*command, "--out", "cut"]) == 0
    assert len(steps) == 12  # two of four steps were done before
    mine, whole = load("cut"), load("whole")
    for module in whole.modules:
        torch.testing.assert_close(mine.delta_weight(module), whole.delta_weight(module), rtol=0, atol=0)
    assert not [name for name in os.listdir(here) if name.startswith(".")]


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def chat_base(folder, source):
    model, tokenizer = load_base(str(source), device="cpu")
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_chats_are_learned_turn_by_turn_in_the_bases_template(here, tiny_base):
    from lab.tasks.own import example, rows_to_learn

    chat_base(here / "chatty", tiny_base)
    said = [("system", "Be short."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    write(here / "chats.jsonl", [{"messages": [{"role": role, "content": text} for role, text in said]}])
    rows = rows_to_learn(here / "chats.jsonl")
    _, tokenizer = load_base(str(here / "chatty"), device="cpu")
    made = [example(row, tokenizer) for row in rows]
    assert [(e.prompt, e.completion) for e in made] == [
        ("<system>Be short.<user>One?<assistant>", "1"),
        ("<system>Be short.<user>One?<assistant>1<user>Two?<assistant>", "2"),
    ]
    assert main(["train", "chats.jsonl", "--base", "chatty", "--steps", "1", "--rank", "2", "--out", "out"]) == 0
    assert load("out").recipe["learning"]["rows"] == 2


def test_gpt2s_layers_are_trained_too(here, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=512)).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    assert main([*TRAIN, "--base", "gpt2", "--out", "out"]) == 0
    assert {module.rpartition(".")[2] for module in load("out").modules} == {"c_attn", "c_proj", "c_fc"}


# evaluate


def table(path):
    with open(path, newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_evaluation_writes_tables_figures_answers_and_records(here, skills, capsys):
    assert main(["merge", *skills, "--method", "cat_static", "--out", "both"]) == 0
    command = ["evaluate", *skills, "both", "--data", "maths=maths_test.jsonl", "code_test.jsonl", "--max-new-tokens", "4", "--out", "scores"]
    command += ["--metric", "f1", "maths=exact"]
    capsys.readouterr()
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "maths, exact (against base)" in out and "code_test, f1" in out and "Skill retention" in out and "to go" in err
    written = {file for file in os.listdir(here / "scores") if file != "records"}
    assert written == {
        "evaluation.json", "maths.csv", "maths.md", "maths.tex", "maths.svg", "maths.jsonl", "code_test.csv", "code_test.md",
        "code_test.tex", "code_test.svg", "code_test.jsonl", "retention.csv", "retention.md", "retention.tex",
    }  # fmt: skip
    rows = table(here / "scores/maths.csv")
    assert list(rows) == ["base", "maths", "code", "both"] and rows["both"]["role"] == "static" and rows["maths"]["role"] == "skill"
    assert {row["n"] for row in rows.values()} == {"4"} and rows["both"]["test"] == "exact McNemar" and not rows["base"]["p"]
    lines = [json.loads(line) for line in (here / "scores/maths.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and lines[0]["contender"] == "base" and lines[0]["targets"] == ["total = 10 + 2"]
    assert "| contender |" in (here / "scores/maths.md").read_text() and r"\toprule" in (here / "scores/maths.tex").read_text()
    assert "both" in (here / "scores/maths.svg").read_text()
    found = load_records(here / "scores/records", "maths")
    assert [r.method for r in found] and {len(r.rows()) for r in found} == {4}
    assert not [name for name in os.listdir(here) if name.startswith(".")]
    # As JSON, and with what is there already.
    assert main([*command, "--overwrite", "--json", "--reference", "maths"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["reference"] == "maths" and [row["method"] for row in told["data"]["maths"]["table"]] == list(rows)
    assert [(row["skill"], row["adapter"]) for row in told["retention"]] == [("maths", "code"), ("maths", "both")]
    assert "to go" not in err  # nothing was asked again


def test_answers_and_scores_are_those_of_evaluate(here, skills):
    from lab.evaluation.evaluate import Decoding, evaluate
    from lab.experiments.context import applied
    from lab.tasks.metrics import read_asked, task_of

    assert main(["evaluate", "maths", "--data", "maths_test.jsonl", "--metric", "f1", "--max-new-tokens", "5", "--out", "scores"]) == 0
    model, tokenizer = load_base(str(here / "base"), device="cpu")
    metric, asked = read_asked(here / "maths_test.jsonl", "f1")
    with applied(model, load("maths")):
        task = task_of("maths", metric, max_new_tokens=5)
        expected = evaluate(model, tokenizer, task, [a.example(tokenizer, False) for a in asked], Decoding(batch_size=2))
    record = next(r for r in load_records(here / "scores/records") if r.method == "maths")
    assert record.scores["right"] == pytest.approx(expected.accuracy)
    assert [row["completion"] for row in record.rows()] == [row["completion"] for row in expected.rows]


def test_an_interrupted_evaluation_goes_on(here, skills, monkeypatch, capsys):
    from lab.experiments import own_data

    asked, evaluate = [], own_data.evaluate

    def counted(*args, **kwargs):
        asked.append(kwargs["label"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(own_data, "evaluate", counted)
    command = ["evaluate", *skills, "--data", "maths_test.jsonl", "--max-new-tokens", "2", "--out", "scores"]
    assert main(command) == 130
    assert "the same command continues" in capsys.readouterr().err and not (here / "scores").exists()
    assert main(command) == 0
    assert asked == [f"maths_test, {name}" for name in ("base", "maths", "code", "code")]
    assert not [name for name in os.listdir(here) if name.startswith(".")]


def test_a_router_is_asked_with_its_adapters(here, skills, capsys):
    assert main(["learn", *skills, "--method", "arrow", "--out", "arrow"]) == 0
    command = ["evaluate", *skills, "arrow", "--data", "maths_test.jsonl", "--max-new-tokens", "2", "--out", "scores"]
    assert main(command) == 0
    assert table(here / "scores/maths_test.csv")["arrow"]["role"] == "router"
    assert "give code beside it" in told(capsys, ["evaluate", "maths", "arrow", *command[4:-1], "other"])


# compare


def test_comparison_merges_and_asks_all_and_goes_on_after_an_interruption(here, skills, monkeypatch, capsys):
    from lab.cli import compare as module

    command = [
        "compare", *skills, "--methods", "cat_static", "dare_linear", "cat", "arrow", "--learn", "maths.jsonl", "code.jsonl", "--rates", "0.1",
        "--steps", "2", "--data", "maths=maths_test.jsonl", "--max-new-tokens", "2", "--out", "compared",
    ]  # fmt: skip
    called, learn = [], module.learn

    def counted(arguments):
        called.append(arguments[arguments.index("--method") + 1])
        if len(called) == 1:
            raise KeyboardInterrupt
        return learn(arguments)

    monkeypatch.setattr(module, "learn", counted)
    assert main(command) == 130 and not (here / "compared").exists()
    monkeypatch.setattr(module, "merge", lambda arguments: pytest.fail("merged already"))
    assert main(command) == 0
    assert called == ["cat", "cat", "arrow"]
    rows = table(here / "compared/maths.csv")
    assert list(rows) == ["base", "maths", "code", "cat_static", "dare_linear", "cat", "arrow"]
    assert rows["cat"]["role"] == "learned"
    assert sorted(os.listdir(here / "compared/merges")) == ["arrow", "cat", "cat_static", "dare_linear"]
    assert load("compared/merges/cat").recipe["learning"]["learning_rate"] == 0.1
    assert (here / "compared/maths.svg").exists() and not [name for name in os.listdir(here) if name.startswith(".")]


# records


def test_records_are_looked_up(here, skills, capsys):
    assert main(["evaluate", *skills, "--data", "maths_test.jsonl", "--max-new-tokens", "2", "--out", "scores"]) == 0
    capsys.readouterr()
    assert main(["records", "scores/records", "--method", "ma*"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2 and "maths" in out and "exact" in out
    assert main(["records", "scores/records", "--show", "1", "--answers", "2"]) == 0
    out = capsys.readouterr().out
    assert "method: " in out and out.count("right: total = ") == 2
    assert main(["records", "scores/records", "--task", "exact", "--json"]) == 0
    assert {record["method"] for record in json.loads(capsys.readouterr().out)} == {"base", "maths", "code"}
    assert "None of the 3 records" in told(capsys, ["records", "scores/records", "--section", "s9*"])
    assert "does not exist" in told(capsys, ["records", "nowhere"])


def test_the_projects_own_records_are_there(capsys):
    assert main(["records", "--section", "s5_1*", "--method", "cat"]) == 0
    assert "s5_1_math_code" in capsys.readouterr().out


# Bad input

EVALUATE = ["evaluate", "maths", "--data", "rows.jsonl", "--out", "out"]
BAD_ROWS = {
    '{"completion": "b"}': "line 3: the field 'prompt' is missing or no text",
    '{"prompt": "a"}': "line 3: the field 'completion' is missing or no text",
    '{"prompt": "a", "completion": 5}': "line 3: the field 'completion' is missing or no text",
    "5": "line 3: the field 'prompt' is missing",
    "{": "line 3: not valid JSON",
    '{"messages": []}': "line 3: the field 'messages' is no list",
    '{"messages": [{"role": "human", "content": "a"}]}': "line 3: turn 1 has the role 'human'; choose one of system, user, assistant",
    '{"messages": [{"content": "a"}]}': "line 3: turn 1 of the field 'messages' has no role",
    '{"messages": [{"role": "user"}]}': "line 3: the field 'content' of turn 1 is missing or no text",
    '{"messages": [{"role": "user", "content": "a"}]}': "line 3: no turn of the field 'messages' is the assistant's",
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_and_field(here, skills, capsys, line):
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n\n' + line + "\n")
    before = set(os.listdir(here))
    for command in (["train", "rows.jsonl", "--base", "base"], ["learn", *skills, "--method", "cat", "--data", "rows.jsonl"]):
        assert f"rows.jsonl, {BAD_ROWS[line]}" in told(capsys, [*command, "--out", "out"])
    assert set(os.listdir(here)) == before


BAD_QUESTIONS = {
    ("exact", '{"prompt": "a"}'): "line 3: the field 'answer' is missing, and so is a completion",
    ("exact", '{"prompt": "", "answer": "b"}'): "line 3: the field 'prompt' is empty",
    ("exact", '{"prompt": "a", "answer": " "}'): "line 3: the field 'answer' is empty",
    ("exact", '{"prompt": "a", "answers": []}'): "line 3: the field 'answers' is no text, number or list",
    ("exact", '{"messages": [{"role": "bot", "content": "a"}]}'): "turn 1 has the role 'bot'",
    ("number", '{"prompt": "a", "answer": "many"}'): "line 3: the field 'answer' holds no number, so the metric number cannot score it",
    ("program", '{"prompt": "a", "completion": "def solution():\\n    return 1/0"}'): "line 3: the field 'completion' is a program that gives no value",
    ("choice", '{"prompt": "a", "answer": "b"}'): "line 3: the field 'choices' is missing",
    ("choice", '{"prompt": "a", "answer": 2, "choices": ["b", "c"]}'): "line 3: the field 'answer' (2) is none of the row's choices",
}  # fmt: skip


@pytest.mark.parametrize(("metric", "line"), BAD_QUESTIONS)
def test_a_bad_question_is_named_by_file_line_and_field(here, skills, capsys, metric, line):
    good = {"prompt": "a", "answer": "1", "choices": ["1", "2"]}
    (here / "rows.jsonl").write_text(json.dumps(good) + "\n\n" + line + "\n")
    before = set(os.listdir(here))
    assert BAD_QUESTIONS[metric, line] in told(capsys, [*EVALUATE, "--metric", metric])
    assert "rows.jsonl, line 3" in told(capsys, ["compare", *skills, "--methods", "svd", *EVALUATE[2:], "--metric", metric])
    assert set(os.listdir(here)) == before


BAD_ARGUMENTS = {
    "maths exists already": ["evaluate", "maths", "--data", "maths_test.jsonl", "--out", "maths"],
    "maths holds no evaluation": ["evaluate", "maths", "--data", "maths_test.jsonl", "--out", "maths", "--overwrite"],
    "code exists already": [*TRAIN, "--base", "base", "--out", "code"],
    "maths_test.jsonl exists already": ["compare", "maths", "code", "--methods", "svd", "--data", "code_test.jsonl", "--out", "maths_test.jsonl"],
    "There are no rows to train on": ["train", "--base", "base", "--out", "out"],
    "The base has no module called 'qq_proj'": [*TRAIN, "--base", "base", "--targets", "qq_proj", "--out", "out"],
    "base model folder nowhere does not exist": [*TRAIN, "--base", "./nowhere", "--out", "out"],
    "lost.jsonl cannot be read": ["train", "lost.jsonl", "--base", "base", "--out", "out"],
    "'1' is not a number from 0 to below 1": [*TRAIN, "--base", "base", "--dropout", "1", "--out", "out"],
    "There is no metric 'bleu'; choose one of exact": [*EVALUATE, "--data", "maths_test.jsonl", "--metric", "bleu"],
    "--metric names the data 'c'": [*EVALUATE, "--data", "maths_test.jsonl", "--metric", "c=f1"],
    "There is no contender 'code' to compare with": [*EVALUATE, "--data", "maths_test.jsonl", "--reference", "code"],
    "There is nothing to evaluate; give adapters": ["evaluate", "--data", "maths_test.jsonl", "--out", "out"],
    "There is nothing to evaluate without the base": ["evaluate", "--base", "base", "--without-base", "--data", "maths_test.jsonl", "--out", "out"],
    "Two files of rows are called a": [*EVALUATE, "--data", "a=maths_test.jsonl", "a=code_test.jsonl"],
    "Two of the adapters are called alike": ["evaluate", "maths", "maths=code", "--data", "maths_test.jsonl", "--out", "out"],
    "An adapter is called base": ["evaluate", "base=maths", "--data", "maths_test.jsonl", "--out", "out"],
    "nowhere is not a folder": ["evaluate", "./nowhere", "--data", "maths_test.jsonl", "--out", "out"],
    "no chat template": [*EVALUATE, "--data", "maths_test.jsonl", "--chat"],
    "The judge's url must be": [*EVALUATE, "--data", "maths_test.jsonl", "--metric", "judge", "--judge", "ftp://x", "--judge-model", "m"],
    "cat learns from data; give --learn": ["compare", "maths", "code", "--methods", "cat", "--data", "maths_test.jsonl", "--out", "out"],
    "There is one adapter": ["compare", "maths", "--methods", "svd", "--data", "maths_test.jsonl", "--out", "out"],
    "did you mean 'ties'?": ["compare", "maths", "code", "--methods", "tise", "--data", "maths_test.jsonl", "--out", "out"],
    "--answers tells those of one record": ["records", "--answers", "3"],
}  # fmt: skip


@pytest.mark.parametrize("says", BAD_ARGUMENTS)
def test_bad_arguments(here, skills, capsys, says):
    before = set(os.listdir(here))
    assert says in told(capsys, BAD_ARGUMENTS[says])
    assert set(os.listdir(here)) == before


def test_help_teaches_and_is_quick():
    code = (
        "import sys; from lab.cli.main import main\n"
        "for command in ('train', 'records', 'evaluate', 'compare'):\n"
        "    try: main([command, '--help'])\n    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("[]\n") and done.stdout.count("examples:") == 4
