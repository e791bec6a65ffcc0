"""The app under several visitors at once: answers, mix-ups, memory of the server, and how fast it answers one.

    python benchmarks/visitors.py

A server of its own on the embedded base. First one visitor: seconds to the first answer after the server is up, from a
changed alpha to the first new token, and tokens per second of the merge beside the base. Then its memory over 200 answers
of 12 tokens and 50 swaps of settings (another adapter read in place of one, a method and a router as columns). Then `--clients`
visitors for `--seconds`, each changing its alphas before every answer; an answer that is not the one heard alone is a
mix-up.
"""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import common  # before lab: it makes the package importable
from gradio_client import Client

from lab.app.showcase import WORD_PROBLEMS
from lab.errors import LabError
from lab.files import PROJECT

PROMPT = (
    "How many pears are there in the end? There are 37246 pears at the house of Ruth. Then she buys 516507 pears. Ruth receives 748946 pears."
)
CALM = {"verbose": False, "httpx_kwargs": {"timeout": 120}}
ANSWERS, SWAPS = 200, 50
SETTINGS = ("maths: 1; code: 0", "maths: 0; code: 1", "maths: 0.8; code: 0.8", "maths: 0.5; code: 1")


def resident_mb(pid: int) -> float:
    """What the process holds in memory now, in MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def answer(client: Client, alphas: str, columns: Sequence[str] = ("merge",), tokens: int = 60) -> dict:
    client.predict(alphas, api_name="/set_alphas")
    return client.predict(PROMPT, list(columns), max_new_tokens=tokens, api_name="/ask")


def first_token(client: Client, alphas: str) -> float:
    """Seconds from sending new alphas to the first token of the answer."""
    started = time.perf_counter()
    client.predict(alphas, api_name="/set_alphas")
    for now in client.submit(PROMPT, ["merge"], max_new_tokens=60, api_name="/ask"):
        if now["merge"]["tokens"]:
            return time.perf_counter() - started
    raise LabError("The app ended an answer without a token; look at its output.")


def swap(client: Client) -> None:
    """Other settings: the maths skill read anew in place of itself, a method and a router as columns."""
    folder = WORD_PROBLEMS.folders()["maths"]
    client.predict(f"maths={folder}", "maths", api_name="/load_adapter")
    for method in ("task_arithmetic", "arrow"):
        answer(client, SETTINGS[2], ["base", client.predict(method, {}, [], api_name="/add_method")], tokens=12)


def long_visit(url: str, answers: int, swaps: int) -> None:
    """So many answers and swaps, evenly mixed, by one visitor."""
    client, done = Client(url, **CALM), 0
    for turn in range(swaps):
        swap(client)
        while done < answers * (turn + 1) // swaps:
            answer(client, SETTINGS[done % len(SETTINGS)], tokens=12)
            done += 1
    client.close()


def serve() -> tuple[subprocess.Popen, str]:
    """The app in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=PROJECT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    server.kill()
    raise LabError("The app did not start; run `python app.py` and look at what it says.")


def visit(url: str, number: int, until: float, expected: dict[str, str], into: list) -> None:
    """One visitor: (seconds, whether the answer is the one heard alone) per answer; an error as text."""
    try:
        client = Client(url, **CALM)
        turn = number
        while time.monotonic() < until:
            alphas, turn = SETTINGS[turn % len(SETTINGS)], turn + 1
            started = time.perf_counter()
            text = answer(client, alphas)["merge"]["text"]
            into.append((time.perf_counter() - started, text == expected[alphas]))
        client.close()
    except Exception as error:  # whatever went wrong is what this program counts
        into.append(repr(error))


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(argv)
    if options.quick:
        options.clients, options.seconds, options.rounds = 2, 3, 1
    answers_wanted, swaps = (8, 2) if options.quick else (ANSWERS, SWAPS)
    server, url = serve()
    try:
        started = time.perf_counter()
        client = Client(url, **CALM)
        alone = {SETTINGS[0]: answer(client, SETTINGS[0])["merge"]["text"]}
        first = time.perf_counter() - started
        alone |= {alphas: answer(client, alphas)["merge"]["text"] for alphas in SETTINGS[1:]}
        reaction = statistics.median(first_token(client, SETTINGS[i % 4]) for i in range(4 * options.rounds))
        speeds = {
            column: statistics.median(
                answer(client, SETTINGS[2], [column])[column]["tokens_per_second"] for _ in range(2 * options.rounds)
            )
            for column in ("base", "merge")
        }
        # The server keeps what its first answers needed; what counts is what later ones add.
        long_visit(url, answers_wanted // 10 + 2, swaps // 10 + 2)
        warm = resident_mb(server.pid)
        long_visit(url, answers_wanted, swaps)
        after = resident_mb(server.pid)
        heard: list[list] = [[] for _ in range(options.clients)]
        memory, until = [], time.monotonic() + options.seconds
        threads = [threading.Thread(target=visit, args=(url, i, until, alone, heard[i])) for i in range(options.clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(resident_mb(server.pid))
            time.sleep(1)
        time.sleep(3)  # closed sessions are freed in the background
        gone = resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait(30)
    errors = [said for one in heard for said in one if isinstance(said, str)]
    answers = [said for one in heard for said in one if not isinstance(said, str)]
    if errors or not answers:
        raise LabError(f"{len(errors)} of {options.clients} visitors met an error: {(errors or ['no answers'])[0]}")
    mixed = sum(not right for _, right in answers)
    third = max(1, len(memory) // 3)
    rows = [
        {"what": "first answer after the server is up, s", "value": first},
        {"what": "changed alpha to first new token, s (median)", "value": reaction},
        {"what": "base alone, tokens/s (median)", "value": speeds["base"]},
        {"what": "merge alone, tokens/s (median)", "value": speeds["merge"]},
        {"what": "server's memory when warm, MB", "value": warm},
        {"what": f"after {answers_wanted} answers and {swaps} swaps of settings, MB", "value": after},
        {"what": f"answers to {options.clients} visitors in {options.seconds:g} s", "value": len(answers)},
        {"what": "errors", "value": len(errors)},
        {"what": "answers that were not the visitor's own", "value": mixed},
        {"what": "seconds per answer, median", "value": statistics.median(s for s, _ in answers)},
        {"what": "server's memory, MB, median of the first third", "value": statistics.median(memory[:third])},
        {"what": "server's memory, MB, median of the last third", "value": statistics.median(memory[-third:])},
        {"what": "server's memory, MB, when they have gone", "value": gone},
    ]
    checks = [{"check": "share of answers that are not the visitor's own", "relative_error": mixed / len(answers), "tolerance": 0.0}]
    common.report("visitors", common.find_device(options.device), options, rows, checks, [])
    if mixed:
        raise LabError(f"{mixed} of {len(answers)} answers were not those of the visitor's own alphas.")


if __name__ == "__main__":
    common.start(main)
