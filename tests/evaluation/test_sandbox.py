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

QUICK = Limits(cpu_seconds=1, memory_mb=96)
PATIENCE = 60  # seconds for processes to come and go on a loaded machine


def _launchers() -> list[str]:
    """Living launchers and programs of this test module: their folders are in its own temporary folder."""
    own, entries = tempfile.gettempdir().encode(), Path("/proc").glob("[0-9]*")
    return [
        entry.name for entry in entries if own in (line := _read(entry / "cmdline")) and b"_launcher" in line
    ]


def _none_remain() -> bool:
    deadline = time.monotonic() + PATIENCE
    while _launchers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _launchers()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


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
    "closes all and loops": (body("import os", "os.closerange(0, 100)", "while True: pass"), "raised"),
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


ESCAPES = {
    "reads /etc/passwd": "open('/etc/passwd').read()",
    "lists the home folder": "os.listdir(os.path.expanduser('~root') if os.getuid() == 0 else '/home')",
    "reads the project": f"open({__file__!r}).read()",
    "reads another environment": f"open('/proc/{os.getpid()}/environ').read()",
    "writes to /tmp": "open('/tmp/sandbox-escaped', 'w')",
    "makes a folder": "os.mkdir('/tmp/sandbox-escaped')",
    "climbs out": "open('../sandbox-escaped', 'w')",
    "links out": "os.symlink('/etc', 'etc') or os.listdir('etc/ssl')",
    "changes attributes": f"os.chmod({__file__!r}, 0o644)",
    "changes times": f"os.utime({__file__!r})",
    "removes a file": f"os.remove({__file__!r})",
    "cuts Python's own file": "os.truncate(os.__file__, 0)",
    "opens a socket": "socket.socket()",
    "opens a local socket": "socket.socket(socket.AF_UNIX)",
    "forks": "os.fork()",
    "starts a thread": "threading.Thread(target=print).start()",
    "runs a command": "subprocess.run(['/bin/true'])",
    "kills the parent": f"os.kill({os.getpid()}, 9)",
    "kills everybody": "os.kill(-1, 9)",
    "kills its launcher": "os.kill(os.getppid() or 1, 9)",
    "limits the parent": f"resource.prlimit({os.getpid()}, resource.RLIMIT_CPU, (1, 1))",
    "slows the user": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "mounts": "ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, None) and os.stat('/nowhere')",
    "shares memory": "ctypes.CDLL(None).shmget(0, 4096, 0o1666) < 0 and os.stat('/nowhere')",
    "fills the disk": "[open(f'{n}', 'wb').write(bytes(15 << 20)) for n in range(9)]",
    "fills the inodes": "[open(f'{n}', 'wb').close() for n in range(9999)]",
    "opens many files": "[os.open(os.__file__, os.O_RDONLY) for n in range(99)]",
}


def test_escapes_fail(strong):
    imports = "import ctypes, os, resource, socket, subprocess, threading\n"
    outcomes = run_programs(
        [imports + body(f"return {attempt}") for attempt in ESCAPES.values()], limits=QUICK
    )
    assert {name: o.status for name, o in zip(ESCAPES, outcomes, strict=True)} == dict.fromkeys(
        ESCAPES, "raised"
    ), outcomes
    assert not Path("/tmp/sandbox-escaped").exists()


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
    assert run_program(body("import lab")).status == "raised"


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
        while len(_launchers()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        started = len(_launchers())
        process.kill()
    assert started == 4  # two launchers, each with its program
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
            == "raised"
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
