"""Runs one untrusted program. Started by sandbox.py as `python -I -S -B _launcher.py FOLDER`, never imported.

Reads one JSON request from standard input and writes one JSON reply to standard output. Three processes:
  launcher   enters the namespaces, starts the watcher there and waits; whoever kills it ends all three
  watcher    keeps the clock, gives the verdict and writes the reply; the first process of the process namespace
  child      gives up everything it can and then runs the program
Neither the launcher nor the watcher runs a line of the program.

What is believed: the status of a child that ended by itself, in time and with status 0, and that reported once. The
report stands between two copies of a token that the watcher draws after the child was forked and that no frame, no
container and no variable of the child holds, so that a program which finds the channel cannot report before its
solution() has returned. A program that reads its own memory can; it gains nothing, since it may choose its value anyway
and cannot go on afterwards: what loops, crashes or leaves with another status is not believed.

Layers, each used where the kernel allows it:
  namespaces  own users, processes, network, IPC and mounts; the working folder is a small tmpfs that vanishes
  landlock    only Python's own folders can be read, only the tmpfs written; no TCP, no signals to others
  seccomp     only the calls that Python, its library and the offered packages need; no sockets, processes, threads,
              signals, locks, file attributes, watches, timers or keys
Where a layer is missing, these still hold:
  no namespaces   nothing can be written (seccomp); the child dies with its watcher, since prctl is refused
  no landlock     files can be read, but not written, and nothing read can leave except as the value
  no seccomp      the network and processes of the namespace are empty, but sockets with a path can be reached, and
                  attributes, locks and watches of readable files are open to the program
  none of them    limits on time, memory, files and what is counted per user, and the rules of belief; an ordinary
                  user's program can start no process, root's can, and one that changes its session may survive
Numbers are those of the Linux UAPI headers, (x86_64, aarch64).
"""

import contextlib
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import types

try:
    import ctypes

    LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
except (ImportError, OSError):
    LIBC = None

MACHINE = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
AUDIT_ARCH = (0xC000003E, 0xC00000B7)
CLONE_NEWUSER = 0x10000000
CLONE_NEW_REST = 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000  # network, processes, IPC, mounts
TOKEN_BYTES = 32
FIRST_FREE = 64  # a descriptor above all that are open before the program runs
STATUSES = "ok", "raised", "not permitted", "module not offered", "syntax error", "no code"
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

# fmt: off
# Measured over GSM-Hard's reference programs, every module of the standard library, numpy and sympy, and the forms of the
# same calls that other C libraries use. In this order: descriptors, looking at files, memory, signals of its own,
# clocks, who and where it is, the end.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "close": (3, 57), "lseek": (8, 62), "dup": (32, 23), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17),
    "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "brk": (12, 214), "futex": (202, 98),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "getrusage": (98, 165),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getcpu": (309, 168),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "getrlimit": (97, 163), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
}
ALLOWED_IN_OWN_FOLDER = {
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "ftruncate": (77, 46), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276),
}
# Allowed for some arguments: (which argument, which of its 32-bit halves, bits looked at, values allowed).
EVERY_BIT = 0xFFFFFFFF
ALLOWED_FOR = {
    "ioctl": ((16, 29), [(1, 0, EVERY_BIT, (0x5401, 0x5413, 0x5450, 0x5451))]),  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX
    "fcntl": ((72, 25), [(1, 0, EVERY_BIT, (0, 1, 2, 3, 1030))]),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    "mmap": ((9, 222), [(3, 0, 0x40000, (0,))]),  # no MAP_HUGETLB: its pages are few, and the machine's
    "madvise": ((28, 233), [(2, 0, EVERY_BIT, (4, 8, 14))]),  # MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE
    # Only to look, and only at its own: the new limit is the null pointer.
    "prlimit64": ((302, 261), [(0, 0, EVERY_BIT, (0,)), (2, 0, EVERY_BIT, (0,)), (2, 1, EVERY_BIT, (0,))]),
}
# fmt: on
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
READING_FOR = {"open": ((2, None), [(1, 0, WRITING_FLAGS, (0,))]), "openat": ((257, 56), [(2, 0, WRITING_FLAGS, (0,))])}
SHARED_NUMBERS = 424  # the same on all machines from here on; absent, as on an old kernel: libc falls back


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system_call(number: int, *arguments) -> int:
    return checked(
        LIBC.syscall(
            ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
        )
    )


def prctl(option: int, *arguments) -> None:
    values = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    checked(LIBC.prctl(option, *values, *[ctypes.c_ulong(0)] * (4 - len(values))))


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    try:
        return system_call(444, 0, 0, 1) if LIBC else 0
    except OSError:
        return 0


def enter_namespaces(folder: str, megabytes: int) -> None:
    """Processes forked from now on live in namespaces of their own, with an empty tmpfs as their folder."""
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEW_REST) == 0:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    else:
        checked(LIBC.unshare(CLONE_NEW_REST))
    recursive_private, nosuid_nodev_noexec = 0x4000 | 0x40000, 2 | 4 | 8
    checked(LIBC.mount(b"none", b"/", None, ctypes.c_ulong(recursive_private), None))
    options = f"size={megabytes}m,nr_inodes=1000,mode=700".encode()
    checked(LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(nosuid_nodev_noexec), options))
    os.chdir(folder)


def restrict_files(writable: str | None, packages: dict[str, str]) -> None:
    """Landlock: read Python's installation, the system's libraries and the packages, write below `writable`, no more."""
    abi = landlock_abi()
    if not abi:
        raise OSError("no Landlock")
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    # What to forbid: file rights; bind and connect of TCP; abstract sockets and signals to other processes.
    fields = [everything] + [3] * (abi >= 4) + [3] * (abi >= 6)
    rules = system_call(444, struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields), 0)
    read_file, read_folder, write_file = 4, 8, 2
    libraries = "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"
    folders = [*sys.path, os.path.join(sys.base_prefix, "lib"), *libraries]
    for folder in map(os.path.dirname, packages.values()):
        folders += [folder, folder + ".libs"]  # wheels put the shared libraries that they bring beside the package
    grants = {path: read_file | read_folder for path in folders}
    grants |= {"/etc/ld.so.cache": read_file, "/etc/localtime": read_file, "/dev/urandom": read_file}
    grants["/dev/null"] = read_file | write_file
    if writable:
        grants[writable] = everything
    for path, rights in grants.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= ~read_folder
            system_call(445, rules, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    system_call(446, rules, 0)
    os.close(rules)


def restrict_calls(read_only: bool) -> None:
    """seccomp: what is not listed fails with EPERM, foreign machine code dies; `read_only`: no changing of files."""
    if MACHINE is None:
        raise OSError("no system call table for this machine")
    load, mask, jump_equal, jump_from, give = 0x20, 0x54, 0x15, 0x35, 0x06
    allow, kill, no_permission, no_such_call = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    steps = [(load, 0, 0, 4), (jump_equal, 1, 0, AUDIT_ARCH[MACHINE]), (give, 0, 0, kill), (load, 0, 0, 0)]
    whole = ALLOWED if read_only else ALLOWED | ALLOWED_IN_OWN_FOLDER
    for numbers in whole.values():
        if numbers[MACHINE] is not None:
            steps += [(jump_equal, 0, 1, numbers[MACHINE]), (give, 0, 0, allow)]
    for numbers, conditions in (ALLOWED_FOR | READING_FOR if read_only else ALLOWED_FOR).values():
        if numbers[MACHINE] is None:
            continue
        tests = []
        for argument, half, bits, values in conditions:
            tests += [(load, 0, 0, 16 + 8 * argument + 4 * half), (mask, 0, 0, bits)]
            tests += [(jump_equal, len(values) - place, 0, value) for place, value in enumerate(values)]
            tests.append((give, 0, 0, no_permission))
        tests.append((give, 0, 0, allow))
        steps += [(jump_equal, 0, len(tests), numbers[MACHINE]), *tests]
    steps += [(jump_from, 0, 1, SHARED_NUMBERS), (give, 0, 0, no_such_call), (give, 0, 0, no_permission)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    prctl(PR_SET_SECCOMP, 2, struct.pack("@HP", len(steps), ctypes.addressof(code)))


def give_up_privileges() -> None:
    """No way back up: no new privileges, and none of root's capabilities."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    checked(LIBC.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)))


def limit_resources(request: dict, file_bytes: int) -> None:
    """Every limit is also the hard one. One that cannot be set is lower already, or absent (macOS)."""
    amounts = {
        "CORE": 0, "CPU": request["cpu_seconds"], "FSIZE": file_bytes, "NOFILE": request["open_files"],
        "AS": request["memory_mb"] << 20,
        # What the kernel counts per user, so that one program could use up another's share.
        "NPROC": 0, "SIGPENDING": 0, "MSGQUEUE": 0, "MEMLOCK": 0,
    }  # fmt: skip
    for name, amount in amounts.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (amount, amount))


def confine(request: dict, layers: list[str]) -> list[str]:
    """Apply what was asked for, in an order in which no layer hinders the next; the layers in force."""
    # Before ABI 3 Landlock cannot stop a readable file from being cut, so nothing at all may be written.
    guarded = "namespaces" in layers and "landlock" in request["layers"] and landlock_abi() >= 3
    writable = request["folder"] if guarded else None
    limit_resources(request, request["file_mb"] << 20 if writable else 0)
    if LIBC:
        give_up_privileges()
        for name, apply in (
            ("landlock", lambda: restrict_files(writable, request["packages"])),
            ("seccomp", lambda: restrict_calls(not writable)),
        ):
            if name in request["layers"]:
                with contextlib.suppress(OSError):
                    apply()
                    layers = [*layers, name]
    return layers


def show(value: object, depth: int = 0) -> str:
    """repr of plain values by the types' own code, never a program's __repr__; otherwise the type's name."""
    kind = type(value)
    if depth > 50:
        return "<nested too deep>"
    if value is None or kind is bool:
        return repr(value)
    if issubclass(kind, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits < 10_000 else f"<int of {bits} bits>"
    for base in (float, complex, str, bytes):
        if issubclass(kind, base):
            return base.__repr__(value)
    if kind.__module__ in ("decimal", "fractions"):
        return repr(float(value))
    if kind.__module__ == "numpy":
        return show(value.tolist(), depth + 1)
    if kind.__module__.startswith("sympy.") and getattr(value, "is_number", False) and value.is_real:
        return repr(int(value) if value.is_Integer else float(value))
    if kind.__module__ == "datetime":
        return str(value).__repr__()
    if issubclass(kind, dict):
        items = [f"{show(key, depth + 1)}: {show(item, depth + 1)}" for key, item in dict.items(value)]
        return "{" + ", ".join(items) + "}"
    if issubclass(kind, list):
        return "[" + ", ".join([show(v, depth + 1) for v in list.__iter__(value)]) + "]"
    if issubclass(kind, tuple):
        items = [show(v, depth + 1) for v in tuple.__iter__(value)]
        return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
    for base in (set, frozenset):  # sorted: the order of a set differs from run to run
        if issubclass(kind, base):
            items = sorted(show(v, depth + 1) for v in base.__iter__(value))
            return "{" + ", ".join(items) + "}" if items else "set()"
    return f"<{type_name(value)}>"


def type_name(value: object) -> str:
    return type.__dict__["__name__"].__get__(type(value))[:100]


def describe(error: BaseException) -> str:
    try:
        return f"{type_name(error)}: {error}"[:300]
    except BaseException:  # the program's own __str__ may raise anything
        return type_name(error)


def failure(error: BaseException, packages: dict[str, str]) -> dict:
    """A program that failed: for want of a module, for want of a right, or by itself."""
    message, status = describe(error), "raised"
    if type(error) is ModuleNotFoundError and type(error.name) is str:
        if error.name.partition(".")[0] not in sys.stdlib_module_names | packages.keys():
            status = "module not offered"
            message = f"{message[:200]}; offered: {', '.join(['the standard library', *packages])}"
    elif isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        status = "not permitted"
    elif type(error) is RuntimeError and error.args == ("can't start new thread",):
        status = "not permitted"
    return {"status": status, "message": message}


class Packages:
    """Finds the offered packages, and nothing else that is installed beside them."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in self.packages:
            return None
        from importlib.util import spec_from_file_location  # most programs import none

        place = self.packages[name]
        return spec_from_file_location(name, place, submodule_search_locations=[os.path.dirname(place)])


def run(program: str, value_chars: int, packages: dict[str, str]) -> dict:
    """Compile the program, call its solution() and describe what came of it."""
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return {"status": "syntax error", "message": describe(error)}
    sys.meta_path.append(Packages(packages))
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(code, module.__dict__)
        if "solution" not in module.__dict__:
            return {"status": "no code", "message": "the program defines no solution()"}
        value = module.__dict__["solution"]()
        text = show(value)
        if len(text) > value_chars:
            text = f"<{type_name(value)} of {len(text)} characters>"
        return {"status": "ok", "value": text}
    except BaseException as error:  # SystemExit and KeyboardInterrupt too are the program's own failure
        return failure(error, packages)


def report(request: dict, tokens: int):
    """Yields the program's result between two empty pieces; whoever joins them puts its token around it."""
    os.close(tokens)
    yield b""
    yield json.dumps(run(request["program"], request["value_chars"], request["packages"])).encode()
    yield b""


def child(request: dict, layers: list[str], watcher: int, channel: int, tokens: int) -> None:
    """Confine this process, say how well that went, run the program, say what came of it. Never returns."""
    try:
        os.setsid()
        if LIBC:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != watcher:
            return  # it ended before the line above
        nothing = os.open(os.devnull, os.O_RDWR)
        for place, descriptor in enumerate((nothing, nothing, nothing, channel, tokens)):
            os.dup2(descriptor, FIRST_FREE + place)
        for place in range(5):
            os.dup2(FIRST_FREE + place, place)
        os.closerange(5, FIRST_FREE + 5)
        channel, tokens = 3, 4
        layers = confine(request, layers)
        os.write(channel, json.dumps({"layers": layers}).encode() + b"\n")
        if not request["strict"] or set(layers) == set(request["layers"]):
            # The token is never a variable: join holds it while the program runs, where no frame shows it.
            os.write(channel, os.read(tokens, TOKEN_BYTES).join(report(request, tokens)))
        os._exit(0)
    finally:
        os._exit(1)


def watch(request: dict, layers: list[str], launcher: int) -> dict:
    """Fork the child, watch the clock and the launcher, kill what is left, and turn what was seen into a reply."""
    if LIBC:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel, theirs = os.pipe()
    tokens, ours = os.pipe()
    started = time.monotonic()
    watcher, process = os.getpid(), os.fork()
    if process == 0:
        child(request, layers, watcher, theirs, tokens)
    os.close(theirs)
    token = os.urandom(TOKEN_BYTES // 2).hex().encode()
    os.write(ours, token)
    seen, room, usage, gone = b"", 16 * request["value_chars"] + 65536, None, False
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(launcher, 0)  # its end is reported without being asked for
    patience = 50  # milliseconds between looks for the end of a child whose channel another process holds open
    os.set_blocking(channel, False)
    while usage is None and not gone and len(seen) < room:
        left = started + request["wall_seconds"] - time.monotonic()
        if left <= 0:
            break
        gone = launcher in dict(poll.poll(min(patience, 1000 * left)))
        reaped, status, ended = os.wait4(process, os.WNOHANG)  # before the last look at the channel
        usage = ended if reaped else None
        with contextlib.suppress(BlockingIOError):
            while patience > 1 and len(seen) < room:
                data = os.read(channel, 65536)
                seen += data
                if not data:  # it is ending, or has closed its channel and goes on
                    poll.unregister(channel)
                    patience = 1
    by_itself = usage is not None
    # The group too, since a weak level lets the program fork; its number stays taken while it has a member.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    if not by_itself:
        os.kill(process, signal.SIGKILL)
    if gone:
        os._exit(1)
    if not by_itself:
        _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    header, newline, report = seen.partition(b"\n")
    if not newline:
        return {"status": "unscored", "message": "the sandbox could not confine the program"}
    layers = json.loads(header)["layers"]
    reply = {"seconds": seconds, "layers": layers, "landlock_abi": landlock_abi()}
    if request["strict"] and set(layers) != set(request["layers"]):
        message = f"only {layers} of {request['layers']} could be applied"
        return reply | {"status": "unscored", "message": message}
    if not by_itself and len(seen) < room:
        return reply | {"status": "timed out", "message": f"no result within {request['wall_seconds']:g} s"}
    return reply | verdict(request, report, token, status, usage.ru_utime + usage.ru_stime)


def verdict(request: dict, report: bytes, token: bytes, status: int, cpu_seconds: float) -> dict:
    """What became of a program that ended in time: from its report if it is whole, else from the way it ended."""
    if status == 0 and report.startswith(token) and report.endswith(token) and report.count(token) == 2:
        with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError, RecursionError):
            claim = json.loads(report.removeprefix(token).removesuffix(token))
            if claim["status"] in STATUSES:
                value, message = str(claim.get("value", "")), str(claim.get("message", ""))
                reply = {"status": claim["status"], "value": value, "message": message[:300]}
                return reply if len(value) <= request["value_chars"] else reply | {"value": "<too long>"}
    if os.WIFSIGNALED(status):
        # The kernel's clock for the limit is not the one it reports; on virtual machines they differ a lot.
        if cpu_seconds >= 0.5 * request["cpu_seconds"]:
            return {"status": "timed out", "message": f"used its {request['cpu_seconds']} s of CPU time"}
        return {"status": "raised", "message": f"killed by {signal.Signals(os.WTERMSIG(status)).name}"}
    return {"status": "raised", "message": "the program ended without returning a value"}


def launch(request: dict) -> int:
    """Start the watcher, in namespaces where that was asked for and is possible; its exit status."""
    if LIBC:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        return 1  # it ended before the line above
    layers = []
    if LIBC and "namespaces" in request["layers"]:
        with contextlib.suppress(OSError):
            enter_namespaces(request["folder"], request["file_mb"])
            layers.append("namespaces")
    watched, held = os.pipe()  # `held` closes when this process ends, however it does
    watcher = os.fork()
    if watcher == 0:
        os.close(held)
        sys.stdout.write(json.dumps(watch(request, layers, watched)))
        sys.stdout.flush()
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1])


if __name__ == "__main__":
    sys.exit(launch(json.load(sys.stdin) | {"folder": sys.argv[1]}))
