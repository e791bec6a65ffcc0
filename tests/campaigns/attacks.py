"""More hostile programs for tests.campaigns.sandbox, thought up by somebody who had not seen those there; of the same kinds."""

# Calls made by their number, (x86_64, aarch64).
# fmt: off
CALLS = {
    "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166), "mincore": (27, 232), "mlock": (149, 228), "mlock2": (325, 284),
    "msync": (26, 227), "readahead": (187, 213), "fadvise64": (221, 223), "sync_file_range": (277, 84), "fallocate": (285, 47),
    "statfs": (137, 43), "fstatfs": (138, 44), "ustat": (136, None), "sysfs": (139, None), "uselib": (134, None),
    "swapoff": (168, 225), "setdomainname": (171, 162), "adjtimex": (159, 171), "setreuid": (113, 145), "setresgid": (119, 149),
    "setfsuid": (122, 151), "get_robust_list": (274, 100), "pkey_alloc": (330, 289), "membarrier": (324, 283),
    "io_submit": (209, 2), "semctl": (66, 191), "shmctl": (31, 195), "msgsnd": (69, 189), "mq_timedsend": (242, 182),
    "wait4": (61, 260), "waitid": (247, 95), "getsockname": (51, 204), "pipe2": (293, 59), "timer_settime": (223, 110),
    "lremovexattr": (198, 15), "setxattrat": (463, 463), "getxattrat": (464, 464), "statmount": (457, 457), "listmount": (458, 458),
    "lsm_set_self_attr": (460, 460), "mseal": (462, 462), "file_setattr": (469, 469), "open_tree_attr": (467, 467),
    "cachestat": (451, 451), "quotactl_fd": (443, 443), "futex_requeue": (456, 456), "x32 open": (0x40000002, None),
    "x32 execve": (0x40000000 + 520, None),
}
# fmt: on

ESCAPES = {
    "climbs to the secret": "return bool(open('../' * 40 + SECRET.lstrip('/')).read())",
    "reads the secret as code": "import io; return bool(io.open_code(SECRET).read())",
    "reads the secret below Python": "libc.fopen.restype = ctypes.c_void_p; return bool(libc.fopen(SECRET.encode(), b'r'))",
    "reads the secret by its lines": "import linecache; return bool(linecache.getlines(SECRET))",
    "reads the secret as a module": "import importlib.machinery as m; return bool(m.SourceFileLoader('x', SECRET).get_data(SECRET))",
    "reads the secret by numpy": "import numpy; return bool(len(numpy.fromfile(SECRET, 'u1')))",
    "maps the secret by numpy": "import numpy; return bool(len(numpy.memmap(SECRET, 'u1', 'r')))",
    "reads the secret by a database": """
import sqlite3
base = sqlite3.connect(':memory:')
base.execute('attach ? as x', (SECRET,))
return bool(base.execute('select * from x.sqlite_master').fetchall()) or True""",
    "loads the secret as a library": "try: ctypes.CDLL(SECRET)\nexcept OSError as error: return 'invalid ELF' in str(error) or 'too short' in str(error)",
    "loads a library of its own": "open('x.so', 'wb').write(open(os.__file__, 'rb').read(64)); return bool(ctypes.CDLL('./x.so'))",
    "packs the secret": "import tarfile; tarfile.open('x.tar', 'w').add(SECRET); return True",
    "copies the secret": "import shutil; return bool(shutil.copyfile(SECRET, 'x'))",
    "looks for the secret": "import glob; return bool(glob.glob(FOLDER + '/*'))",
    "changes into the canaries": "os.chdir(FOLDER); return bool(os.listdir('.'))",
    "changes into the canaries by descriptor": "os.fchdir(os.open(FOLDER, os.O_PATH)); return True",
    "reads through a descriptor of the root": "return os.open(SECRET.lstrip('/'), 0, dir_fd=os.open('/', os.O_PATH)) >= 0",
    # Of its own it may: names are no content.
    "asks for the paths of others": "return bool(os.readlink(f'/proc/{PARENT}/cwd') or os.readlink(f'/proc/{PARENT}/exe'))",
    "asks for the paths of others' descriptors": "return bool(os.readlink(f'/proc/{PARENT}/fd/0') or os.readlink('/proc/1/fd/0'))",
    "lists its descriptors": "return bool(os.listdir('/proc/self/fd')) or bool(os.listdir('/dev/fd'))",
    "reads accounts' file": "return bool(open('/etc/passwd').read())",
    "reads passwords": "return bool(open('/etc/shadow').read())",
    "reads the machine's name": "return bool(open('/etc/hostname').read())",
    "reads the machine's id": "return bool(open('/etc/machine-id').read())",
    "reads who is asked for names": "return bool(open('/etc/resolv.conf').read())",
    "reads the processors": "return bool(open('/proc/cpuinfo').read())",
    "reads open sockets": "return bool(open('/proc/net/tcp').read())",
    "reads its environment's file": "return open('/proc/self/environ').read() is not None",
    "reads what it may": "return bool(open('/proc/self/status').read())",
    "lists the interfaces": "return bool(os.listdir('/sys/class/net'))",
    "reads a disk": "import glob; return any(os.open(f, 0) >= 0 for f in ['/dev/vda', '/dev/sda', '/dev/nvme0n1', *glob.glob('/dev/dm-*')])",
    "lists what runs": "return bool(os.listdir('/run'))",
    "lists logs": "return bool(os.listdir('/var/log'))",
    "lists temporary files": "return len(os.listdir('/tmp')) > 0",
    "leaves a temporary file": "import tempfile; return bool(tempfile.mkstemp(dir='/tmp', prefix='sandbox-escaped'))",
    "leaves a lasting temporary file": "import tempfile; return bool(tempfile.mkstemp(dir='/var/tmp', prefix='sandbox-escaped'))",
    "leaves a file beside the canary": "import tempfile; return bool(tempfile.mkstemp(dir=FOLDER))",
    "leaves a database": "import sqlite3; sqlite3.connect(FOLDER + '/db').execute('create table x (y)'); return True",
    "leaves a log": "import logging; logging.FileHandler(FOLDER + '/log').close(); return True",
    "leaves a shelf": "import dbm.dumb; dbm.dumb.open(FOLDER + '/shelf', 'c').close(); return True",
    "leaves a folder": "os.mkdir(FOLDER + '/folder'); return True",
    "leaves compiled code": "import py_compile; open('x.py', 'w').write('1'); return bool(py_compile.compile('x.py', FOLDER + '/x.pyc', doraise=True))",
    "moves the canaries": "os.rename(FOLDER, FOLDER + '-moved'); return True",
    "exchanges the canary": """
open('mine', 'w').close()
return libc.renameat2(-100, b'mine', -100, CANARY.encode(), 2) == 0""",
    "creates below Python": "return libc.creat(CANARY.encode(), 0o666) >= 0",
    "writes into a file opened for reading": "return os.pwrite(os.open(os.__file__, 0), b'x', 0) > 0",
    "opens a library anew for writing": "f = os.open(os.__file__, 0); return os.open(f'/dev/fd/{f}', os.O_WRONLY) >= 0",
    "makes a library's pages writable": """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
place = libc.mmap(None, 4096, 1, 1, os.open(os.__file__, 0), 0)
return libc.mprotect(ctypes.c_void_p(place), 4096, 3) == 0""",
    "grows a library": "os.ftruncate(os.open(os.__file__, 0), 1 << 20); return True",
    "links a library in": "os.link(os.__file__, 'mine'); return True",
    "connects over the new protocol": "socket.create_connection(('::1', PORT), 1); return True",
    "connects to a path": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(PATH); return True",
    "listens": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); return True",
    "sends raw packets": "return bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))",
    "sees all packets": "return bool(socket.socket(17, socket.SOCK_RAW, 3))",
    "reaches for bluetooth": "return bool(socket.socket(31, socket.SOCK_RAW, 1))",
    "asks the kernel's keys": "return bool(socket.socket(15, socket.SOCK_RAW, 2))",
    "opens a cluster's socket": "return bool(socket.socket(30, socket.SOCK_SEQPACKET))",
    "asks over the web": "import urllib.request; return bool(urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1))",
    "runs an event loop": "import asyncio; return bool(asyncio.new_event_loop())",
    "gets a socket from a number": "return any(socket.socket(fileno=n) for n in range(64) if n not in (0, 1, 2, 3, 4))",
    "asks a resolver": "return bool(socket.gethostbyname('example.com'))",
    "runs a shell": "return os.system('true') == 0",
    "runs a shell below Python": "return libc.system(b'true') == 0",
    "reads from a command": "return bool(os.popen('echo x').read())",
    "runs a command": "return subprocess.run(['/bin/true']).returncode == 0",
    "spawns without waiting": "return os.spawnv(os.P_NOWAIT, '/bin/true', ['true']) > 0",
    "works in a pool of processes": "import multiprocessing.pool; return multiprocessing.pool.Pool(1).map(abs, [1]) == [1]",
    "works in a pool of threads": "from concurrent.futures import ThreadPoolExecutor; return ThreadPoolExecutor(1).submit(abs, 1).result() == 1",
    "starts a thread without its module": "import _thread; return bool(_thread.start_new_thread(print, ()))",
    "starts a timer": "threading.Timer(0, print).start(); return True",
    "asks for an alarm": "return signal.setitimer(signal.ITIMER_REAL, 100) is not None",
    "signals by queue": "return libc.sigqueue(PARENT, 0, None) == 0",
    "signals its group's leader": "os.kill(os.getpgid(0), 0); return True",
    "stops the parent": "return libc.kill(PARENT, signal.SIGSTOP) == 0",
    "waits for signals as a file": "return libc.signalfd(-1, ctypes.create_string_buffer(128), 0) >= 0",
    "takes more memory": "return len(bytearray(1 << 30)) > 0",
    "maps more memory": "return len(mmap.mmap(-1, 1 << 30)) > 0",
    "keeps a place in memory": "return libc.mmap(None, ctypes.c_size_t(1 << 30), 0, 0x4022, -1, 0) != -1",
    "writes a file larger than its folder": "open('x', 'wb').truncate(1 << 30); return True",
    "keeps more folders than it may": "[os.mkdir(f'{n}') for n in range(9999)]; return True",
    "copies descriptors": "[os.dup(3) for n in range(99)]; return True",
    "raises its memory": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)); return True",
    "raises its processes": "resource.setrlimit(resource.RLIMIT_NPROC, (9, 9)); return True",
    "raises its files": "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99)); return True",
    "raises its locked memory": "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20)); return True",
    "leaves a core": "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)); return True",
    "imports the tests": "import tests; return True",
    "imports by the parent's path": "sys.path.insert(0, PROJECT); import lab; return True",
    "imports what numpy lies beside": "import numpy; sys.path.append(os.path.dirname(os.path.dirname(numpy.__file__))); import torch; return True",
    "reads the launcher": "m = sys.modules['__main__']; return bool(open(m.__file__).read())",
    "reads the launcher's arguments": "return any('canaries' in text for text in sys.argv) or bool(open('/proc/self/cmdline').read())",
    "finds another program's answer": "return any(os.path.exists(f'../{n}') and os.listdir(f'../{n}') for n in os.listdir('..'))",
    "cuts a library on opening": "return os.open(os.__file__, os.O_RDONLY | os.O_TRUNC) >= 0",
    "opens a library for writing and reading": "return os.open(os.__file__, os.O_RDWR) >= 0",
    "sets a time on a library": "return libc.utimensat(-100, os.__file__.encode(), None, 0) == 0",
    "takes hold of the parent's namespaces": "return os.open(f'/proc/{PARENT}/ns/mnt', 0) >= 0",
    "asks who owns its namespaces": "return fcntl.ioctl(os.open('/proc/self/ns/user', 0), 0xB702) >= 0",
    "enters a namespace that it may open": "return libc.setns(os.open('/proc/self/ns/user', 0), 0) == 0",
    "maps other users": "open('/proc/self/uid_map', 'w').write('0 0 1'); return True",
    "sets the machine's settings": "return open('/proc/sys/kernel/hostname', 'w').write('x') > 0",
    "asks for the shared clock page": "return open('/dev/ptp0', 'rb') is not None",
    "keeps a graphics card": "return any(os.open(f, os.O_RDWR) >= 0 for f in ('/dev/nvidiactl', '/dev/nvidia0', '/dev/dri/card0'))",
}

FORGED = {
    "recurses": "write_all()\nsys.setrecursionlimit(1 << 30)\nf = lambda: f()\nf()",
    "runs out of memory": "write_all()\nx = []\nwhile True: x.append(bytearray(1 << 20))",
    "runs out of memory below Python": "write_all()\nwhile libc.malloc(1 << 20): pass\nos.abort()",
    "leaves with the answer": "write_all(); sys.exit(42)",
    "leaves with a text": "raise SystemExit('42')",
    "stops the iteration with the answer": "raise StopIteration(42)",
    "interrupts": "write_all(); raise KeyboardInterrupt(42)",
    "says another header": 'os.write(3, b\'{"layers": []}\\n\' + CLAIM); os._exit(0)',
    "says half and dies": "os.write(3, CLAIM[:20]); os.abort()",
    "says it deep": "os.write(3, b'[' * 60000); os._exit(0)",
    "says nothing and leaves": "os._exit(0)",
    "says it between lines and leaves": "os.write(3, b'\\n' * 99 + CLAIM + b'\\n'); os._exit(0)",
    "says it with zeros": "os.write(3, bytes(32) + CLAIM + bytes(32)); os._exit(0)",
    "says it three times": "os.write(3, (b'x' * 32 + CLAIM) * 3); os._exit(0)",
    "fills the pipe and sleeps": "os.write(3, CLAIM.ljust(60000)); time.sleep(1000)",
    "writes and waits to be read": "while True: os.write(3, CLAIM)",
    "loops on the way out": """
def trace(frame, event, what):
    while event == 'return': pass
    return trace
sys.settrace(trace)
for frame in frames(): frame.f_trace = trace
return 42""",
    "loops when its frames are cleared": """
class Forever:
    def __del__(self):
        while True: pass
x = Forever()
return 42""",
    "ends the reporter": """
for thing in gc.get_objects():
    if type(thing).__name__ == 'generator':
        try: thing.close()
        except ValueError: pass
write_all()
while True: pass""",
    "takes the collector's last word": """
class Last:
    def __del__(self):
        write_all()
        os._exit(0)
a, b = Last(), Last()
a.b, b.a = b, a
del a, b
gc.collect()""",
    "outlives its time": "signal.signal(signal.SIGXCPU, lambda *_: write_all())\nwhile True: pass",
    "hides from the end": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 13, 15, 24)]\nwrite_all()\nwhile True: pass",
    "waits in a long sum": "write_all()\nsum(range(10 ** 15))",
    "waits in a long expression": "write_all()\nimport re\nre.match('(a+)+b', 'a' * 64)",
    "waits for a number": "write_all()\n9 ** 9 ** 9",
    "waits in a lock": "write_all()\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "breaks the interpreter": "write_all()\nctypes.memset(id(None), 0, 64)",
    "breaks its own code": "write_all()\nctypes.memset(id((lambda: 0).__code__), 255, 200)\ngc.collect()\nos.abort()",
    "returns into nothing": "write_all()\nctypes.CFUNCTYPE(None)(0)()",
    "divides below Python": "write_all()\nlibc.raise_(8) if hasattr(libc, 'raise_') else os.abort()",
}

SURVIVORS = {
    "waits for a word of the kernel": "libc.syscall(202 if os.uname().machine == 'x86_64' else 98, ctypes.byref(ctypes.c_int(0)), 0, 0, None)\ntime.sleep(1000)",
    "stops itself": "\ntry: os.kill(os.getpid(), signal.SIGSTOP)\nexcept OSError: pass\ntime.sleep(1000)",
    "sleeps under a handler of every signal": "[signal.signal(n, lambda *_: None) for n in range(1, 32) if n not in (9, 19)]; time.sleep(1000)",
}
