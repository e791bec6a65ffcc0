"""Hostile programs, each contained with the right class, and nothing left behind."""

import ast
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.evaluation import sandbox
from lab.evaluation.sandbox import Isolation, Limits, isolation_level, run_program, run_programs
from tests.campaigns.sandbox import ESCAPES, PATIENCE, SURVIVORS, canaries, living, programs, survivors, try_out

QUICK = Limits(cpu_seconds=1, memory_mb=96)


def _launchers() -> list[int]:
    """Living launchers and programs of this test module: their folders are in its own temporary folder."""
    return living(tempfile.gettempdir())


def _none_remain() -> bool:
    deadline = time.monotonic() + PATIENCE
    while _launchers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _launchers()


@pytest.fixture(scope="module", autouse=True)
def nothing_remains(tmp_path_factory):
    """After all the hostile programs of this module: no process, and no file in the folder for temporary
    files.
    """
    own = tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(own)
    yield
    assert list(own.iterdir()) == []
    assert _none_remain()
    tempfile.tempdir = before


def body(*lines: str) -> str:
    return "def solution():\n" + "".join(f"    {line}\n" for line in lines)


@pytest.fixture
def strong():
    if isolation_level().weak:
        pytest.skip(f"this machine isolates weakly: {isolation_level().name}")


def test_level_is_measured_and_reported(capsys):
    level = isolation_level()
    with capsys.disabled():
        print(
            f"\nsandbox: {level.name}, Landlock ABI {level.landlock_abi}, blocked: {', '.join(level.blocked)}"
        )
    assert level is isolation_level()
    assert set(level.blocked) <= {"reading files", "writing files", "network", "processes", "signals"}
    assert level.weak == (len(level.blocked) < 5)


@pytest.mark.parametrize(
    "expression, value",
    [
        ("6 * 7", "42"),
        ("-2.5e300", "-2.5e+300"),
        ("float('nan')", "nan"),
        ("'caf\\u00e9\\n\\ud800'", repr("café\n\ud800")),
        ("[1, (2,), {'a': None}, True]", "[1, (2,), {'a': None}, True]"),
        ("{'b', 'a', 'c'}", "{'a', 'b', 'c'}"),
        ("__import__('fractions').Fraction(7, 2)", "3.5"),
        ("__import__('decimal').Decimal('1.25')", "1.25"),
        ("__import__('datetime').date(2024, 2, 29)", "'2024-02-29'"),
        ("__import__('statistics').median([3, 1, 2])", "2"),
        ("__import__('enum').IntEnum('E', 'A').A", "1"),
        ("10 ** 1000", str(10**1000)),
        ("10 ** 100_000", "<int of 332193 bits>"),
        ("'x' * 1_000_000", "<str of 1000002 characters>"),
        ("(n for n in [1])", "<generator>"),
        ("object()", "<object>"),
        ("open('own.txt', 'w').write('abc')", "3"),
    ],
)
def test_values(expression, value, strong):
    outcome = run_program(body(f"return {expression}"), limits=QUICK)
    if "open(" in expression and "namespaces" not in isolation_level().layers:
        assert outcome.status == "raised"  # without a folder of its own nothing is writable
    else:
        assert (outcome.status, outcome.value) == ("ok", value)


HOSTILE = {
    "empty": (" \n", "no code"),
    "no solution": ("x = 1\n", "no code"),
    "syntax": ("def solution(:\n", "syntax error"),
    "null byte": ("def solution():\n    return '\0'\n", "syntax error"),
    "lone surrogate": ("x = '\ud800'\n" + body("return 1"), "syntax error"),
    "nesting": ("def solution(): return " + "(" * 5000, "syntax error"),
    "raise": (body("raise ValueError('no')"), "raised"),
    "base exception": (body("raise BaseException"), "raised"),
    "keyboard interrupt": (body("raise KeyboardInterrupt"), "raised"),
    "sys.exit": (body("import sys", "sys.exit(0)"), "raised"),
    "os._exit": (body("import os", "os._exit(0)"), "raised"),
    "abort": (body("import os", "os.abort()"), "raised"),
    "segfault": (body("import ctypes", "ctypes.string_at(0)"), "raised"),
    "recursion": (body("return solution()"), "raised"),
    "stdin": (body("return input()"), "raised"),
    "loop": (body("while True: pass"), "timed out"),
    "loop on import": ("while True: pass\n" + body("return 1"), "timed out"),
    "deaf loop": (
        body("import signal", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)", "while True:", "    pass"),
        "timed out",
    ),
    "catches all": (
        body("while True:", "    try:", "        while True: pass", "    except BaseException: pass"),
        "timed out",
    ),
    "output flood": (body("while True: print('x' * 10_000)"), "timed out"),
    "huge power": (body("return 10 ** 10 ** 8"), "timed out"),
    "memory": (body("return len(bytearray(10 ** 10))"), "raised"),
    "memory by steps": (body("x = []", "while True: x.append(bytearray(10 ** 7))"), "raised"),
    "closes all": (body("import os", "os.closerange(0, 100)", "return 1"), "raised"),
    "closes all and loops": (body("import os", "os.closerange(0, 100)", "while True: pass"), "timed out"),
    "wants a module": (body("import pandas"), "module not offered"),
    "wants a part of a module": (body("import numpy.nothing"), "raised"),
    "lives without a module": (body("try: import pandas", "except ImportError: return 1"), "ok"),
    "wants a thread": (body("import threading", "threading.Thread(target=print).start()"), "not permitted"),
    "wants a command": (body("import subprocess", "subprocess.run(['true'])"), "not permitted"),
    "says that it may not": (body("raise PermissionError('no')"), "raised"),
    "channel flood": (
        body(
            "import os",
            "while True:",
            "    for fd in range(3, 9):",
            "        try: os.write(fd, b'x' * 9999)",
            "        except OSError: pass",
        ),
        "raised",
    ),
    "forged result": (
        body(
            "import os",
            "for fd in range(9):",
            '    try: os.write(fd, b\'{"status": "unscored"}\')',
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "raised",
    ),
    "forged with the token": (
        """
import os, sys
def solution():
    frame = sys._getframe()
    while "token" not in frame.f_locals or "channel" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["channel"], frame.f_locals["token"] + b"[" * 5000)
    os._exit(0)
""",
        "raised",
    ),
    "hostile str": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\n" + body("raise E"),
        "raised",
    ),
    "self-containing": (body("x = []", "x.append(x)", "return x"), "ok"),
    "hostile repr": (
        "class R(int):\n    def __repr__(self): return '1'\n    def __eq__(self, o): return True\n"
        + body("return R(5)"),
        "ok",
    ),
    "returns its class": (
        "class M(type):\n    @property\n    def __name__(self): raise SystemExit\n"
        "class C(metaclass=M): pass\n" + body("return C()"),
        "ok",
    ),
    "printed answer": (body('print(\'{"status": "ok", "value": "9"}\')', "return 5"), "ok"),
}


def test_hostile_programs_get_their_class():
    outcomes = run_programs([program for program, _ in HOSTILE.values()], limits=QUICK)
    got = {name: outcome.status for name, outcome in zip(HOSTILE, outcomes, strict=True)}
    assert got == {name: status for name, (_, status) in HOSTILE.items()}
    for outcome in outcomes:
        assert outcome.status in ("ok", "no code") or outcome.message
        assert len(outcome.message) <= 300 and outcome.seconds < QUICK.wall_seconds + 5
    values = dict(zip(HOSTILE, (outcome.value for outcome in outcomes), strict=True))
    assert (
        values["hostile repr"] == "5"
        and values["returns its class"] == "<C>"
        and values["printed answer"] == "5"
    )


def test_waiting_is_stopped_by_the_wall_clock():
    outcome = run_program(body("import time", "time.sleep(1000)"), limits=Limits(wall_seconds=0.5))
    assert outcome.status == "timed out" and "0.5 s" in outcome.message and outcome.seconds >= 0.5


# What once succeeded, one of each kind and of each way to it; with these every tenth of the campaign's programs.
ONCE = [
    "sends to a path", "sends a descriptor to a path", "call socketpair", "call sendmsg",
    "reads inode flags", "changes inode flags", "ioctl with high bits",
    "leases a library", "asks for news of a folder", "locks a library", "locks a part of a library", "locks by open file",
    "writes and loops", "writes and sleeps", "writes and crashes", "writes and leaves", "token and channel by their names",
    "tokens in frames", "tokens in all objects", "token from a profile", "patches the exit to loop", "patches the exit to crash",
    "lists attributes", "reads an attribute", "watches files", "call inotify_add_watch",
    "outlives its parent", "becomes a reaper", "fills timers", "locks pages on mapping", "keeps a key", "grows its pipe",
]  # fmt: skip


def test_campaign_sample(strong):
    with canaries() as laid:
        known = programs(laid)
        chosen = {name: known[name] for place, name in enumerate(known) if name in ONCE or place % 10 == 0}
        replies = try_out(chosen, isolation_level().layers)
        assert laid.touched() == []
    assert set(ONCE) <= set(chosen) and len(known) > 300
    assert {name: replies[name] for name, (_, value) in chosen.items() if replies[name].get("value") == value} == {}
    for name in ESCAPES.keys() & chosen.keys():  # stopped by the sandbox, not by a mistake of the program's
        assert not replies[name].get("message", "").startswith(("NameError", "SyntaxError", "TypeError")), name
    assert {replies[name]["status"] for name in ("writes and loops", "writes and sleeps")} == {"timed out"}
    assert {replies[name]["status"] for name in ("writes and crashes", "writes and leaves")} == {"raised"}


@pytest.mark.parametrize(
    "layers", [("namespaces", "landlock", "seccomp"), ("landlock", "seccomp"), ("seccomp",), ("namespaces",)]
)
@pytest.mark.parametrize("name", ["forgets its parent", "closes all"])
def test_no_program_outlives_kill_9_of_its_launcher(layers, name):
    if not set(layers) <= set(isolation_level().layers):
        pytest.skip(f"{layers} cannot all be applied here")
    bodies = SURVIVORS | {"closes all": SURVIVORS["forgets its parent and closes all"]}
    assert survivors(bodies[name], layers) == 0


def test_offered_packages():
    """numpy and sympy are there, their numbers come back as Python's; what is installed beside them is not."""
    with_numpy = "import numpy as np\n" + body("return np.float64(0.5), np.int64(3), np.arange(2), np.linalg.inv([[2.0]])")
    with_sympy = "from sympy import *\n" + body("x = Symbol('x')", "return solve(2 * x - 1, x) + [Integer(3), sqrt(4), I, x]")
    wanted = [with_numpy, with_sympy, body("import mpmath", "return 1"), body("import pytest", "return 1")]
    outcomes = run_programs(wanted, limits=Limits(wall_seconds=PATIENCE, cpu_seconds=PATIENCE))
    values = [outcome.value for outcome in outcomes[:3]]
    assert values == ["(0.5, 3, [0, 1], [[0.5]])", "[0.5, 3, 2, <ImaginaryUnit>, <Symbol>]", "1"], outcomes
    assert outcomes[3].status == "module not offered" and "pytest" in outcomes[3].message
    assert "numpy, sympy, mpmath" in outcomes[3].message


def test_what_the_library_needs_is_allowed(strong):
    outcome = run_program("""
import calendar, csv, datetime, io, json, locale, os, queue, random, re, resource, shutil, signal, tempfile, threading, time, uuid
def solution():
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100_000))
        file.truncate(5)
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/a", "w") as file:
            csv.writer(file).writerow([1, 2])
        os.makedirs(folder + "/b/c")
        os.rename(folder + "/a", folder + "/b/c/a")
        shutil.copyfile(folder + "/b/c/a", folder + "/d")
        names = sorted(name for _, _, files in os.walk(folder) for name in files)
    time.sleep(0.01)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    queue.Queue().put(1)
    threading.Lock().acquire(timeout=0.01)
    known = datetime.datetime.now().astimezone(), uuid.uuid4(), random.random(), os.cpu_count(), os.urandom(3), time.time()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrlimit(resource.RLIMIT_AS), os.getcwd(), os.uname()
    return names, len(known), len(used), len(bytearray(10**8)), os.listdir(".")
""")
    if "namespaces" in isolation_level().layers:
        assert outcome.value == "(['a', 'd'], 6, 4, 100000000, [])", outcome


def test_environment_is_empty_and_python_isolated(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    outcome = run_program(
        body("import os, sys", "return dict(os.environ), sys.flags.isolated, sys.flags.no_site")
    )
    environment, isolated, no_site = ast.literal_eval(outcome.value)
    assert (
        "hunter2" not in str(environment)
        and "PYTHONPATH" not in environment
        and (isolated, no_site) == (1, 1)
    )
    assert run_program(body("import lab")).status == "module not offered"


def test_programs_do_not_see_each_other():
    write = body("open('note', 'w').write('x')", "import os", "return os.listdir()")
    look = body("import os", "return os.listdir()")
    assert [o.value for o in run_programs([write, look], workers=1)][1] == "[]"


@pytest.mark.parametrize(
    "layers", [("namespaces", "landlock", "seccomp"), ("landlock", "seccomp"), ("seccomp",)]
)
def test_fork_bomb(layers):
    if not set(layers) <= set(isolation_level().layers):
        pytest.skip(f"{layers} cannot all be applied here")
    program = "import os\n" + body("while True:", "    try: os.fork()", "    except OSError: pass")
    with tempfile.TemporaryDirectory() as folder:
        assert sandbox._launch(program, QUICK, folder, layers)["status"] == "timed out"
    assert _none_remain()


def test_daemon_dies_with_its_namespace():
    """Where processes are possible, none of them outlives the program, whatever session it moves to."""
    if "namespaces" not in isolation_level().layers:
        pytest.skip("no namespaces here")
    lines = "if os.fork() == 0:", "    os.setsid()", "    time.sleep(1000)", "return 'parent'"
    with tempfile.TemporaryDirectory() as folder:
        reply = sandbox._launch("import os, time\n" + body(*lines), QUICK, folder, ("namespaces",))
    if os.getuid() == 0:  # an ordinary user's programs cannot fork even here
        assert reply["value"] == "'parent'"
    assert _none_remain()


@pytest.mark.parametrize(
    "layers, blocked",
    [
        (("landlock", "seccomp"), {"reading files", "writing files", "network", "processes", "signals"}),
        (("namespaces", "seccomp"), {"writing files", "network", "processes", "signals"}),
        (("seccomp",), {"writing files", "network", "processes", "signals"}),
        ((), set()),
    ],
)
def test_weaker_levels_are_measured_and_warned_about(layers, blocked, request):
    if not set(layers) <= set(isolation_level().layers):
        pytest.skip(f"{layers} cannot all be applied here")
    request.addfinalizer(sandbox._probe.cache_clear)
    weak = len(blocked) < 5
    with pytest.warns(RuntimeWarning, match="weak isolation") if weak else contextlib.nullcontext():
        level = sandbox._probe(layers)
    assert set(level.layers) == set(layers) and level.weak == weak
    assert set(level.blocked) >= blocked and ("reading files" in level.blocked) == ("landlock" in layers)
    assert level.name == ("+".join(layers) or "rlimits only")
    told = level.told.removeprefix(level.name)  # what a record says
    assert ("limits of time and memory hold" in told and "reading files" in told) == ("landlock" not in layers) or not weak
    assert weak or told == ""


def test_without_any_layer_time_memory_and_what_is_believed_hold():
    """As the records of such a machine and the README say."""
    endless, large = body("while True: pass"), body("return len(bytearray(1 << 30))")
    claim = b'{"status": "ok", "value": "42"}'
    forged = body("import os", f"[os.write(3, {claim!r}) for _ in range(9)]", "os._exit(0)")
    with tempfile.TemporaryDirectory() as folder:
        replies = [sandbox._launch(program, QUICK, folder, ()) for program in (endless, large, forged)]
    assert [reply["status"] for reply in replies] == ["timed out", "raised", "raised"]
    assert "MemoryError" in replies[1]["message"] and all(reply["layers"] == [] for reply in replies)


def test_a_layer_that_fails_later_gives_unscored(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation_level", lambda: Isolation(("landlock", "imagined"), 7, ()))
    outcome = run_program(body("return 1"))
    assert outcome.status == "unscored" and "imagined" in outcome.message


def test_a_broken_launcher_gives_unscored(monkeypatch, tmp_path):
    isolation_level()
    broken = tmp_path / "_launcher.py"
    broken.write_text("raise RuntimeError('no memory')\n")
    monkeypatch.setattr(sandbox, "_LAUNCHER", broken)
    outcome = run_program(body("return 1"))
    assert outcome.status == "unscored" and "no memory" in outcome.message


def test_killed_run_takes_its_programs_along():
    script = f"""
import sys, tempfile
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
tempfile.tempdir = {tempfile.gettempdir()!r}
from lab.evaluation.sandbox import run_programs
run_programs(["def solution():\\n    import time\\n    time.sleep(1000)\\n"] * 2, workers=2)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + PATIENCE
        while len(_launchers()) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        started = len(_launchers())
        process.kill()
    assert started == 6  # two launchers, each with its watcher and its program
    assert _none_remain()
    for folder in Path(tempfile.gettempdir()).iterdir():
        folder.rmdir()  # an empty folder is all that a kill leaves


def test_many_at_once_from_other_threads_with_progress():
    results, reports = {}, []

    def work(name: int) -> None:
        programs = [body(f"return {name} * 1000 + {n}") for n in range(20)]
        results[name] = run_programs(programs, workers=4, progress=lambda *report: reports.append(report))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, outcomes in results.items():
        assert [outcome.value for outcome in outcomes] == [str(name * 1000 + n) for n in range(20)]
    assert len(results) == 3 and reports.count((20, 20)) == 3 and len(reports) == 60


def test_interrupted_run_raises_and_cleans_up():
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_programs([body("return 1")] * 6, workers=1, progress=stop)


def test_no_listener_is_reached(strong):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        assert (
            run_program("import socket\n" + body(f"socket.create_connection(('127.0.0.1', {port}))")).status
            == "not permitted"
        )
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    "bad", [{"wall_seconds": 0}, {"cpu_seconds": 1.5}, {"memory_mb": -1}, {"open_files": True}]
)
def test_bad_limits(bad):
    with pytest.raises(LabError, match=next(iter(bad))):
        Limits(**bad)


def test_bad_input():
    with pytest.raises(LabError, match="Program 1 must be Python source text"):
        run_programs([body("return 1"), None])
    with pytest.raises(LabError, match="workers"):
        run_programs([], workers=0)
    assert run_programs([]) == []


def test_imports_without_torch():
    script = "import sys; from lab.evaluation import scorers, statistics; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 0
