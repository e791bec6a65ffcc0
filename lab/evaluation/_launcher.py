"""Runs one untrusted program. Started by sandbox.py as `python -I -S -B _launcher.py FOLDER`, never imported.

Reads one JSON request from standard input and writes one JSON reply to standard output. Two processes: this
one supervises (clock, kill, verdict) and never runs a line of the program; its forked child gives up
everything it can and then runs it. The child may lie about its value, which it may choose anyway, but not
about time, memory or the way it died.

Layers, each used where the kernel allows it:
  namespaces  own users, processes, network, IPC and mounts; the working folder is a small tmpfs that vanishes
  landlock    only Python's own folders can be read, only the tmpfs written; no TCP, no signals to others
  seccomp     no sockets, processes, threads, signals, file attributes, kernel administration
Resource limits hold everywhere. Numbers are those of the Linux UAPI headers, (x86_64, aarch64).
"""

import contextlib
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
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

# fmt: off
# In this order: network, processes and threads, other processes, lasting things, attributes, the kernel.
DENIED = {
    "socket": (41, 198), "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281), "setsid": (112, 157), "setpgid": (109, 154), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239), "kcmp": (312, 272),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "io_setup": (206, 0), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "personality": (135, 92), "acct": (163, 89), "quotactl": (179, 60), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "syslog": (103, 116), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58),
}
DENIED_WHEN_READ_ONLY = {
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "mknod": (133, None), "mknodat": (259, 33),
}
# fmt: on
OPEN = {(2, None): 1, (257, 56): 2}  # open, openat: which argument holds the flags
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SHARED_NUMBERS = 424  # the same on all machines from here on; "absent", as on an old kernel: libc falls back


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


def restrict_files(writable: str | None) -> None:
    """Landlock: read Python's installation and the system's libraries, write below `writable`, no more."""
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
    """seccomp: denied calls fail with EPERM, foreign machine code dies; `read_only`: no changing of files."""
    if MACHINE is None:
        raise OSError("no system call table for this machine")
    load, jump_equal, jump_from, jump_mask, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, no_permission, no_such_call = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    steps = [(load, 0, 0, 4), (jump_equal, 1, 0, AUDIT_ARCH[MACHINE]), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(jump_from, 0, 1, SHARED_NUMBERS), (give, 0, 0, no_such_call)]
    for numbers in [*DENIED.values(), *(DENIED_WHEN_READ_ONLY.values() if read_only else ())]:
        if numbers[MACHINE] is not None:
            steps += [(jump_equal, 0, 1, numbers[MACHINE]), (give, 0, 0, no_permission)]
    for numbers, argument in OPEN.items() if read_only else ():
        if numbers[MACHINE] is not None:
            steps += [(jump_equal, 0, 4, numbers[MACHINE]), (load, 0, 0, 16 + 8 * argument)]
            steps += [(jump_mask, 0, 1, WRITING_FLAGS), (give, 0, 0, no_permission), (load, 0, 0, 0)]
    steps.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    prctl(PR_SET_SECCOMP, 2, struct.pack("@HP", len(steps), ctypes.addressof(code)))


def give_up_privileges() -> None:
    """No way back up: no new privileges, and none of root's capabilities."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    checked(LIBC.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)))


def limit_resources(request: dict, file_bytes: int) -> None:
    """Every limit is also the hard one. One that cannot be set is lower already, or absent (macOS)."""
    memory = request["memory_mb"] << 20
    for limit, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, request["open_files"]),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, memory),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (amount, amount))


def confine(request: dict, layers: list[str]) -> list[str]:
    """Apply what was asked for, in an order in which no layer hinders the next; the layers in force."""
    # Before ABI 3 Landlock cannot stop a readable file from being cut, so nothing at all may be written.
    guarded = "namespaces" in layers and "landlock" in request["layers"] and landlock_abi() >= 3
    writable = request["folder"] if guarded else None
    limit_resources(request, request["file_mb"] << 20 if writable else 0)
    if LIBC:
        give_up_privileges()
        for name, apply in (
            ("landlock", lambda: restrict_files(writable)),
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


def run(program: str, value_chars: int) -> dict:
    """Compile the program, call its solution() and describe what came of it."""
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return {"status": "syntax error", "message": describe(error)}
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
        return {"status": "raised", "message": describe(error)}


def child(request: dict, layers: list[str], channel: int, token: bytes) -> None:
    """Confine this process, say how well that went, run the program, say what came of it. Never returns."""
    try:
        os.setsid()
        if LIBC:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.close(nothing)
        layers = confine(request, layers)
        os.write(channel, token + json.dumps({"layers": layers}).encode() + b"\n")
        if not request["strict"] or set(layers) == set(request["layers"]):
            line = token + json.dumps(run(request["program"], request["value_chars"])).encode()
            while line:
                line = line[os.write(channel, line) :]
    finally:
        os._exit(0)


def supervise(request: dict) -> dict:
    """Fork the child, watch the clock, kill what is left, and turn what was seen into a reply."""
    if LIBC:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    layers = []
    if LIBC and "namespaces" in request["layers"]:
        with contextlib.suppress(OSError):
            enter_namespaces(request["folder"], request["file_mb"])
            layers.append("namespaces")
    token = os.urandom(16).hex().encode()
    ours, theirs = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(ours)
        child(request, layers, theirs, token)
    os.close(theirs)
    seen, room, late = b"", 16 * request["value_chars"] + 65536, False
    poll = select.poll()
    poll.register(ours, select.POLLIN | select.POLLHUP)
    while len(seen) < room:
        left = started + request["wall_seconds"] - time.monotonic()
        late = left <= 0 or not poll.poll(1000 * left)
        data = b"" if late else os.read(ours, 65536)
        if not data:
            break
        seen += data
    # The group too, since a weak level lets the program fork. Until wait4 its number belongs to nobody else.
    for kill in os.killpg, os.kill:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    header, _, rest = seen.partition(b"\n")
    if not header.startswith(token):
        return {"status": "unscored", "message": "the sandbox could not confine the program"}
    layers = json.loads(header[len(token) :])["layers"]
    reply = {"seconds": seconds, "layers": layers, "landlock_abi": landlock_abi()}
    if request["strict"] and set(layers) != set(request["layers"]):
        message = f"only {layers} of {request['layers']} could be applied"
        return reply | {"status": "unscored", "message": message}
    return reply | verdict(request, rest, token, late, status, usage.ru_utime + usage.ru_stime)


def verdict(request: dict, rest: bytes, token: bytes, late: bool, status: int, cpu_seconds: float) -> dict:
    """What became of the program, from its one line, if it is whole, or else from the way it ended."""
    if rest.startswith(token):
        with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError, RecursionError):
            claim = json.loads(rest[len(token) :])
            if claim["status"] in ("ok", "raised", "syntax error", "no code"):
                value, message = str(claim.get("value", "")), str(claim.get("message", ""))
                reply = {"status": claim["status"], "value": value, "message": message[:300]}
                return reply if len(value) <= request["value_chars"] else reply | {"value": "<too long>"}
    if late:
        return {"status": "timed out", "message": f"no result within {request['wall_seconds']:g} s"}
    if os.WIFSIGNALED(status):
        # The kernel's clock for the limit is not the one it reports; on virtual machines they differ a lot.
        if cpu_seconds >= 0.5 * request["cpu_seconds"]:
            return {"status": "timed out", "message": f"used its {request['cpu_seconds']} s of CPU time"}
        return {"status": "raised", "message": f"killed by {signal.Signals(os.WTERMSIG(status)).name}"}
    return {"status": "raised", "message": "the program ended without returning a value"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(supervise(json.load(sys.stdin) | {"folder": sys.argv[1]})))
