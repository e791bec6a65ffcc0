"""Hostile programs against the sandbox: `python -m tests.campaigns.sandbox [LAYER ...]` (default: all that the machine has).

Prints how many were tried; how many escaped (did something that must not be possible, or changed or reached one of the
canaries laid out for them); how many processes survived the kill of their launcher; and how many were believed although
their solution() never returned. Exits with 1 if any of these is not zero.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lab.evaluation import sandbox
from lab.evaluation.sandbox import Limits, isolation_level
from lab.files import PROJECT
from tests.campaigns import attacks

QUICK = Limits(cpu_seconds=1, memory_mb=256, wall_seconds=5.0)
PATIENCE = 60  # seconds for processes to come and go on a loaded machine
MACHINE = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)

# Calls made by their number, (x86_64, aarch64), with arguments that would often be good: reaching the kernel is an escape.
# fmt: off
CALLS = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvfrom": (45, 207), "recvmsg": (47, 212), "bind": (49, 200),
    "listen": (50, 201), "setsockopt": (54, 208), "clone": (56, 220), "fork": (57, None), "vfork": (58, None),
    "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157), "setpgid": (109, 154),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "prctl": (157, 167), "setrlimit": (160, 164),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "mbind": (237, 235), "set_mempolicy": (238, 237), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "semop": (65, 193), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10),
    "listxattr": (194, 11), "removexattr": (197, 14), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "flock": (73, 32),
    "timer_create": (222, 107), "timerfd_create": (283, 85), "setitimer": (38, 103), "alarm": (37, None),
    "eventfd2": (290, 19), "signalfd4": (289, 74), "epoll_create1": (291, 20), "truncate": (76, 45), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "openat2": (437, 437), "bpf": (321, 280),
    "seccomp": (317, 277), "landlock_create_ruleset": (444, 444), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_setup": (206, 0), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "personality": (135, 92), "acct": (163, 89),
    "quotactl": (179, 60), "swapon": (167, 224), "reboot": (169, 142), "sethostname": (170, 161),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58), "capset": (126, 91),
    "setuid": (105, 146), "setgroups": (116, 159), "sync": (162, 81), "syncfs": (306, 267), "mlockall": (151, 230),
    "splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "lookup_dcookie": (212, 18), "remap_file_pages": (216, 234), "x32 read": (0x40000000, None), "number 10000": (10000, 10000),
}
# fmt: on

PRELUDE = """
import builtins, ctypes, errno, fcntl, gc, mmap, os, resource, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
"""

# Each is the body of a function; True from it is an escape. The names in capitals are the canaries' places.
ESCAPES = {
    "reads the secret": "return bool(open(SECRET).read())",
    "reads the secret by a descriptor of its folder": "return os.open('secret', 0, dir_fd=os.open(FOLDER, os.O_PATH)) >= 0",
    "reads the secret through /proc/self/root": "return bool(open('/proc/self/root' + SECRET).read())",
    "maps the secret": "return bool(mmap.mmap(os.open(SECRET, 0), 0, prot=mmap.PROT_READ)[:])",
    "lists the canaries": "return bool(os.listdir(FOLDER))",
    "lists /proc": "return bool(os.listdir('/proc'))",
    "reads its own memory map": "return bool(open('/proc/self/maps').read())",
    "writes its own memory by a file": "return bool(open('/proc/self/mem', 'r+b'))",
    "reads the parent's environment": "return bool(open(f'/proc/{PARENT}/environ', 'rb').read())",
    "reads the first process's command": "return bool(open('/proc/1/cmdline').read())",
    "reads its mounts": "return bool(open('/proc/self/mountinfo').read())",
    "raises its own score for the killer": "open('/proc/self/oom_score_adj', 'w').write('-1000'); return True",
    "climbs out": "return bool(open('../sandbox-escaped', 'w'))",
    "lists the home folder": "return bool(os.listdir(os.path.expanduser('~root') if os.getuid() == 0 else '/home'))",
    "reads the project": f"return bool(open({__file__!r}).read())",
    "cuts Python's own file": "os.truncate(os.__file__, 0); return True",
    "reads accounts": "import pwd; return bool(pwd.getpwuid(os.getuid()))",
    "reads the kernel's log": "return bool(open('/dev/kmsg').read(1))",
    "opens a terminal": "return os.open('/dev/ptmx', os.O_RDWR) >= 0",
    "opens the controlling terminal": "return os.open('/dev/tty', os.O_RDWR) >= 0",
    "opens memory": "return os.open('/dev/mem', 0) >= 0",
    "opens fuse": "return os.open('/dev/fuse', os.O_RDWR) >= 0",
    "opens the virtual machines": "return os.open('/dev/kvm', os.O_RDWR) >= 0",
    "writes to shared memory": "return open('/dev/shm/sandbox-escaped', 'w').write('x') > 0",
    "names shared memory": """
from multiprocessing.shared_memory import SharedMemory
return bool(SharedMemory('sandbox-escaped', True, 9))""",
    "names a semaphore": "import multiprocessing; return bool(multiprocessing.Lock())",
    "appends to the canary": "return open(CANARY, 'a').write('x') > 0",
    "cuts the canary on opening": "return os.open(CANARY, os.O_RDONLY | os.O_TRUNC) >= 0",
    "cuts the canary": "os.truncate(CANARY, 0); return True",
    "removes the canary": "os.remove(CANARY); return True",
    "renames the canary": "os.rename(CANARY, CANARY + '2'); return True",
    "takes the canary in": "os.rename(CANARY, 'mine'); return True",
    "links the canary in": "os.link(CANARY, 'mine'); return True",
    "points at the canary": "os.symlink(CANARY, 'mine'); return bool(open('mine').read())",
    "puts a file beside the canary": "return open(FOLDER + '/new', 'w').write('x') > 0",
    "makes a nameless file outside": "return os.open(FOLDER, os.O_TMPFILE | os.O_RDWR) >= 0",
    "makes a pipe with a name": "os.mkfifo('pipe'); return True",
    "makes a socket with a name": "import stat; os.mknod('socket', stat.S_IFSOCK | 0o600); return True",
    "changes its mode": "os.chmod(CANARY, 0o777); return True",
    "changes its times": "os.utime(CANARY); return True",
    "sets an attribute": "os.setxattr(CANARY, 'user.x', b'x'); return True",
    "lists attributes": "os.listxattr(CANARY); return True",
    "reads an attribute": "return bool(os.getxattr(CANARY, 'user.canary'))",
    "changes inode flags": "f = os.open(os.__file__, 0); fcntl.ioctl(f, 0x40086602, struct.pack('l', 0)); return True",
    "reads inode flags": "f = os.open(os.__file__, 0); fcntl.ioctl(f, 0x80086601, bytes(8)); return True",
    "asks for a file's blocks": "f = os.open(os.__file__, 0); fcntl.ioctl(f, 0xC020660B, bytes(64)); return True",
    "freezes a file system": "f = os.open(os.path.dirname(os.__file__), 0); fcntl.ioctl(f, 0xC0045877, bytes(8)); return True",
    "types into a terminal": "fcntl.ioctl(0, 0x5412, b'x'); return True",
    "ioctl with high bits": """
f, flags = os.open(os.__file__, 0), ctypes.create_string_buffer(8)
return libc.ioctl(f, ctypes.c_ulong(1 << 32 | 0x80086601), flags) == 0""",
    "leases a library": "return fcntl.fcntl(os.open(os.__file__, 0), 1024, fcntl.F_RDLCK) == 0",
    "asks for news of a folder": "fcntl.fcntl(os.open(os.path.dirname(os.__file__), 0), 1026, 1); return True",
    "locks a library": "fcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX | fcntl.LOCK_NB); return True",
    "locks a part of a library": "fcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH | fcntl.LOCK_NB); return True",
    "locks by open file": "fcntl.fcntl(os.open(os.__file__, 0), 37, struct.pack('hhqqi', 0, 0, 0, 0, 0)); return True",
    "asks for signals of a file": "fcntl.fcntl(3, 8, os.getpid()); return True",
    "grows its pipe": "fcntl.fcntl(3, 1031, 1 << 20); return True",
    "seals": "fcntl.fcntl(3, 1033, 1); return True",
    "sends to a path": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', PATH); return True",
    "sends a descriptor to a path": """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
return socket.send_fds(a, [b'x'], [1], 0, PATH) > 0""",
    "sends to an abstract name": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', ABSTRACT); return True",
    "connects": "socket.create_connection(('127.0.0.1', PORT), 1); return True",
    "sends datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)); return True",
    "asks the kernel over netlink": "return bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))",
    "opens a kernel cipher": "return bool(socket.socket(38, socket.SOCK_SEQPACKET))",
    "opens a virtual socket": "return bool(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))",
    "forks": "os.fork(); return True",
    "forks a terminal": "import pty; pty.fork(); return True",
    "spawns": "return os.posix_spawn('/bin/true', ['true'], {}) > 0",
    "becomes another program": "os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
    "runs a file without a name": "f = os.memfd_create('x'); os.write(f, b'#!/bin/sh'); os.execv(f'/proc/self/fd/{f}', ['x'])",
    "runs a file of its own": "open('x', 'w').write('#!/bin/sh'); os.execv('./x', ['x'])",
    "starts a thread": "threading.Thread(target=print).start(); return True",
    "starts a thread below Python": "return libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.getpid, None) == 0",
    "shares its descriptors with a clone": "return libc.syscall(56, 0x400 | 17, 0, 0, 0, 0) > 0 if MACHINE == 0 else False",
    "asks for namespaces": "return libc.unshare(0x10000000) == 0",
    "enters a namespace": "return libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0",
    "kills the parent": "os.kill(PARENT, 0); return True",
    "kills everybody": "os.kill(-1, 0); return True",
    "kills its group": "os.killpg(0, signal.SIGCONT); return True",
    "kills its watcher": "os.kill(os.getppid(), 0); return True",
    "signals by descriptor": "signal.pidfd_send_signal(os.pidfd_open(PARENT), 0); return True",
    "outlives its parent": "return libc.prctl(1, 0, 0, 0, 0) == 0",
    "becomes a reaper": "return libc.prctl(36, 1, 0, 0, 0) == 0",
    "lets itself be traced": "return libc.prctl(0x59616D61, -1, 0, 0, 0) == 0",
    "traces": "return libc.ptrace(16, PARENT, 0, 0) == 0",
    "reads another's memory": """
b = ctypes.create_string_buffer(8)
v = struct.pack('PN', ctypes.addressof(b), 8)
return libc.process_vm_readv(PARENT, v, 1, v, 1, 0) > 0""",
    "raises its time": "resource.setrlimit(resource.RLIMIT_CPU, (99, 99)); return True",
    "limits the parent": "resource.prlimit(PARENT, resource.RLIMIT_CPU, (9, 9)); return True",
    "reads the parent's limits": "resource.prlimit(PARENT, resource.RLIMIT_CPU); return True",
    "raises its rank": "os.nice(-5); return True",
    "lowers the user's rank": "os.setpriority(os.PRIO_USER, os.getuid(), 19); return True",
    "leaves its processor": "os.sched_setaffinity(0, os.sched_getaffinity(0)); return True",
    "runs in real time": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); return True",
    "fills timers": "return call(222 if MACHINE == 0 else 107, 0, None, ctypes.create_string_buffer(8))",
    "watches files": "return libc.inotify_init1(0) >= 0",
    "keeps a key": "return call(248 if MACHINE == 0 else 217, b'user', b'sandbox', b'x', 1, -4)",
    "locks memory": "return libc.mlockall(1) == 0",
    "locks pages on mapping": "return libc.syscall(9, 0, 1 << 22, 3, 0x2022, -1, 0) != -1 if MACHINE == 0 else False",
    "takes huge pages": "return mmap.mmap(-1, 1 << 21, flags=0x40022, prot=3) is not None",
    "merges pages": "m = mmap.mmap(-1, 1 << 21); m.madvise(12); return True",
    "sends messages": "return libc.msgget(0, 0o1666) >= 0",
    "asks the performance counters": "return call(298 if MACHINE == 0 else 241, bytes(128), 0, -1, -1, 0)",
    "handles its page faults": "return call(323 if MACHINE == 0 else 282, 1)",
    "mounts": "return libc.mount(b'x', FOLDER.encode(), b'tmpfs', 0, None) == 0",
    "opens a tree": "return call(428, -100, FOLDER.encode(), 1)",
    "changes the root": "os.chroot('.'); return True",
    "turns off randomisation": "return libc.personality(0x40000) != -1",
    "gets capabilities back": "return libc.capset(struct.pack('=Ii', 0x20080522, 0), bytes([255]) * 24) == 0",
    "becomes another user": "os.setresuid(12345, 12345, 12345); return True",
    "names the machine": "socket.sethostname('x'); return True",
    "sets the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); return True",
    "fills the folder": "[open(f'{n}', 'wb').write(bytes(15 << 20)) for n in range(9)]; return True",
    "fills the inodes": "[open(f'{n}', 'wb').close() for n in range(9999)]; return True",
    "opens many files": "[os.open(os.__file__, 0) for n in range(99)]; return True",
    "imports the project": "import lab; return True",
    "imports what is beside the offered": "import torch; return True",
    "reads what is beside the offered": "import numpy; return bool(os.listdir(os.path.dirname(os.path.dirname(numpy.__file__))))",
    "writes into the offered": "import numpy; return open(numpy.__file__, 'a').write('x') > 0",
    "finds other descriptors": """
for place in range(4, 99):
    try: os.fstat(place)
    except OSError: continue
    return True""",
}

# Reports that answer 42 without solution() returning it, or that do not end well afterwards: 42 is never believed.
CLAIM = "b'{\"status\": \"ok\", \"value\": \"42\"}'"
WRITE_ALL = f"""
CLAIM = {CLAIM}
def write_all(token=b''):
    for place in range(64):
        try: os.write(place, token + {CLAIM} + token)
        except OSError: pass
def frames():
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back
"""
FORGED = {
    "writes and leaves": "write_all(); os._exit(0)",
    "writes and loops": "write_all()\nwhile True: pass",
    "writes and sleeps": "write_all(); time.sleep(1000)",
    "writes and crashes": "write_all(); ctypes.string_at(0)",
    "writes and aborts": "write_all(); os.abort()",
    "writes and raises": "write_all(); raise SystemExit(0)",
    "writes and leaves below Python": "write_all(); libc._exit(0)",
    "writes lines": f"os.write(3, {CLAIM} + b'\\n' + {CLAIM} + b'\\n'); os._exit(0)",
    "guesses an empty token": f"os.write(3, {CLAIM}); os._exit(0)",
    "token and channel by their names": """
for frame in frames():
    if {"token", "channel"} <= frame.f_locals.keys():
        os.write(frame.f_locals["channel"], frame.f_locals["token"] + %s)
while True: pass""" % CLAIM,
    "tokens in frames": """
for frame in frames():
    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
        if isinstance(value, (bytes, str)) and len(value) == 32:
            write_all(value if isinstance(value, bytes) else value.encode())
os._exit(0)""",
    "tokens in all objects": """
for thing in gc.get_objects():
    for value in gc.get_referents(thing):
        if type(value) is bytes and len(value) == 32:
            write_all(value)
os._exit(0)""",
    "tokens in frames' referents": """
for frame in frames():
    for value in gc.get_referents(frame):
        if type(value) is bytes:
            write_all(value)
os._exit(0)""",
    "joins the join": """
for thing in gc.get_objects():
    if type(thing) is list and thing == [b'']:
        thing.append(%s)
os._exit(0) if len(sys.argv) > 9 else None
return 7""" % CLAIM,
    "tokens left in pipes": """
import select
for place in range(64):
    try:
        if select.select([place], [], [], 0)[0]:
            write_all(os.read(place, 32))
    except (OSError, ValueError): pass
os._exit(0)""",
    "token from a profile": """
def profile(frame, event, what):
    token = getattr(what, '__self__', None)
    if type(token) is bytes:
        write_all(token)
        os._exit(0)
sys.setprofile(profile)
raise ValueError""",
    "token from a trace": """
def trace(frame, event, what):
    for value in frame.f_locals.values():
        if type(value) is bytes and len(value) == 32:
            write_all(value)
            os._exit(0)
    return trace
sys.settrace(trace)
for frame in frames(): frame.f_trace, frame.f_trace_opcodes = trace, True
raise ValueError""",
    "patches the exit to loop": """
def forever(*_):
    while True: pass
os._exit = sys.modules['__main__'].os._exit = forever
return 42""",
    "patches the exit to crash": "os._exit = lambda status: ctypes.string_at(0)\nreturn 42",
    "patches the exit to fail": "exit = os._exit\nos._exit = lambda status: exit(3)\nreturn 42",
    "patches the writer": "m = sys.modules['__main__']\nm.json.dumps = lambda reply: time.sleep(1000)\nreturn 7",
    "patches the writer to lengthen": "d = sys.modules['json'].dumps\nsys.modules['json'].dumps = lambda r: d(r) * 9\nreturn 7",
    "patches the shower": "def show(*_):\n    while True: pass\nsys.modules['__main__'].show = show\nreturn 42",
    "replaces the program": "sys.modules['__main__'].run = lambda *_: {'status': 'ok', 'value': '42'}\nraise ValueError",
    "calls the reporter itself": "m = sys.modules['__main__']\nos.write(3, b''.join(m.report(m.__dict__, 4)))\nos._exit(0)",
    "starts the child again": "m = sys.modules['__main__']\nm.child(m.request, [], 0, 3, 4)",
    "dies while being deleted": "class D:\n    def __del__(self): raise SystemExit(0)\nx = D()\nwrite_all()\nraise ValueError",
    "leaves by atexit": "import atexit\natexit.register(write_all)\nsys.exit(0)",
    "leaves through the watcher's frame": "write_all()\nfor frame in frames(): frame.f_trace_lines = True\nraise GeneratorExit",
    "is a generator": "write_all()\nyield 42",
    "closes the channel and loops": "write_all(); os.closerange(0, 64)\nwhile True: pass",
    "closes the channel and sleeps": "write_all(); os.closerange(0, 64); time.sleep(1000)",
    "puts a file in the channel's place": "f = os.open('x', os.O_RDWR | os.O_CREAT); call(33, f, 3); write_all(); os._exit(0)",
    "floods": "while True: write_all(b'x' * 32)",
}

# Bodies that run until they are killed, and would live on.
SURVIVORS = {
    "sleeps": "time.sleep(1000)",
    "forgets its parent": "libc.prctl(1, 0, 0, 0, 0); time.sleep(1000)",
    "forgets its parent and closes all": "libc.prctl(1, 0, 0, 0, 0); os.closerange(0, 64); time.sleep(1000)",
    "leaves its session": "libc.setsid(); libc.prctl(1, 0, 0, 0, 0); time.sleep(1000)",
    "ignores signals": "[libc.signal(n, 1) for n in range(1, 65)]; time.sleep(1000)",
    "blocks signals": "signal.pthread_sigmask(0, range(1, 65)); time.sleep(1000)",
    "forks twice": "\nfor _ in 'ab':\n    try: os.fork()\n    except OSError: pass\ntime.sleep(1000)",
    "waits below Python": "libc.usleep(999_999_999); libc.pause(); time.sleep(1000)",
    "waits in a poll": "import select; select.poll().poll(); time.sleep(1000)",
}

for ours, more in ((CALLS, attacks.CALLS), (ESCAPES, attacks.ESCAPES), (FORGED, attacks.FORGED), (SURVIVORS, attacks.SURVIVORS)):
    assert not ours.keys() & more.keys(), ours.keys() & more.keys()
    ours |= more


@dataclass
class Canaries:
    """What programs may neither read nor change nor reach."""

    folder: Path
    names: dict[str, object] = field(default_factory=dict)

    def touched(self) -> list[str]:
        """What was reached or changed."""
        found = []
        now = self.state()
        found += [f"{name} was {old!r}, is {now[name]!r}" for name, old in self.before.items() if now[name] != old]
        for name, receiver in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                receiver.accept() if name == "listener" else receiver.recv(9)
                found.append(f"{name} was reached")
        return found

    def state(self) -> dict[str, object]:
        canary, library = os.stat(self.folder / "canary"), os.stat(os.__file__)
        return {
            "files": sorted(os.listdir(self.folder)),
            "canary": ((self.folder / "canary").read_text(), canary.st_mode, canary.st_mtime_ns, canary.st_nlink),
            "library": (library.st_size, library.st_mode, library.st_mtime_ns),
            "temporary": [name for place in ("/tmp", "/dev/shm") for name in os.listdir(place) if "sandbox-escaped" in name],
        }

    def prelude(self) -> str:
        return PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in self.names.items())


@contextlib.contextmanager
def canaries() -> Iterator[Canaries]:
    with tempfile.TemporaryDirectory(prefix="canaries-") as name, contextlib.ExitStack() as stack:
        laid = Canaries(Path(name))
        (laid.folder / "secret").write_text("not for programs")
        (laid.folder / "canary").write_text("untouched")
        with contextlib.suppress(OSError):  # not every file system has attributes
            os.setxattr(laid.folder / "canary", "user.canary", b"not for programs")
        kinds = {"path": (socket.AF_UNIX, socket.SOCK_DGRAM), "abstract": (socket.AF_UNIX, socket.SOCK_DGRAM)}
        kinds |= {"listener": (socket.AF_INET, socket.SOCK_STREAM), "datagrams": (socket.AF_INET, socket.SOCK_DGRAM)}
        laid.sockets = {kind: stack.enter_context(socket.socket(*family)) for kind, family in kinds.items()}
        abstract = f"\0canary-{os.getpid()}"
        laid.sockets["path"].bind(name + "/path")
        laid.sockets["abstract"].bind(abstract)
        laid.sockets["listener"].bind(("127.0.0.1", 0))
        laid.sockets["listener"].listen()
        port = laid.sockets["listener"].getsockname()[1]
        laid.sockets["datagrams"].bind(("127.0.0.1", port))
        for receiver in laid.sockets.values():
            receiver.setblocking(False)
        laid.names = {
            "SECRET": f"{name}/secret", "CANARY": f"{name}/canary", "FOLDER": name, "PATH": f"{name}/path", "ABSTRACT": abstract,
            "PORT": port, "PARENT": os.getpid(), "MACHINE": MACHINE, "PROJECT": str(PROJECT),
        }  # fmt: skip
        laid.before = laid.state()
        yield laid


def indented(body: str) -> str:
    return "".join(f"    {line}\n" for line in body.strip().split("\n"))


def programs(laid: Canaries) -> dict[str, tuple[str, str]]:
    """Name -> (program, the value that must never come of it)."""
    made = {}
    for name, numbers in CALLS.items():
        if MACHINE is not None and numbers[MACHINE] is not None:
            buffer = "ctypes.create_string_buffer(4096)"
            arguments = f"{numbers[MACHINE]}, *([{buffer}] * 6 if {len(name) % 2} else [0] * 6)"
            made[f"call {name}"] = (f"def solution():\n    return call({arguments})\n", "True")
    for name, body in ESCAPES.items():
        made[name] = (f"def solution():\n{indented(body)}", "True")
    for name, body in FORGED.items():
        made[name] = (f"{WRITE_ALL}\ndef solution():\n{indented(body)}", "42")
    return {name: (laid.prelude() + program, value) for name, (program, value) in made.items()}


def living(folder: str) -> list[int]:
    """Launchers, watchers and programs whose working folder is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"_launcher" in line and folder.encode() in line:
                found.append(int(entry.name))
    return found


def survivors(body: str, layers: Sequence[str], prelude: str = PRELUDE) -> int:
    """How many processes of a program are left after kill -9 of its launcher."""
    program = f"{prelude}\ndef solution():\n{indented(body)}"
    with tempfile.TemporaryDirectory(prefix="survivors-") as folder:
        limits = Limits(wall_seconds=PATIENCE)
        thread = threading.Thread(target=sandbox._launch, args=(program, limits, folder, layers))
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while len(living(folder)) < 3 and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # let the program come to what it does
        for launcher in sorted(living(folder))[:1]:  # none if the program has ended
            os.kill(launcher, signal.SIGKILL)
        thread.join()
        deadline = time.monotonic() + 10
        while (left := living(folder)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in left:
            os.kill(process, signal.SIGKILL)
        return len(left)


def try_out(chosen: dict[str, tuple[str, str]], layers: Sequence[str], workers: int | None = None) -> dict[str, dict]:
    """Name -> the sandbox's reply."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        replies = pool.map(lambda entry: sandbox._launch(entry[0], QUICK, folder, layers), chosen.values())
        return dict(zip(chosen, replies, strict=True))


def main(layers: Sequence[str]) -> int:
    layers = layers or isolation_level().layers
    if "seccomp" not in layers:
        sys.exit("Without seccomp some of these programs would harm this user's other processes; name seccomp among the layers.")
    with canaries() as laid:
        all_programs = programs(laid)
        replies = try_out(all_programs, layers)
        got = [name for name, (_, value) in all_programs.items() if replies[name].get("value") == value]
        false_rights = [name for name in got if name in FORGED]
        escapes = [name for name in got if name not in FORGED] + laid.touched()
        left = {name: count for name, body in SURVIVORS.items() if (count := survivors(body, layers))}
    classes: dict[str, int] = {}
    for reply in replies.values():
        classes[reply["status"]] = classes.get(reply["status"], 0) + 1
    print(f"{'+'.join(layers)}, user {os.getuid()}: {len(all_programs) + len(SURVIVORS)} programs tried, ", end="")
    print(f"{len(escapes)} escapes, {sum(left.values())} survivors, {len(false_rights)} false rights; {classes}")
    for kind, names in (("escape", escapes), ("survivor", left), ("false right", false_rights)):
        for name in names:
            print(f"  {kind}: {name}")
    return int(bool(escapes or left or false_rights))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
