"""Running generated programs, which are hostile until shown otherwise.

A program is Python source that defines `solution()`; its outcome is what that returns. Each runs in a fresh
`python -I -S` with an empty environment, confined by every layer that this kernel allows (see _launcher.py).
How well that holds is measured, not assumed: `isolation_level()` tries to break out once, and says what was
blocked. A layer that was there then and cannot be applied later gives 'unscored': no program ever runs less
confined than was reported.

A program may import the standard library and the packages in OFFERED, as far as they are installed. It may see the
names and sizes of files (never their content), and may use CPU and memory up to its limits. What it returns it may choose
freely; that it ended, in time and by itself, it cannot feign.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.machinery
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.files import temporary_folder

OFFERED = ("numpy", "sympy", "mpmath")  # beside the standard library; sympy needs mpmath

_LAUNCHER = Path(__file__).with_name("_launcher.py")
_LAYERS = ("namespaces", "landlock", "seccomp")
_GRACE_SECONDS = 60  # for starting Python on a loaded machine, beyond the program's own time
_ATTEMPTS = ("reading files", "writing files", "network", "processes", "signals")

# Tries everything that must not be possible; returns what succeeded.
_BREAKOUT = """
def solution():
    import os, socket
    def attempt(action):
        try:
            action()
            return True
        except Exception:  # however it was stopped, it did not succeed
            return False
    def fork():
        if os.fork() == 0:
            os._exit(0)
    def connect(kind):
        with socket.socket(socket.AF_INET, kind) as client:
            client.connect(("127.0.0.1", {port}))
            client.send(b"x")
    def send_to_path():
        for client in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
            client.sendto(b"x", {path!r})
    return [
        attempt(lambda: open({secret!r}).read()),
        attempt(lambda: open({secret!r} + ".new", "w")) or attempt(lambda: os.chmod({secret!r}, 0o644)),
        attempt(lambda: connect(socket.SOCK_STREAM)) or attempt(lambda: connect(socket.SOCK_DGRAM))
        or attempt(send_to_path),
        attempt(fork),
        attempt(lambda: os.kill({parent}, 0)),
    ]
"""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    wall_seconds is generous, so that a loaded machine fails no honest program: loops are stopped by
    cpu_seconds (whole). memory_mb is address space. file_mb bounds the working folder, a tmpfs; without one
    nothing can be written. value_chars bounds the value's text. A program's own output is discarded. Raises
    LabError for a limit that is not positive.
    """

    wall_seconds: float = 20.0
    cpu_seconds: int = 3
    memory_mb: int = 512
    open_files: int = 32
    file_mb: int = 16
    value_chars: int = 10_000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = field.name != "wall_seconds"
            known = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not known or not value > 0:
                kind = "a positive whole number" if whole else "a positive number"
                raise LabError(f"The limit {field.name} must be {kind}, not {value!r}.")


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    status: 'ok' | 'syntax error' | 'raised' | 'module not offered' (it stopped for want of a module, see OFFERED) |
    'not permitted' (it stopped for want of a file, call or thread that the sandbox refuses) | 'timed out' | 'no code'
    (blank, or no solution()) | 'unscored' (the sandbox failed). value: for 'ok', repr of the returned numbers, strings,
    booleans, None and containers of them, sets sorted; Decimal, Fraction and numbers of numpy and sympy as Python's
    numbers, arrays as lists; `<type>` for anything else. message: one line for the other statuses. seconds: wall time of
    the program.
    """

    status: str
    value: str = ""
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Isolation:
    """How programs are confined on this machine; part of every result that rests on them.

    layers: those in force beside the resource limits. landlock_abi: 0 without Landlock. blocked: the attempts
    of a test program that failed, out of reading files, writing files, network, processes, signals.
    """

    layers: tuple[str, ...]
    landlock_abi: int
    blocked: tuple[str, ...]

    @property
    def name(self) -> str:
        """For example 'namespaces+landlock+seccomp', or 'rlimits only'."""
        return "+".join(self.layers) or "rlimits only"

    @property
    def weak(self) -> bool:
        """Whether anything that must be blocked is possible here."""
        return set(self.blocked) != set(_ATTEMPTS)

    @property
    def told(self) -> str:
        """For a record: the name and, where the level is weak, what still holds and what does not."""
        if not self.weak:
            return self.name
        possible = ", ".join(name for name in _ATTEMPTS if name not in self.blocked)
        return f"{self.name} (limits of time and memory hold, and what is believed of a result; programs are not kept from {possible})"


_REPORTED = tuple(field.name for field in dataclasses.fields(Outcome))


def run_programs(
    programs: Sequence[str],
    *,
    limits: Limits = Limits(),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run each program's solution() in its own sandbox, `workers` at once (default: one per core).

    Outcomes come in the programs' order.
    Works from any thread. progress(done, total) is called in the caller's thread after each program. Nothing
    remains: no process, and no file. Raises LabError when a program is not text or the sandbox cannot start
    at all.
    """
    for index, program in enumerate(programs):
        if not isinstance(program, str):
            raise LabError(f"Program {index} must be Python source text, not {type(program).__name__}.")
    if workers is not None and workers < 1:
        raise LabError(f"workers must be at least 1, not {workers!r}.")
    layers = isolation_level().layers
    outcomes = [Outcome("no code", message="the program is empty")] * len(programs)
    pool = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="sandbox")
    with temporary_folder("sandbox") as folder, pool:
        futures = {
            pool.submit(_launch, program, limits, str(folder), layers): index
            for index, program in enumerate(programs)
            if program.strip()
        }
        try:
            for done, future in enumerate(as_completed(futures), start=len(programs) - len(futures) + 1):
                reply = future.result()
                outcomes[futures[future]] = Outcome(**{key: reply[key] for key in _REPORTED if key in reply})
                if progress is not None:
                    progress(done, len(programs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def run_program(program: str, *, limits: Limits = Limits()) -> Outcome:
    """Run one program; see run_programs."""
    return run_programs([program], limits=limits, workers=1)[0]


_probing = threading.Lock()


def isolation_level() -> Isolation:
    """What confines programs on this machine, found once by running a program that tries to break out.

    Warns once when the level is weak. Raises LabError when the sandbox cannot start.
    """
    with _probing:
        return _probe()


@functools.cache
def _probe(layers: tuple[str, ...] = _LAYERS) -> Isolation:
    with (
        temporary_folder("sandbox-probe") as folder,
        socket.socket() as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local,
    ):
        secret, inside = Path(folder, "secret"), Path(folder, "inside")
        secret.write_text("not for programs")
        inside.mkdir()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        path = str(Path(folder, "s"))
        with contextlib.suppress(OSError):  # a path may be too long for a socket; nothing is reached by it then
            local.bind(path)
        port = listener.getsockname()[1]
        program = _BREAKOUT.format(secret=str(secret), port=port, path=path, parent=os.getpid())
        reply = _launch(program, Limits(wall_seconds=60.0), str(inside), layers, strict=False)
    if reply["status"] != "ok":
        raise LabError(f"The sandbox for generated programs cannot start here: {reply['message']}.")
    possible = ast.literal_eval(reply["value"])
    blocked = tuple(name for name, done in zip(_ATTEMPTS, possible, strict=True) if not done)
    level = Isolation(tuple(reply["layers"]), reply["landlock_abi"], blocked)
    if level.weak:
        allowed = ", ".join(name for name in _ATTEMPTS if name not in blocked)
        warnings.warn(
            f"Generated programs run with weak isolation ({level.name}); they are not kept from: {allowed}. "
            "Use a Linux kernel with Landlock (5.13 or later), or a machine without anything private on it.",
            RuntimeWarning,
            stacklevel=4,
        )
    return level


@functools.cache
def _packages() -> dict[str, str]:
    """Offered package -> its __init__.py, for those that are installed."""
    specs = {name: importlib.machinery.PathFinder.find_spec(name) for name in OFFERED}
    return {name: spec.origin for name, spec in specs.items() if spec is not None and spec.origin is not None}


def _launch(program: str, limits: Limits, folder: str, layers: Sequence[str], strict: bool = True) -> dict:
    """The launcher's reply for one program. `strict`: run it only if all of `layers` could be applied."""
    request = {"program": program, "layers": list(layers), "strict": strict, "parent": os.getpid()}
    request |= {"packages": _packages(), **dataclasses.asdict(limits)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_LAUNCHER), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1"},  # numpy's; a program has no threads
            start_new_session=True,
        )
    except OSError as error:
        return {"status": "unscored", "message": f"the launcher did not start: {error}"}
    with process:
        try:
            patience = limits.wall_seconds + _GRACE_SECONDS
            reply, errors = process.communicate(json.dumps(request).encode(), patience)
        except subprocess.TimeoutExpired:
            return {"status": "unscored", "message": "the launcher did not answer"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the program dies with its launcher
    try:
        return json.loads(reply)
    except ValueError:
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
        reason = last_line[:200] or f"it ended with status {process.returncode}"
        return {"status": "unscored", "message": f"the launcher failed: {reason}"}
