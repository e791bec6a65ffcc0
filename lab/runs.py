"""Executing the sections' notebooks: parameters checked before anything runs, failures kept and reported, pages made at the end.

The parameters of a notebook are the assignments of its cell tagged "parameters"; each default tells the type. papermill itself
only warns about an unknown parameter. `run_notebook` refuses it before starting; a notebook that is given to papermill directly
refuses it by calling `check_parameters(globals())` in the cell after its parameters.
"""

import argparse
import ast
import difflib
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import zmq
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from traitlets import default

from lab import site
from lab.errors import LabError
from lab.files import write_atomic
from lab.results import environment


@dataclass(frozen=True)
class Run:
    """An executed notebook. ok: it ran to its end; else error says why, and failed_cell where.

    failed_cell: number among the code cells, from 1; None when it failed before the first.
    """

    notebook: Path
    out: Path
    parameters: Mapping[str, object]
    ok: bool
    seconds: float
    failed_cell: int | None
    error: str


class _OwnKernel(AsyncKernelManager):
    """The kernel of this very interpreter, whatever kernels are installed under which names."""

    @default("transport_encryption")
    def _encrypt_if_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        encrypted = {"supported_encryption": ["curve"]}
        return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=encrypted)


def run_notebook(
    path: Path | str,
    out: Path | str,
    parameters: Mapping[str, object] | None = None,
    *,
    cwd: Path | str | None = None,
    progress: bool = False,
) -> Run:
    """Execute a notebook into `out`, also when a cell fails: then up to that cell, with its error.

    parameters: values for names of its parameter cell. cwd: the kernel's folder, default the present one. progress: show a bar.
    An earlier `out` is replaced when the run has ended, not before.

    Raises LabError for a missing or unreadable notebook, an unknown parameter, or a value of another type than the default.
    """
    path, out, given = Path(path), Path(out), dict(parameters or {})
    check_values(given, read_parameters(path), str(path))
    unfinished = out.with_name(f".{out.stem}.unfinished.ipynb")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    started, crash = time.monotonic(), None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            papermill.execute_notebook(
                _literal_path(path),
                _literal_path(unfinished),
                given,
                kernel_name="python3",
                language="python",
                progress_bar=progress,
                kernel_manager_class=_OwnKernel,
                resources={"metadata": {"path": str(Path(cwd or ".").resolve())}},
            )
        except papermill.PapermillExecutionError:
            pass  # the notebook that papermill has saved tells it
        except DeadKernelError:
            crash = "The kernel died, perhaps for want of memory; choose a smaller preset or fewer problems."
        except RuntimeError as error:
            crash = f"The kernel could not be used: {error}"
        nb = nbformat.read(unfinished if unfinished.exists() else path, as_version=4)
        seconds, parameters = time.monotonic() - started, _all_parameters(nb, given)
        nb.metadata["lab"] = {"seconds": seconds, "parameters": parameters, "environment": environment()}
        if crash:
            nb.metadata["lab"]["crash"] = crash
        write_atomic(out, nbformat.writes(nb))
    except OSError as error:
        raise LabError(f"Could not run {path} into {out}: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    outcome = site.outcome(nb)
    return Run(path, out, parameters, outcome.ok, seconds, outcome.cell, outcome.error)


def read_parameters(path: Path | str) -> dict[str, object]:
    """The parameters of a notebook with their defaults, from its cell tagged "parameters"; {} when it has none.

    papermill's own inspection splits lines at '=' and gives defaults as text; this reads the cell as Python.
    A default that is computed counts as None. Raises LabError when the file is not a notebook.
    """
    try:
        nb = nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise LabError(f"There is no notebook {path}.") from error
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise LabError(f"{path} is not a notebook or is damaged.") from error
    source = next((c.source for c in nb.cells if "parameters" in c.metadata.get("tags", [])), "")
    return _assignments(source, str(path))


def check_values(given: Mapping[str, object], defaults: Mapping[str, object], where: str) -> None:
    """Raise LabError for the first unknown name, or value whose type is not its default's. A default of None takes anything."""
    for name, value in given.items():
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            valid = ", ".join(defaults) or "none"
            raise LabError(f"There is no parameter {name} in {where}. {hint}Valid ones: {valid}.")
        if not _fits(value, defaults[name]):
            raise LabError(
                f"{name} is {value!r}; give {_kind(defaults[name])}, such as {defaults[name]!r} "
                f"(with papermill on the command line: -y '{name}: {defaults[name]!r}')."
            )


def check_parameters(names: Mapping[str, object]) -> None:
    """In a notebook: `check_parameters(globals())`, in the cell after the parameters. Raises LabError as `run_notebook` would.

    papermill puts its values into a cell of its own after the parameter cell; what that cell assigns must have been assigned
    before. Without papermill there is no such cell, and nothing to check.
    """
    cells = list(names.get("In", []))
    injected = next((i for i, source in enumerate(cells) if source.startswith("# Parameters\n")), None)
    if injected is not None:
        defaults = _assignments("\n".join(cells[:injected]), "this notebook")
        check_values(_assignments(cells[injected], "this notebook"), defaults, "this notebook")


FULL = {"seeds": [0, 1, 2], "problems": 500}  # what the committed results are run with


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebooks, render the pages, print where to look. Gives 1 when a notebook failed, else 0.

    A failed notebook does not stop the others. A parameter goes to each notebook that has it.
    """
    parser = argparse.ArgumentParser(prog="python -m lab results", description="Run the sections' notebooks and make the pages.")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="names (or their beginnings) of the notebooks to run")
    parser.add_argument("--runs", type=Path, default=Path("artifacts/runs"), help="where executed notebooks go")
    parser.add_argument("--full", action="store_true", help="three seeds and 500 problems, and what lies beyond the paper (x…), into results/ (hours)")
    parser.add_argument("--results", type=Path, help="where pages and records go (default results/quick, with --full results)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    options = parser.parse_args(arguments)

    results = options.results or Path("results" if options.full else "results/quick")
    given = {name: _value(text) for name, text in options.parameters}
    usual = {"out": str(results.resolve())} | (FULL if options.full else {})
    paths = sorted(options.notebooks.glob("*.ipynb"))
    if not (options.full or options.only):  # what lies beyond the paper takes longer than a first look should
        paths = [path for path in paths if not path.stem.startswith("x")]
    plan = _plan(paths, options.only, given, options.notebooks)
    for path, parameters in plan.items():
        plan[path] = {name: value for name, value in usual.items() if name in read_parameters(path)} | parameters
    runs = []
    for number, (path, parameters) in enumerate(plan.items(), 1):
        print(f"[{number}/{len(plan)}] {path.stem} ...", flush=True)
        run = run_notebook(path, options.runs / path.name, parameters, progress=sys.stderr.isatty())
        runs.append(run)
        place = f" in cell {run.failed_cell}" if run.failed_cell else ""
        told = "done" if run.ok else f"FAILED{place}: {run.error}"
        print(f"[{number}/{len(plan)}] {path.stem} {told} ({site.duration(run.seconds)})", flush=True)
    index = site.build([run.out for run in runs], results)
    failed = [run.notebook.stem for run in runs if not run.ok]
    if failed:
        print(f"{len(failed)} of {len(runs)} failed: {', '.join(failed)}. Their pages say where.")
    print(f"Look at {index.resolve().as_uri()}")
    return 1 if failed else 0


def _plan(
    paths: Sequence[Path], only: Sequence[str] | None, given: Mapping[str, object], folder: Path
) -> dict[Path, dict[str, object]]:
    """The notebooks to run and the parameters of each, all checked before the first one starts."""
    if not paths:
        raise LabError(f"There are no notebooks in {folder}; give the folder that holds them.")
    for name in only or ():
        if not any(path.stem.startswith(name) for path in paths):
            close = difflib.get_close_matches(name, [path.stem for path in paths], n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise LabError(f"There is no section {name}. {hint}Sections: {', '.join(path.stem for path in paths)}.")
    chosen = [path for path in paths if not only or any(path.stem.startswith(name) for name in only)]
    defaults = {path: read_parameters(path) for path in chosen}
    known = {name: default for own in defaults.values() for name, default in own.items()}
    check_values(given, known, "any section" if len(chosen) > 1 else str(chosen[0]))
    plan = {path: {name: value for name, value in given.items() if name in own} for path, own in defaults.items()}
    for path, parameters in plan.items():
        check_values(parameters, defaults[path], str(path))
    return plan


def _assignments(source: str, where: str) -> dict[str, object]:
    """Names and values that the source assigns; None for a value that is computed."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise LabError(f"The parameters of {where} are not Python: {error}.") from error
    values = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    values[target.id] = ast.literal_eval(value)
                except ValueError:
                    values[target.id] = None
    return values


def _all_parameters(nb: NotebookNode, given: Mapping[str, object]) -> dict[str, object]:
    source = next((c.source for c in nb.cells if "parameters" in c.metadata.get("tags", [])), "")
    return _assignments(source, "this notebook") | dict(given)


def _fits(value: object, default: object) -> bool:
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and (not default or all(_fits(item, default[0]) for item in value))
    return isinstance(value, type(default))


def _kind(default: object) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}
    return names.get(type(default), "a list")


def _value(text: str) -> object:
    """A value from the command line: a Python literal if it is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _literal_path(path: Path) -> str:
    """The path as papermill must be told it: it passes paths through str.format."""
    return re.sub(r"([{}])", r"\1\1", str(path.resolve()))
