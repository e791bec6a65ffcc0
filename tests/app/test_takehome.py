"""Every line that Take home shows does what it says: it is run here."""

import json
import re
import shlex
import zipfile

import nbformat
import pytest

from lab.app import actions, takehome
from lab.app.context import Context
from lab.app.engine import Engine
from lab.app.sources import open_uploads, shipped_skills
from lab.cli.main import main as command
from lab.experiments.presets import get_preset
from lab.files import PROJECT
from lab.lora.peft_io import load, save

PROMPT = "Question: Ann has 3 apples and buys 4 more.\nProgram:\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    return Context(Engine("embedded", device="cpu"), get_preset("embedded"), tuple(shipped_skills()), folder / "r", folder)


@pytest.fixture
def session(context):
    return context.session()


def unpacked(path, folder):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)


def run(line: str) -> int:
    program, *words = shlex.split(line, comments=True)
    assert program == "python" and words[:2] == ["-m", "lab"]
    return command(words[2:])


@pytest.mark.parametrize("folded", [False, True])
def test_the_python_lines_answer(context, session, tmp_path, monkeypatch, capsys, folded):
    """With the prompt that stands in Compare, for an adapter and for a whole model."""
    session.set_text("maths: 0; code: 1")
    session.form = {"prompt": "Ann has 3 apples and buys 4 more.", "shape": "Question → program"}
    unpacked(actions.export(context, session, "merge", folded=folded), tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = takehome.snippet(session, "merge", "embedded", folded=folded, prompt=actions.present_prompt(context, session))
    assert ("peft" in lines) != folded
    exec(compile(lines, "snippet", "exec"), {})
    said = capsys.readouterr().out
    assert PROMPT in said and "def solution" in said.replace("\n ", "\n")


def test_the_command_for_uploads_works_with_what_is_exported_beside_it(context, session, tmp_path, monkeypatch):
    save(tmp_path / "mine", session.adapters[1])
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            archive.write(tmp_path / "mine" / name, f"mine/{name}")
    actions.use(context, session, [session.adapters[0], *open_uploads([tmp_path / "mine.zip"])])
    session.sources = {}
    session.set_text("mine layers 2: 0.3")
    line = takehome.commands(session, "merge", "embedded")
    assert "PATH/TO" not in line
    unpacked(takehome.inputs_zip(session), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(line) == 0 and load(tmp_path / "merge-adapter").recipe["alphas"] == session.merged("merge").recipe["alphas"]
    assert run(takehome.commands(session, "mine", "embedded")) == 0
    said = takehome.papermill_command(session, "merge", "embedded")
    assert said.startswith("#") and "\n" not in said  # no notebook does this, and it says so


def test_the_notebook_line_is_accepted_by_the_notebook_with_the_alphas(session):
    session.set_text("maths: ramp 0.2 1; code layers 2 q: 0.3")
    session.add("ties", session.make("ties", {}))
    notebook = nbformat.read(PROJECT / "notebooks" / "s5_1_math_code.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for column, wanted in (("merge", "by_hand"), ("ties", "ties"), ("maths", "maths"), ("base", "base")):
        program, path, _, *options = shlex.split(takehome.papermill_command(session, column, "embedded"))
        assert program == "papermill" and (PROJECT / path).is_file()
        values: dict = {}
        exec(cells[0].source, values)
        assert options[0] == "-y"
        name, _, given = options[1].partition(": ")
        values[name] = re.findall(r"[\w]+", given)
        if options[2:]:
            assert options[2] == "-p"
            values[options[3]] = options[4]
        exec(cells[1].source, values)  # the notebook's own check
        assert wanted in [*values["methods"], *values["others"]]
        if column == "merge":
            assert sorted(values["alphas"].split("; ")) == sorted(session.text.splitlines())


def test_the_card_leaves_out_modules_that_a_skill_does_not_change(context, session, tmp_path):
    """As the mixer does: a skill of half the modules at 0.8 has a mean of 0.8."""
    from dataclasses import replace

    maths, code = session.adapters
    half = replace(code, modules=dict(list(code.modules.items())[: len(code.modules) // 2]))
    actions.use(context, session, [maths, half])
    unpacked(actions.export(context, session, "merge"), tmp_path)
    card = (tmp_path / "merge-adapter" / "README.md").read_text()
    assert "| code | 0.8 | 0.8 | 0.8 |" in card and "| maths | 0.8 | 0.8 | 0.8 |" in card
    recipe = json.loads((tmp_path / "merge-adapter" / "recipe.json").read_text())
    assert recipe["inputs"][0].keys() != recipe["inputs"][1].keys()
