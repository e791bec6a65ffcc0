import os
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lab import runs
from lab.errors import LabError

PARAMETERS = """preset = "embedded"  # embedded, small or paper
seeds = [0]
problems: int = 200  # a note with = in it
rate = 0.1
quick = False
limit = None
"""


def write(path, *sources, parameters=PARAMETERS, title="# A section"):
    cells = [new_markdown_cell(title), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(cells=cells + [new_code_cell(source) for source in sources], metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def text_of(path, cell):
    return "".join(output.get("text", "") for output in nbformat.read(path, as_version=4).cells[cell].outputs)


def test_parameters_are_read_as_python(tmp_path):
    path = write(tmp_path / "a.ipynb", parameters=PARAMETERS + "both = len('ab')\n")
    assert runs.read_parameters(path) == {
        "preset": "embedded", "seeds": [0], "problems": 200, "rate": 0.1, "quick": False, "limit": None, "both": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"presett": "small"}, "no parameter presett in .*a.ipynb. Did you mean preset\\? Valid ones: preset, seeds, problems"),
        ({"zzz": 1}, "no parameter zzz in .*ipynb. Valid ones"),
        ({"seeds": "[0]"}, "seeds is '\\[0\\]'; give a list, such as \\[0\\]"),
        ({"seeds": ["a"]}, "seeds is \\['a'\\]"),
        ({"problems": 2.5}, "problems is 2.5; give a whole number, such as 200"),
        ({"problems": True}, "problems is True"),
        ({"quick": 1}, "give True or False"),
        ({"preset": None}, "preset is None; give a text"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_runs(tmp_path, given, told):
    path = write(tmp_path / "a.ipynb", "open('ran', 'w')")
    with pytest.raises(LabError, match=told):
        runs.run_notebook(path, tmp_path / "out" / "a.ipynb", given, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_right_parameters_pass():
    defaults = {"seeds": [0], "rate": 0.1, "limit": None}
    runs.check_values({"seeds": [1, 2], "rate": 1, "limit": "x"}, defaults, "it")
    runs.check_values({"seeds": []}, defaults, "it")


def test_a_missing_or_damaged_notebook_is_told(tmp_path):
    with pytest.raises(LabError, match="no notebook"):
        runs.read_parameters(tmp_path / "none.ipynb")
    (tmp_path / "bad.ipynb").write_text("{}")
    with pytest.raises(LabError, match="not a notebook or is damaged"):
        runs.read_parameters(tmp_path / "bad.ipynb")


def test_check_parameters_in_a_notebook_given_to_papermill():
    injected = "# Parameters\npresett = 'small'\n"
    runs.check_parameters({})
    runs.check_parameters({"In": ["", PARAMETERS, "import os\nx = os.getcwd()"]})
    runs.check_parameters({"In": ["", PARAMETERS, injected.replace("presett", "preset")]})
    with pytest.raises(LabError, match="no parameter presett in this notebook. Did you mean preset"):
        runs.check_parameters({"In": ["", PARAMETERS, injected, "later = 1"]})
    with pytest.raises(LabError, match="seeds is '0'"):
        runs.check_parameters({"In": ["", PARAMETERS, "# Parameters\nseeds = '0'\n"]})


@pytest.fixture(autouse=True)
def kernels_find_lab(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def test_papermill_itself_refuses_too(tmp_path):
    path = write(tmp_path / "a.ipynb", "from lab import runs\nruns.check_parameters(globals())", "open('ran', 'w')")
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter sedes in this notebook. Did you mean seeds"):
        papermill.execute_notebook(path, None, {"sedes": [1]}, kernel_name="python3", progress_bar=False, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_main_runs_all_and_reports_the_failed_one(tmp_path, capsys):
    """Two notebooks in a folder with braces in its name: a good one, and one that raises."""
    folder = tmp_path / "notebooks {x}"
    write(folder / "s1.ipynb", "import os, sys\nprint(preset, seeds, problems)\nprint(sys.executable)\nprint(os.getcwd())")
    failing = "from lab.errors import LabError\nraise LabError('The manual is empty; give a text.')"
    write(folder / "s2.ipynb", failing, "print('never')", parameters="seeds = [0]", title="# Broken section")
    out, pages = tmp_path / "runs {y}", tmp_path / "results"
    folders = ["--notebooks", str(folder), "--runs", str(out), "--results", str(pages)]
    assert runs.main([*folders, "-p", "seeds", "[3]", "-p", "problems", "7"]) == 1
    told = capsys.readouterr().out
    assert "s1 done" in told and "s2 FAILED in cell 3: The manual is empty; give a text." in told
    assert (pages / "index.html").as_uri() in told

    assert text_of(out / "s1.ipynb", 3).splitlines() == ["embedded [3] 7", sys.executable, os.getcwd()]
    lab = nbformat.read(out / "s1.ipynb", as_version=4).metadata["lab"]
    assert lab["parameters"]["seeds"] == [3] and lab["parameters"]["rate"] == 0.1 and lab["environment"]["device"]
    failed = nbformat.read(out / "s2.ipynb", as_version=4)
    assert not any("never" in output.get("text", "") for cell in failed.cells for output in cell.get("outputs", []))
    index = (pages / "index.html").read_text()
    assert "1 of 2 sections failed" in index and "The manual is empty; give a text." in index
    assert sorted(p.name for p in out.iterdir()) == ["s1.ipynb", "s2.ipynb"]


def test_a_dead_kernel_is_a_failed_run(tmp_path):
    path = write(tmp_path / "a.ipynb", "import os; os._exit(1)", "print('never')")
    run = runs.run_notebook(path, tmp_path / "out.ipynb")
    assert not run.ok and run.failed_cell == 2 and "kernel died" in run.error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "out.ipynb"]


def test_a_kernel_that_does_not_start_is_a_failed_run(tmp_path, monkeypatch):
    def no_kernel(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr(papermill, "execute_notebook", no_kernel)
    run = runs.run_notebook(write(tmp_path / "a.ipynb", "1"), tmp_path / "out.ipynb")
    assert not run.ok and run.failed_cell is None and "didn't respond" in run.error


def test_plan_checks_everything_first(tmp_path):
    first = write(tmp_path / "s5_1_math.ipynb")
    second = write(tmp_path / "s5_2_qa.ipynb", parameters="seeds = [0]")
    plan = runs._plan([first, second], None, {"seeds": [1], "problems": 5}, tmp_path)
    assert plan == {first: {"seeds": [1], "problems": 5}, second: {"seeds": [1]}}
    assert list(runs._plan([first, second], ["s5_2"], {}, tmp_path)) == [second]
    with pytest.raises(LabError, match="no parameter problms in any section. Did you mean problems"):
        runs._plan([first, second], None, {"problms": 5}, tmp_path)
    with pytest.raises(LabError, match="no section s5_3.*Sections: s5_1_math, s5_2_qa"):
        runs._plan([first, second], ["s5_3"], {}, tmp_path)
    with pytest.raises(LabError, match="no notebooks"):
        runs._plan([], None, {}, tmp_path)


def test_a_quick_run_leaves_out_what_lies_beyond_the_paper(tmp_path, capsys):
    for name in ("s1.ipynb", "x1.ipynb"):
        write(tmp_path / name, "1")
    usual = ["--notebooks", str(tmp_path), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out")]
    assert runs.main(usual) == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"s1.ipynb"}
    assert runs.main([*usual, "--only", "x1"]) == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"s1.ipynb", "x1.ipynb"}
