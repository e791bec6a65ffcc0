"""Executing the sections' notebooks: parameters checked before anything runs, failures kept and reported, pages made at the end.

The parameters of a notebook are the assignments of its cell tagged "parameters"; each default tells the type. papermill itself
only warns about an unknown parameter. `run_notebook` refuses it before starting; a notebook that is given to papermill directly
refuses it by calling `check_parameters(globals())` in the cell after its parameters.
"""

import ast
import contextlib
import difflib
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill
import zmq
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from traitlets import default

from lab.cli.options import command_parser, integer
from lab.errors import LabError
from lab.experiments.presets import get_preset
from lab.files import write_atomic
from lab.lora.gguf import packed_file
from lab.pages import site
from lab.records.record import environment, read_records


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
) -> Run:
    """Execute a notebook into `out`, also when a cell fails: then up to that cell, with its error.

    parameters: values for names of its parameter cell. cwd: the kernel's folder, default the present one.
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
                progress_bar=False,
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


@dataclass(frozen=True)
class Listed:
    """What the runner knows of a notebook.

    quick, full: parameters of either run, where they differ from the notebook's own. after: the notebooks whose skills,
    merges and records it finds again, so that it waits for them. minutes: about how long either takes on two cores, with
    another notebook beside it. needs: a base of lab.lora.gguf.PACKED, without which it is left out.
    """

    quick: Mapping[str, object] = field(default_factory=dict)
    full: Mapping[str, object] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    needs: str = ""
    minutes: tuple[float, float] = (5, 60)


EVERY = 60  # seconds between two lines that tell how far it is
SECTIONS = ("s5_1_math_code", "s5_2_qabot", "s5_3_reading", "s5_4_prompt_formats")
# Beside the base and the skills, in every run however quick.
NEVER_MISSING = ["data_mix", "cat_static", "cat_random", "cat", "new_lora", "new_lora_compute", "random_loras", "rescale_one"]
TUNED = ("coefficient_rates", "coefficient_share")  # settings that are shortcuts for the embedded bases alone
BRIEF = {"settings": {"own_test": 20}}
FEW = BRIEF | {"problems": 100}
SEEDS = {"seeds": [0, 1, 2]}
FIFTHS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
WHOLE = SEEDS | {"problems": 500}
NOTEBOOKS = {
    "s0_base_model": Listed(minutes=(0.5, 0.5)),
    "s4_skills": Listed(FEW, SEEDS | {"problems_of": dict.fromkeys(SECTIONS[:3], 500)}, after=SECTIONS, minutes=(0.5, 5)),
    "s5_1_math_code": Listed(
        quick=FEW | {"methods": ["base", "few_shot", "maths", "code", *NEVER_MISSING, "task_arithmetic", "ties", "cat_free"]},
        full=WHOLE,
        minutes=(5, 135),
    ),
    "s5_2_qabot": Listed(
        quick=FEW | {"methods": ["base", "manual", "instruction", "data_mix_continual", *NEVER_MISSING, "task_arithmetic", "ties", "cat_free", "rank_cat", "retrieval_bm25"]},
        full=WHOLE,
        minutes=(1.5, 26),
    ),
    "s5_3_reading": Listed(
        quick=FEW | {
            "methods": ["base", "terms", "terms_few_shot", "extraction", "data_mix_continual", *NEVER_MISSING, "task_arithmetic", "ties", "cat_free", "rank_cat"],
            "judged": ["base", "terms_few_shot", "extraction", "ties", "data_mix", "data_mix_continual", "cat_static", "cat"],
        },
        full=WHOLE,
        minutes=(2, 37),
    ),
    "s5_4_prompt_formats": Listed(FEW | {"methods": [*NEVER_MISSING, "ties"]}, SEEDS, minutes=(3, 45)),
    "s5_5_ablations": Listed(
        quick=BRIEF | {
            "compared": {"s5_1_math_code": 100, "s5_2_qabot": 100}, "methods": ["base", "cat_static", "cat", "cat_free"],
            "sweep_problems": 20, "densities": [0.2, 1.0], "shares": [0.0125],
        },
        full=SEEDS | {
            "compared": {"s5_1_math_code": 500, "s5_2_qabot": 500}, "densities": FIFTHS,
            "weights": [1 + fifth for fifth in FIFTHS], "granularities": ["model", "layer", "module"],
            "rates": [0.0001, 0.01, 0.1], "shares": [0.0125, 0.05], "confirm": True,
        },
        after=SECTIONS,
        minutes=(1.5, 90),
    ),
    "x1_controls": Listed(
        FEW | {"learned": ["cat"]}, SEEDS | {"problems_of": dict.fromkeys(SECTIONS[:3], 500)}, after=SECTIONS, minutes=(2, 15)
    ),
    "x2_more_skills": Listed(
        FEW | {"methods": ["cat_static", "task_arithmetic", "cat_random", "cat", "rank_cat", *NEVER_MISSING[4:]]},
        SEEDS | {
            "problems": 200, "settings": {"own_test": 20},
            "methods": [
                *NEVER_MISSING[:4], "cat_softmax", "task_arithmetic", "rank_cat", "moe", "new_lora", "new_lora_compute", "random_loras_softmax",
                "rescale_one",
            ],
        },
        minutes=(5, 95),  # the longest first: what it shares with 5.2 and 5.3, the store makes once for both
    ),
    "x3_methods": Listed(
        quick={"sections": ["s5_2_qabot"], "settings": {"coefficient_rates": [0.1], "own_test": 20}},
        full={"sections": [*SECTIONS[:3], "s5_4_prompt_formats_1_4", "s5_4_prompt_formats_two_prompts"], "problems": 200},
        after=SECTIONS,
        minutes=(1.5, 40),
    ),
    "x4_rewriting": Listed(
        quick={"styles": ["named"], "methods": ["few_shot", *NEVER_MISSING[:4]], "problems": 30, "settings": {"own_test": 20}},
        full={"preset": "laptop"},
        needs="smollm2-135m",
        minutes=(25, 150),
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebooks, render the pages, print where to look. Gives 1 when a notebook failed, else 0.

    A failed notebook does not stop the others. A parameter goes to each notebook that has it.
    """
    about = "Run the sections' notebooks and make the pages."
    parser = command_parser("results", about)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="names (or their beginnings) of notebooks")
    parser.add_argument("--full", action="store_true", help="the committed run: three seeds, more problems (hours)")
    parser.add_argument("--preset", help="embedded (default), small or paper")
    parser.add_argument("--seeds", nargs="+", type=integer, metavar="SEED", help="of skills, data order and coefficients")
    parser.add_argument("--no-train", action="store_true", help="a skill that is not in the store is an error")
    parser.add_argument("--jobs", type=integer, help="notebooks at a time (default 2 with the embedded preset, else 1)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
                        help="another parameter of the notebooks, such as -p problems 50")  # fmt: skip
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
    parser.add_argument("--runs", type=Path, default=Path("artifacts/runs"), help="where executed notebooks go")
    where = "where pages and records go (default results/quick, with --full results, else results/PRESET)"
    parser.add_argument("--results", type=Path, help=where)
    options = parser.parse(sys.argv[2:] if arguments is None else arguments)

    given = {name: _value(text) for name, text in options.parameters}
    given |= {} if options.seeds is None else {"seeds": options.seeds}
    given |= {} if options.preset is None else {"preset": get_preset(options.preset).name}
    preset = given.get("preset", "embedded")
    jobs = options.jobs or (min(2, cores()) if preset == "embedded" else 1)
    if jobs < 1:
        raise LabError(f"--jobs is {jobs}; give 1 or more.")
    folder = preset if preset != "embedded" else "" if options.full else "quick"
    results = options.results or Path("results") / folder

    plan = _plan(sorted(options.notebooks.glob("*.ipynb")), options.only, given, options.notebooks)
    for path in [path for path in plan if NOTEBOOKS.get(path.stem, Listed()).needs and "base" not in given]:
        try:
            packed_file(NOTEBOOKS[path.stem].needs)
        except LabError as missing:
            if options.only:
                raise
            print(f"{path.stem} is left out. {missing}", flush=True)
            del plan[path]
    for path, parameters in plan.items():
        own = read_parameters(path)
        listed = NOTEBOOKS.get(path.stem, Listed())
        usual = listed.full if options.full else listed.quick
        plan[path] = ({"out": str(results.resolve())} if "out" in own else {}) | usual | parameters
        if preset != "embedded" and "settings" in own and "settings" not in parameters:
            short = plan[path].get("settings", own["settings"])
            plan[path]["settings"] = {name: value for name, value in short.items() if name not in TUNED}
        if options.no_train and "settings" in own:
            plan[path]["settings"] = {**plan[path].get("settings", own["settings"]), "train_missing": False}
        check_values(plan[path], own, str(path))
    # A thread for each: tiny models gain more from a second notebook than from a second thread, and sums then do not
    # depend on how many cores there are.
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if preset == "embedded" else {}
    environment()  # of the code as it is now, once for all notebooks
    runs = _run_all(plan, options.runs, jobs, variables, options.full, timed=preset == "embedded")
    index = site.build([run.out for run in runs], results)
    if skipped := read_records(results / "records")[1]:
        print(f"Skipped in {results / 'records'}, not a record or damaged: {', '.join(skipped)}.")
    failed = [run.notebook.stem for run in runs if not run.ok]
    if failed:
        print(f"{len(failed)} of {len(runs)} failed: {', '.join(failed)}. Their pages say where.")
    print(f"Look at {index.resolve().as_uri()}")
    return 1 if failed else 0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Process:
    """A notebook at work. started: by time.monotonic(). said: where a failure that leaves no notebook is told."""

    process: multiprocessing.process.BaseProcess
    said: multiprocessing.connection.Connection
    started: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def _run_all(
    plan: Mapping[Path, Mapping[str, object]], folder: Path, jobs: int, variables: Mapping[str, str], full: bool, timed: bool
) -> list[Run]:
    """Run each notebook of the plan in a process of its own, `jobs` at a time, after those it builds upon.

    Tells how far it is. timed: the listed minutes hold for these bases; else no estimate is made of them.
    """
    expected = {path: _expected(path, folder / path.name, parameters, full) for path, parameters in plan.items()}
    waiting, running, runs = list(plan), {}, {}
    begun = told = time.monotonic()

    def to_go() -> str:
        if not timed:
            return "time not known here (python -m lab plan estimates it)"
        # What is overdue is expected to need as long again as it is over its time: it may have to train what others find.
        left = {path: abs(expected[path] - work.seconds) for path, work in running.items()}
        late = [path.stem for path, work in running.items() if work.seconds > 1.2 * expected[path]]
        guess = f"about {site.duration(_whole(waiting, left, expected, jobs))}"
        return f"{guess}, a guess: {', '.join(late)} over {'its' if len(late) == 1 else 'their'} usual time," if late else guess

    print(f"{len(plan)} notebook{'s' if len(plan) > 1 else ''}, {jobs} at a time: {to_go()} in all", flush=True)
    try:
        while waiting or running:
            for path in _next(waiting, running, expected, jobs):
                waiting.remove(path)
                running[path] = _start(path, folder / path.name, plan[path], variables)
                print(f"{path.stem} ...{f' (usually about {site.duration(expected[path])})' if timed else ''}", flush=True)
            time.sleep(0.1)
            for path in [path for path, work in running.items() if not work.process.is_alive()]:
                run = runs[path] = _ended(path, folder / path.name, plan[path], running.pop(path))
                place = f" in cell {run.failed_cell}" if run.failed_cell else ""
                outcome = "done" if run.ok else f"FAILED{place}: {run.error}"
                rest = f"; {to_go()} to go" if waiting or running else ""
                took = site.duration(run.seconds)
                print(f"[{len(runs)}/{len(plan)}] {path.stem} {outcome} ({took}){rest}", flush=True)
            if running and time.monotonic() - told > EVERY:
                told = time.monotonic()
                names = ", ".join(f"{path.stem} for {site.duration(work.seconds)}" for path, work in running.items())
                print(f"{site.duration(told - begun)} so far, {to_go()} to go; at work: {names}", flush=True)
    finally:
        for work in running.values():  # interrupted: each takes its kernel with it
            os.kill(work.process.pid, signal.SIGINT)
        for work in running.values():
            work.process.join()
    return [runs[path] for path in plan]


def _next(waiting: Sequence[Path], running: Iterable[Path], expected: Mapping[Path, float], jobs: int) -> list[Path]:
    """The notebooks that can begin now: the longest first, so that at the end none is left alone."""
    unfinished = {path.stem for path in (*waiting, *running)}
    ready = [path for path in waiting if not unfinished & set(NOTEBOOKS.get(path.stem, Listed()).after)]
    return sorted(ready, key=lambda path: -expected[path])[: jobs - len(list(running))]


def _whole(waiting: Sequence[Path], left: Mapping[Path, float], expected: Mapping[Path, float], jobs: int) -> float:
    """Seconds until all have ended, if each takes what is expected. left: of those at work."""
    ends, waiting, now = dict(left), list(waiting), 0.0
    while waiting or ends:
        for path in _next(waiting, ends, expected, jobs):
            waiting.remove(path)
            ends[path] = now + expected[path]
        first = min(ends, key=ends.get)
        now = ends.pop(first)
    return now


def _start(path: Path, out: Path, parameters: Mapping[str, object], variables: Mapping[str, str]) -> _Process:
    """Forked, so that nothing is imported again; what computes is the kernel, which starts afresh."""
    context = multiprocessing.get_context("fork")
    said, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(path, out, parameters, variables, tell))
    process.start()
    tell.close()
    return _Process(process, said, time.monotonic())


def _work(path: Path, out: Path, parameters: Mapping[str, object], variables: Mapping[str, str], tell) -> None:
    os.environ.update(variables)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        run_notebook(path, out, parameters)
    except LabError as error:
        tell.send(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(*_: object) -> None:
    """Once: a second signal must not disturb the end of the kernel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _expected(path: Path, out: Path, parameters: Mapping[str, object], full: bool) -> float:
    """Seconds that a notebook will take: what it took last time with these parameters, else what the list says."""
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError):
        nb = nbformat.read(out, as_version=4)
        past = nb.metadata["lab"]
        if site.outcome(nb).ok and all(past["parameters"].get(name) == value for name, value in parameters.items()):
            return float(past["seconds"])
    return 60 * NOTEBOOKS.get(path.stem, Listed()).minutes[full]


def _ended(path: Path, out: Path, parameters: Mapping[str, object], work: _Process) -> Run:
    """The run of a notebook whose process has ended. Where that left nothing in `out`, its failure is put there."""
    seconds = work.seconds
    if work.process.exitcode == 0:
        nb = nbformat.read(out, as_version=4)
    else:
        try:
            error = work.said.recv()
        except EOFError:
            error = f"Its process ended with code {work.process.exitcode}."
        nb = nbformat.read(path, as_version=4)
        lab = {"seconds": seconds, "parameters": dict(parameters), "environment": environment(), "crash": error}
        nb.metadata["lab"] = lab
        write_atomic(out, nbformat.writes(nb))
    work.said.close()
    outcome = site.outcome(nb)
    return Run(path, out, parameters, outcome.ok, seconds, outcome.cell, outcome.error)


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
