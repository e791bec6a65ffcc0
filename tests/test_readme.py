"""README: every command and the Python of "Your own base, data and adapters" do what they say, on a tiny base."""

import json
import re
import shlex

import pytest

from lab.cli.main import main
from lab.files import PROJECT
from lab.lora.peft_io import load
from lab.tasks import rewriting

SECTION = re.search(r"\n## Your own base, data and adapters\n(.*?)\n## ", (PROJECT / "README.md").read_text(), re.DOTALL)[1]
LINES = re.findall(r"^    (\S.*?)(?:  +#.*)?$", SECTION, re.MULTILINE)
SMALL = {
    "train": ["--steps", "1", "--rank", "2", "--batch-size", "2"], "learn": ["--steps", "1", "--batch-size", "4", "--rows", "4"],
    "evaluate": ["--rows", "2", "--max-new-tokens", "2"], "compare": ["--rows", "2", "--max-new-tokens", "2"],
}  # fmt: skip


def test_the_commands_run_in_their_order_and_the_python_after_them(tmp_path, tiny_base, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[3:] for line in LINES if line.startswith(".venv/bin/python -m lab ")]
    assert [command[0] for command in commands] == [
        "train", "train", "learn", "evaluate", "compare", "records", "inspect", "methods", "merge", "inspect", "plan",
    ]  # fmt: skip
    for command in commands:
        command = [str(tiny_base) if word == "smollm2-135m" else word for word in command]
        assert main([*command, *SMALL.get(command[0], [])]) == 0, command
    assert json.loads((tmp_path / "scores/evaluation.json").read_text())["retention"]
    assert "past" in capsys.readouterr().out
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    exec(code, {})
    assert load("adapters/both").rank == 4


def test_the_notebooks_line_names_what_the_notebook_has():
    import papermill

    (line,) = (line for line in LINES if not line.startswith(".venv/bin/python -m lab "))
    words = shlex.split(line)
    assert words[0].endswith("papermill") and (PROJECT / words[1]).is_file()
    given = {words[i + 1].partition(":")[0] for i, word in enumerate(words) if word in ("-p", "-y")}
    assert given and given <= set(papermill.inspect_notebook(str(PROJECT / words[1])))


@pytest.mark.parametrize("change", ["past", "passive"])
def test_the_examples_are_the_worlds_rows(change):
    task = rewriting.skill(change, "named")
    for split, count, name in (("train", 240, change), ("test", 40, f"{change}_test")):
        rows = [json.loads(line) for line in (PROJECT / "examples" / f"{name}.jsonl").read_text().splitlines()]
        assert rows == [{"prompt": e.prompt, "completion": e.completion} for e in task.load("world", split, count, 0)]


def test_the_target_of_the_examples_asks_for_both():
    rows = [json.loads(line) for line in (PROJECT / "examples" / "both_test.jsonl").read_text().splitlines()]
    task = rewriting.target(("past", "passive"), "named")
    assert rows == [{"prompt": e.prompt, "answer": e.targets[0]} for e in task.load("world", "test", 40, 0)]
