import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lab.errors import LabError
from lab.runner import notebooks

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
    assert notebooks.read_parameters(path) == {
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
        notebooks.run_notebook(path, tmp_path / "out" / "a.ipynb", given, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_right_parameters_pass():
    defaults = {"seeds": [0], "rate": 0.1, "limit": None}
    notebooks.check_values({"seeds": [1, 2], "rate": 1, "limit": "x"}, defaults, "it")
    notebooks.check_values({"seeds": []}, defaults, "it")


def test_a_missing_or_damaged_notebook_is_told(tmp_path):
    with pytest.raises(LabError, match="no notebook"):
        notebooks.read_parameters(tmp_path / "none.ipynb")
    (tmp_path / "bad.ipynb").write_text("{}")
    with pytest.raises(LabError, match="not a notebook or is damaged"):
        notebooks.read_parameters(tmp_path / "bad.ipynb")


def test_check_parameters_in_a_notebook_given_to_papermill():
    injected = "# Parameters\npresett = 'small'\n"
    notebooks.check_parameters({})
    notebooks.check_parameters({"In": ["", PARAMETERS, "import os\nx = os.getcwd()"]})
    notebooks.check_parameters({"In": ["", PARAMETERS, injected.replace("presett", "preset")]})
    with pytest.raises(LabError, match="no parameter presett in this notebook. Did you mean preset"):
        notebooks.check_parameters({"In": ["", PARAMETERS, injected, "later = 1"]})
    with pytest.raises(LabError, match="seeds is '0'"):
        notebooks.check_parameters({"In": ["", PARAMETERS, "# Parameters\nseeds = '0'\n"]})


@pytest.fixture(autouse=True)
def kernels_find_lab(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_papermill_itself_refuses_too(tmp_path):
    path = write(tmp_path / "a.ipynb", "from lab.runner import notebooks\nnotebooks.check_parameters(globals())", "open('ran', 'w')")
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
    assert notebooks.main([*folders, "-p", "seeds", "[3]", "-p", "problems", "7"]) == 1
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
    run = notebooks.run_notebook(path, tmp_path / "out.ipynb")
    assert not run.ok and run.failed_cell == 2 and "kernel died" in run.error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "out.ipynb"]


def test_a_kernel_that_does_not_start_is_a_failed_run(tmp_path, monkeypatch):
    def no_kernel(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr(papermill, "execute_notebook", no_kernel)
    run = notebooks.run_notebook(write(tmp_path / "a.ipynb", "1"), tmp_path / "out.ipynb")
    assert not run.ok and run.failed_cell is None and "didn't respond" in run.error


def test_plan_checks_everything_first(tmp_path):
    first = write(tmp_path / "s5_1_math.ipynb")
    second = write(tmp_path / "s5_2_qa.ipynb", parameters="seeds = [0]")
    plan = notebooks._plan([first, second], None, {"seeds": [1], "problems": 5}, tmp_path)
    assert plan == {first: {"seeds": [1], "problems": 5}, second: {"seeds": [1]}}
    assert list(notebooks._plan([first, second], ["s5_2"], {}, tmp_path)) == [second]
    with pytest.raises(LabError, match="no parameter problms in any section. Did you mean problems"):
        notebooks._plan([first, second], None, {"problms": 5}, tmp_path)
    with pytest.raises(LabError, match="no section s5_3.*Sections: s5_1_math, s5_2_qa"):
        notebooks._plan([first, second], ["s5_3"], {}, tmp_path)
    with pytest.raises(LabError, match="no notebooks"):
        notebooks._plan([], None, {}, tmp_path)


def folders(tmp_path) -> list[str]:
    return [part for name in ("notebooks", "runs", "results") for part in (f"--{name}", str(tmp_path / name))]


def test_order_parameters_and_estimate(tmp_path, capsys, monkeypatch):
    """One that builds upon another waits for it, whatever their names; the past tells how long each takes."""
    mark = "import os, pathlib\nmarks = pathlib.Path('marks').open('a')\n"
    mark += "marks.write(f'{name} {seeds} {os.environ[\"OMP_NUM_THREADS\"]}\\n')"
    for name in ("a", "b"):
        parameters = f"name = '{name}'\npreset = 'embedded'\nseeds = [0]\nsettings = {{}}\nout = 'x'\n"
        write(tmp_path / "notebooks" / f"{name}.ipynb", mark, "print(settings, out)", parameters=parameters)
    listed = {"a": notebooks.Listed({"seeds": [9]}, {"seeds": [0, 1]}, ("b",), minutes=(7, 70))}
    monkeypatch.setattr(notebooks, "NOTEBOOKS", listed)
    monkeypatch.setattr(notebooks, "EVERY", 0.2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    given = ["--full", "--no-train", "--preset", "embedded", "-p", "settings", "{'rank': 2}"]
    assert notebooks.main([*folders(tmp_path), *given]) == 0
    assert (tmp_path / "marks").read_text().splitlines() == ["b [0] 1", "a [0, 1] 1"]
    written = text_of(tmp_path / "runs" / "a.ipynb", 4).strip()
    assert written == f"{{'rank': 2, 'train_missing': False}} {tmp_path / 'results'}"
    told = capsys.readouterr().out
    assert "2 notebooks, 2 at a time: about 2 h 10 min in all" in told  # 70 and, unlisted, 60, one after the other
    assert "so far, about 2 h 10 min to go; at work: b for" in told
    assert "[1/2] b done" in told and "[2/2] a done" in told

    path, out = tmp_path / "notebooks" / "a.ipynb", tmp_path / "runs" / "a.ipynb"
    seconds = nbformat.read(out, as_version=4).metadata["lab"]["seconds"]
    assert notebooks._expected(path, out, {"seeds": [0, 1]}, True) == seconds
    assert notebooks._expected(path, out, {"seeds": [5]}, True) == 70 * 60
    assert notebooks._expected(path, out, {"seeds": [5]}, False) == 7 * 60


def test_other_presets_have_neither_the_tiny_bases_minutes_nor_their_shortcuts(tmp_path, capsys, monkeypatch):
    write(tmp_path / "notebooks" / "a.ipynb", "print(settings)", parameters="preset = 'embedded'\nsettings = {}\nout = 'x'\n")
    short = {"settings": {"coefficient_rates": [0.1], "own_test": 20}}
    monkeypatch.setattr(notebooks, "NOTEBOOKS", {"a": notebooks.Listed(quick=short)})
    monkeypatch.chdir(tmp_path)
    for preset, settings in (("small", {"own_test": 20}), ("embedded", short["settings"])):
        assert notebooks.main([*folders(tmp_path), "--preset", preset]) == 0
        told = capsys.readouterr().out
        assert ("time not known here" in told and "about" not in told) == (preset == "small")
        assert text_of(tmp_path / "runs" / "a.ipynb", -1).strip() == str(settings)
    assert notebooks.main([*folders(tmp_path), "--preset", "small", "-p", "settings", "{'coefficient_rates': [0.2]}"]) == 0
    assert text_of(tmp_path / "runs" / "a.ipynb", -1).strip() == "{'coefficient_rates': [0.2]}"


def test_what_is_overdue_is_not_said_to_end_at_once(tmp_path, capsys, monkeypatch):
    write(tmp_path / "notebooks" / "a.ipynb", "import time; time.sleep(4)")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", {"a": notebooks.Listed(minutes=(0.001, 0.001))})
    monkeypatch.setattr(notebooks, "EVERY", 0.5)
    assert notebooks.main(folders(tmp_path)) == 0
    waits = re.findall(r"so far, about (\d+) s, a guess: a over its usual time, to go", capsys.readouterr().out)
    assert int(waits[-1]) >= 2


def test_what_cannot_be_written_or_dies_is_a_failed_run_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    for name in ("a", "b", "c"):
        write(tmp_path / "notebooks" / f"{name}.ipynb", "1")
    run_notebook = notebooks.run_notebook

    def disturbed(path, *rest):
        if path.stem == "a":
            raise LabError("Could not write a: No space left on device; free some space or choose another folder.")
        if path.stem == "b":
            os._exit(9)
        return run_notebook(path, *rest)

    monkeypatch.setattr(notebooks, "run_notebook", disturbed)
    damaged = tmp_path / "results" / "records" / "s5_1_math_code" / "cat-seed0-0123456789.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert notebooks.main([*folders(tmp_path), "--jobs", "1"]) == 1
    told = capsys.readouterr().out
    assert "a FAILED: Could not write a: No space left on device" in told
    assert "b FAILED: Its process ended with code 9." in told
    assert "c done" in told and "2 of 3 failed: a, b." in told
    assert f"Skipped in {damaged.parents[1]}, not a record or damaged: s5_1_math_code/{damaged.name}." in told
    assert "No space left on device" in (tmp_path / "results" / "index.html").read_text()


def test_interrupted_leaves_no_kernel(tmp_path):
    endless = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    write(tmp_path / "notebooks" / "a.ipynb", endless)
    command = [sys.executable, "-m", "lab", "results", *folders(tmp_path)]
    # A shell's background job ignores the interrupt, and what it starts inherits that.
    attending = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **attending)
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1] and process.returncode == 130
    wait_for(lambda: not Path(f"/proc/{pid.read_text()}").exists())
    assert not list((tmp_path / "runs").iterdir())


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_whole_takes_as_long_as_its_order_allows(monkeypatch):
    a, b, c, d = (Path(f"{name}.ipynb") for name in "abcd")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", {"c": notebooks.Listed(after=("a", "b"))})
    expected = {a: 10.0, b: 4.0, c: 5.0, d: 6.0}
    assert notebooks._next([a, b, c, d], [], expected, 2) == [a, d]
    assert notebooks._whole([a, b, c, d], {}, expected, 1) == 25
    assert notebooks._whole([a, b, c, d], {}, expected, 2) == 15  # a beside d and b, then c alone
    assert notebooks._whole([c], {a: 3.0}, expected, 2) == 8


@pytest.mark.parametrize(
    ("given", "told"),
    [(["--preset", "papper"], "no preset 'papper'; did you mean 'paper'"), (["--jobs", "-1"], "--jobs is -1"),
     (["--seeds", "1"], "no parameter seeds")],
)  # fmt: skip
def test_a_wrong_option_stops_before_anything_runs(tmp_path, given, told):
    write(tmp_path / "notebooks" / "a.ipynb", "1", parameters="preset = 'embedded'\n")
    with pytest.raises(LabError, match=told):
        notebooks.main([*folders(tmp_path), *given])
    assert not (tmp_path / "runs").exists()


def test_what_is_listed_fits_the_notebooks():
    """What the committed run changes exists in the notebooks, and what they build upon comes before them."""
    for name, listed in notebooks.NOTEBOOKS.items():
        path = Path(__file__).parents[2] / "notebooks" / f"{name}.ipynb"
        if path.exists():
            for changed in (listed.quick, listed.full):
                notebooks.check_values(changed, notebooks.read_parameters(path), name)
        for earlier in listed.after:
            assert not notebooks.NOTEBOOKS[earlier].after
