"""The app under attack: `python -m tests.campaigns.app [KILLS [REQUESTS [SESSIONS [UPLOADS [SEED]]]]]` (default 200, 10000, 500, 50, 0).

Kills with -9 of a server that answers, learns and exports; requests that no page would send, beside a visitor of whose data they may
tell nothing; a client that reads and writes a byte at a time; one that opens session after session; uploads cut off in the
middle. Prints what was tried and found; exits with 1 if anything was found.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # servers are forked

import contextlib
import ctypes
import http.client
import json
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

import app
from lab.app.endpoints import ENDPOINTS
from lab.app.jobs import Jobs
from lab.app.server import Server
from lab.app.votes import Ballot, Vote
from lab.experiments.context import SHIPPED
from lab.files import content_hash
from tests.campaigns.adapters import VALUES

PATIENCE = 300  # seconds, on a loaded machine
SECRET = "0.31415"  # an alpha of the visitor who must not be told of
CANARY = "canary-of-another-visitor"
RESIDENT_MB = 150  # that the server may grow by: Gradio keeps the state of 300 sessions, 0.5 MB each
API = "/gradio_api"


@dataclass
class Tally:
    kills: int = 0
    requests: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"user {os.getuid()}: {self.kills} kills of the server; {self.requests.total()} requests: {dict(self.requests)}",
            *self.said, f"{len(self.faults)} faults", *self.faults[:30],
        ]  # fmt: skip
        return "\n".join(lines)


# The server, in a process of its own


@contextlib.contextmanager
def serving(blocks) -> Iterator[tuple[int, int]]:
    """(process, port) of a server of this page; it is killed at the end."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with the campaign
            blocks.context.jobs = Jobs()  # a thread does not come along
            server = Server(blocks)
            os.write(writes, f"{server.url}\n".encode())
            server.wait()
        finally:
            os._exit(1)
    os.close(writes)
    with open(reads) as told:
        url = told.readline()
    if not url:
        raise SystemExit("the server did not start")
    try:
        yield child, int(url.strip().rstrip("/").rpartition(":")[2])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def resident_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Visitor:
    """A client of the page's endpoints, one connection kept open."""

    def __init__(self, port: int, name: str):
        self.port, self.name, self.connection = port, name, None

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
        for attempt in range(2):
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                self.connection.request(method, path, body, headers or {})
                reply = self.connection.getresponse()
                return reply.status, reply.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.connection = None  # it had been closed meanwhile
                if attempt:
                    raise
        raise AssertionError

    def begin(self, name: str, *values) -> str:
        """The id of an event that was queued."""
        body = json.dumps({"data": [None, *values], "session_hash": self.name}).encode()
        status, told = self.send("POST", f"{API}/call/{name}", body, {"Content-Type": "application/json"})
        if status != 200:
            raise RuntimeError(f"{name}: {status} {told[:200]!r}")
        return json.loads(told)["event_id"]

    def call(self, name: str, *values) -> tuple[str, object]:
        """("complete" or "error", what was told at last)."""
        status, stream = self.send("GET", f"{API}/call/{name}/{self.begin(name, *values)}")
        last = stream.decode().strip().rpartition("event: ")[2]
        kind, _, data = last.partition("\ndata: ")
        if status != 200 or kind not in ("complete", "error"):
            raise RuntimeError(f"{name}: {status} {stream[-200:]!r}")
        found = json.loads(data)
        return kind, found[-1] if kind == "complete" and isinstance(found, list) else found


# Kills


def kills(tally: Tally, blocks, count: int, draw: random.Random) -> None:
    """A vote that was cast stays, nothing of the project changes, no program lives on, and the next server answers."""
    before = content_hash(SHIPPED, blocks.context.results)
    ballot: Ballot = blocks.context.ballot
    for number in range(count):
        what = draw.choice(["answering", "learning", "exporting", "starting"])
        with serving(blocks) as (process, port):
            visitor = Visitor(port, f"visitor-{number}")
            try:
                if what != "starting":
                    visitor.begin("set_alphas", f"maths: {draw.random():.3f}")
                if what == "answering":
                    visitor.begin("ask", "Ann has 3 apples.", ["base", "merge"], "Question → program", "7", 60, 0, 1, 0)
                elif what == "learning":
                    visitor.begin("learn", "cat", {"parametrisation": "free"}, 8, 50, 0.1, 4, 0)
                elif what == "exporting":
                    visitor.begin("export", "merge", "float32", draw.random() < 0.5)
            except RuntimeError as error:
                tally.faults.append(f"kill {number}, {what}: {error}")
            ballot.cast(Vote(f"kill {number}", ("a", "b"), "a"))  # as the server's handler does
            time.sleep(draw.uniform(0, 0.6))
            os.kill(process, signal.SIGKILL)
        tally.kills += 1
        votes, damaged = ballot.votes()
        if len(votes) != number + 1 or damaged:
            tally.faults.append(f"kill {number}, {what}: {len(votes)} votes, damaged {damaged}")
        deadline = time.monotonic() + 30
        while (left := programs_of(process)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            tally.faults.append(f"kill {number}, {what}: programs live on: {left}")
    if content_hash(SHIPPED, blocks.context.results) != before:
        tally.faults.append("kills: the project's skills or records have changed")


def programs_of(process: int) -> list[int]:
    """Launchers, watchers and programs of a server's process group or of nobody."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if b"_launcher" in (entry / "cmdline").read_bytes() and b"soup-lab-sandbox" in (entry / "cmdline").read_bytes():
                if f'"parent": {process}'.encode() in (entry / "environ").read_bytes() or _parent(entry) == process:
                    found.append(int(entry.name))
    return found


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


# Requests that no page would send


def malformed(draw: random.Random) -> tuple[str, str, bytes, dict]:
    """Method, path, body, headers."""
    name = draw.choice([action.__name__ for action in ENDPOINTS])
    path, kind = f"{API}/run/{name}", draw.random()
    if kind < 0.7:  # a right form with wrong content
        count = draw.choice([1, 2, 3, 4, 5, 8, 10])
        values = [draw.choice(WORDS) for _ in range(count)]
        body: object = {"data": [None, *values], "session_hash": draw.choice(["attacker", "attacker-2", "", CANARY.upper(), "../x", "\x00"])}
    elif kind < 0.8:
        body = {draw.choice(["data", "fn_index", "session_hash", "event_id", "trigger_id", "event_data", "batched", "x"]): draw.choice(WORDS)
                for _ in range(4)}  # fmt: skip
    elif kind < 0.85:
        body = draw.choice(WORDS)
    elif kind < 0.9:  # no JSON
        raw = draw.choice([b"", b"{", b'{"data": [', b"\xff\xfe", b"[" * 50_000, b'{"data": ' + b"9" * 5000 + b"}", b"\0" * 1000, b"data=1"])
        return "POST", path, raw, {"Content-Type": draw.choice(["application/json", "text/plain", "multipart/form-data", "x"])}
    else:  # other places
        place = draw.choice([
            "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../app.py", "/gradio_api/file=lab/files.py", "/file=/etc/passwd", "/gradio_api/run/none",
            "/gradio_api/call/none", "/gradio_api/call/ask/none", "/gradio_api/queue/data?session_hash=none", "/gradio_api/queue/join", "/gradio_api/cancel",
            "/gradio_api/reset", "/gradio_api/upload", "/gradio_api/upload_progress?upload_id=x", "/gradio_api/component_server", "/config/../x", "/%00",
            "/gradio_api/stream/x/y/z/playlist.m3u8", "/gradio_api/proxy=http://127.0.0.1:1/", "/monitoring", "/gradio_api/info?x=" + "y" * 5000, "/login",
            f"/gradio_api/file={SHIPPED}", "/static/../../etc/passwd", "/assets/..%2f..%2fx", "/custom_component/x/y/z", "/gradio_api/heartbeat",
        ])  # fmt: skip
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "BREW"])
        method = "POST" if place.endswith(("/heartbeat", "x")) and method == "GET" else method  # these answer for ever
        return method, place, json.dumps(draw.choice(WORDS), default=str).encode(), {"Content-Type": "application/json"}
    return "POST", path, json.dumps(body, default=str).encode(), {"Content-Type": "application/json"}


WORDS = [
    *(value for value in VALUES if not isinstance(value, str) or len(value) < 5000), "merge", "base", "maths", "code", "cat", "ties", "maths: 1", "maths: nan",
    "layers 0-99: 1", ["merge"], ["base"] * 40, {"path": "/etc/passwd"}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    [{"path": "../app.py", "meta": {"_type": "gradio.FileData"}}], {"alphas": "maths: 2"}, {"method": "ties", "weights": {"maths": "x"}},
    {"coefficients": [[1e400]], "skills": ["maths"], "modules": []}, {"method": "ties", "parameters": 3}, {"method": "ties", "rank": 1 << 40},
    {"method": ["ties"]}, {"inputs": 3, "method": "ties"}, {"inputs": [{"name": []}], "alphas": ""}, {"density": [1]}, "\ud800"[:0], "\x00", "é" * 2000,
    "-1", -5, 0.5, 1e308, -1e308, "../../x", "/", "~root", "owner/name/more", "float16", "int4", True, [[[[]]]], {"a": {"b": {"c": []}}}, 99999, "0", "1 2",
]  # fmt: skip


def requests(tally: Tally, blocks, count: int, draw: random.Random) -> None:
    with serving(blocks) as (process, port):
        other = Visitor(port, CANARY)
        if other.call("set_alphas", f"maths: {SECRET}; code: 0.5")[0] != "complete":
            raise SystemExit("the other visitor could not set its alphas")
        alphas, warm, peak = other.call("recipe", "merge"), 0.0, 0.0
        attacker = Visitor(port, "attacker")
        for number in range(count):
            method, path, body, headers = malformed(draw)
            what = f"request {number}: {method} {path[:60]} {body[:200]!r}"
            try:
                status, reply = attacker.send(method, path, body, headers)
            except http.client.IncompleteRead as error:  # so Gradio ends the stream of an event that it does not know
                attacker.connection = None
                tally.requests["cut short"] += 1
                if b"404: Not Found" not in error.partial:
                    tally.faults.append(f"{what}: {error.partial[-200:]!r}")
                continue
            except (OSError, http.client.HTTPException) as error:
                attacker.connection = None
                tally.faults.append(f"{what}: {type(error).__name__} {error}")
                continue
            tally.requests[f"{status // 100}xx"] += 1
            text = reply.decode(errors="replace")
            if SECRET in text or CANARY in text:
                tally.faults.append(f"{what}: tells of another visitor: {text[:200]}")
            if status >= 500 and not clear(text):
                tally.faults.append(f"{what}: {status} {text[:200]}")
            if "Something went wrong" in text or "Traceback" in text or "root:x:0" in text:
                tally.faults.append(f"{what}: {text[:200]}")
            if number == count // 3:
                warm = resident_mb(process)
        peak = resident_mb(process)
        if other.call("recipe", "merge") != alphas:
            tally.faults.append("requests: another visitor's alphas have changed")
        if count > 1000 and peak - warm > RESIDENT_MB:
            tally.faults.append(f"requests: memory grew from {warm:.0f} to {peak:.0f} MB")
        tally.said.append(f"memory after a third of the requests {warm:.0f} MB, after all {peak:.0f} MB")


def clear(text: str) -> bool:
    """Whether an error is told by a sentence."""
    try:
        return len(str(json.loads(text)["error"])) > 10
    except (ValueError, KeyError, TypeError):
        return False


# A slow client, many sessions, cut uploads


def slow(tally: Tally, blocks) -> None:
    """Bytes that come one by one keep nobody waiting."""
    with serving(blocks) as (_, port):
        with contextlib.ExitStack() as stack:
            lines = []
            for _ in range(20):
                line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                line.sendall(b"POST /gradio_api/run/methods HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n")
                lines.append(line)
            reader = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            reader.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")  # and reads nothing of it
            visitor = Visitor(port, "quick")
            for turn in range(5):
                for line in lines:
                    line.sendall(b"X-%d: 1\r\n" % turn)
                kind, _ = visitor.call("set_alphas", f"maths: 0.{turn}")
                if kind != "complete":
                    tally.faults.append(f"slow: another visitor was told {kind}")
        tally.said.append("20 clients that sent a line at a time and one that did not read: 5 of 5 requests of another visitor answered")


def sessions(tally: Tally, blocks, count: int) -> None:
    with serving(blocks) as (process, port):
        visitor, memory = Visitor(port, "first"), []
        for number in range(count):
            visitor.name = f"session-{number}"
            kind, told = visitor.call("set_alphas", f"maths: {number / 1000}")
            if kind != "complete" or f"maths: {number / 1000:g}" not in str(told):
                tally.faults.append(f"session {number}: {kind} {str(told)[:100]}")
            memory.append(resident_mb(process))
        visitor.name = f"session-{count - 1}"
        kind, told = visitor.call("set_alphas", "code: 0.5")
        if kind != "complete" or f"maths: {(count - 1) / 1000:g}" not in str(told):
            tally.faults.append(f"sessions: the last one's state is lost: {told}")
        tally.said.append(f"{count} sessions of one visitor: memory from {memory[0]:.0f} to {memory[-1]:.0f} MB")
        if memory[-1] - memory[0] > RESIDENT_MB * 2:
            tally.faults.append(f"sessions: memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MB")


def uploads(tally: Tally, blocks, count: int, draw: random.Random) -> None:
    """Nothing of a file that did not arrive stays."""
    place = Path(os.environ["GRADIO_TEMP_DIR"])
    with serving(blocks) as (_, port):
        before = files_in(place)
        for _ in range(count):
            head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.zip"\r\nContent-Type: application/zip\r\n\r\n'
            size = draw.choice([1 << 10, 1 << 16, 3 << 20])
            with socket.create_connection(("127.0.0.1", port)) as line:
                start = f"POST {API}/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {size + 4000}\r\n\r\n"
                line.sendall(start.encode() + head + bytes(size))
                time.sleep(draw.uniform(0, 0.05))
                if draw.random() < 0.5:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of an end
        deadline = time.monotonic() + 60
        while files_in(place) != before and time.monotonic() < deadline:
            time.sleep(0.2)
        if left := files_in(place) - before:
            tally.faults.append(f"uploads: {len(left)} of {count} left over, such as {sorted(left)[0]}")
        kind, _ = Visitor(port, "after").call("set_alphas", "maths: 1")
        if kind != "complete":
            tally.faults.append("uploads: the server does not answer after them")
        tally.said.append(f"{count} cut uploads")


def files_in(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if path.is_file()} if place.exists() else set()


def campaign(kill: int = 200, request: int = 10_000, session: int = 500, upload: int = 50, seed: int = 0) -> Tally:
    torch.set_num_threads(1)
    tally, draw = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="app-campaign-") as root:
        blocks = app.build_app(files=root, device="cpu")
        blocks.context.jobs.end()
        if kill:
            kills(tally, blocks, kill, draw)
        if request:
            requests(tally, blocks, request, draw)
        if session:
            slow(tally, blocks)
            sessions(tally, blocks, session)
        if upload:
            uploads(tally, blocks, upload, draw)
    return tally


if __name__ == "__main__":
    found = campaign(*(int(text) for text in sys.argv[1:6]))
    print(found.text())
    sys.exit(bool(found.faults))
