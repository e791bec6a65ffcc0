"""Everything that a GPU is asked, in one command of at most 8 minutes: is it right, how fast is it, what do the sections give.

    make gpu                           on a machine with a CUDA GPU; ARGS="--only check step" runs some parts
    make gpu ARGS="--dry"              all of it on the CPU, tiny: shows that it runs, measures nothing

Every part is a process of its own, killed at its own limit; what it has found by then is kept. The record, gpu-<device>.json in
--out, is written again after each part, and a later run keeps the parts that it does not run itself. A part that needs more
memory than the GPU has free is skipped, and the others run.

check                 logits on the GPU and the CPU, live, folded and reloaded, fp32 and bf16; training; answers; merges; sandbox
step generate merge change   the benchmarks of those names, with CUDA graphs where they help
seven_b               skill training and coefficient learning on a random base of the shape of Llama-7B: seconds, peak memory
base                  the real base, converted from its GGUF once
math_code rewriting   5.1 and x4_rewriting of preset `laptop` in bf16, a process for each seed, several at a time; 5.1 with the
                      real rows of --data (word_problems/, gsm8k/, code_alpaca/, gsm_hard/), else with generated ones

A machine where nothing can be installed or fetched needs torch, transformers, accelerate, safetensors, tokenizers, and what

    make gpu-pack

puts under artifacts/gpu-pack: packages of Python alone in 1/, and the base's file in two parts, one in each of 1/ and 2/, none
above 64 MB (ARGS="--data FOLDER" adds 5.1's rows to 2/, where they are found without --data). Where no more than that travels in
one call, the first brings the code and 1/ and runs what needs no base, the second brings 2/:

    python3 benchmarks/gpu.py --only check step generate merge change seven_b
    python3 benchmarks/gpu.py --only base math_code rewriting

If the whole working tree travels, pages and shipped weights can stay: git sparse-checkout set --no-cone '/*' '!/results/'
'!/lab/world/**/base/' '!/lab/world/**/skills/' (and git sparse-checkout disable afterwards) leaves about 3 MB of code.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_pack import DATA, PACK, unpacked

from lab.errors import LabError
from lab.files import PROJECT, write_atomic

SCRIPT = Path(__file__).with_name("gpu_parts.py")
BUDGET = 480  # seconds, of all parts together
WORK = PROJECT / "artifacts" / "gpu"  # logs, the joined base, records and artifacts of the sections
SEEDS = (0, 1, 2)
RUN_GB = 6  # what one process of a section may need


@dataclass(frozen=True)
class Part:
    """name: `<group>-<seed>` for a section's. limit, expected: seconds; expected only tells how long it still takes.
    gigabytes: that must be free on the GPU. together: may run beside its neighbours that may."""

    name: str
    limit: float
    expected: float
    gigabytes: float = 0.0
    together: bool = False

    @property
    def group(self) -> str:
        return self.name.partition("-")[0]


PARTS = (
    Part("check", 45, 25, 3),
    Part("step", 35, 20, 8),
    Part("generate", 30, 20, 4),
    Part("merge", 35, 25, 4),
    Part("change", 15, 12, 2),
    Part("seven_b", 45, 30, 40),
    Part("base", 45, 25),
    *(Part(f"{group}-{seed}", 220, 150, RUN_GB, together=True) for seed in SEEDS for group in ("rewriting", "math_code")),
)
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS))


def chosen(only: Sequence[str], dry: bool) -> list[Part]:
    """The parts of these groups, all for none; in a dry run one seed will do, and limits are those of a busy machine."""
    for name in only:
        if name not in GROUPS:
            raise LabError(f"There is no part {name!r}; choose some of {', '.join(GROUPS)}.")
    parts = [part for part in PARTS if not only or part.group in only]
    if dry:
        parts = [Part(p.name, 600, 15, 0, p.together) for p in parts if not p.together or p.name.endswith("-0")]
    return parts


# Running the parts


@dataclass
class Running:
    part: Part
    process: subprocess.Popen
    result: Path
    started: float
    limit: float


class Driver:
    """Runs parts, and keeps the record after each."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.dry = options, options.dry
        self.work = WORK / "dry" if self.dry else WORK
        self.out = options.out or (self.work if self.dry else Path(__file__).resolve().parent / "results")
        self.started = time.monotonic()
        self.work.mkdir(parents=True, exist_ok=True)
        paths = [*map(str, unpacked(PACK, WORK)), str(PROJECT), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.machine = self._machine()
        self.record = self._earlier() | {name: self.machine[name] for name in ("device", "versions")}
        self.running: list[Running] = []
        self.found: dict[str, dict] = {}  # entries of the record that are of this run

    def _machine(self) -> dict:
        """device, slug, versions, gigabytes (free; None on a CPU), as a process says that imports torch."""
        part = Part("machine", 180 if not self.dry else 600, 0)
        running = self._start(part, part.limit)
        running.process.wait(running.limit)
        told = self._told(running)
        if "device" not in told:
            raise LabError(f"This machine could not be asked for its GPU: {told.get('reason', 'see ' + str(self._log(part)))}")
        if told["gigabytes"] is None and not self.dry:
            raise LabError("There is no CUDA GPU here; --dry runs everything small on the CPU.")
        return told

    @property
    def path(self) -> Path:
        return self.out / f"gpu{'-dry' if self.dry else ''}-{self.machine['slug']}.json"

    def _earlier(self) -> dict:
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return {"benchmark": "gpu", "device": "", "versions": {}, "parts": {}}
        except ValueError as error:
            raise LabError(f"{self.path} is damaged; delete it.") from error

    def _log(self, part: Part) -> Path:
        return self.work / f"{part.name}.log"

    def _start(self, part: Part, limit: float) -> Running:
        result = self.work / f"{part.name}.result.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, str(SCRIPT), part.name, "--result", str(result), "--out", str(self.out)]
        command += ["--work", str(self.work), "--needs", str(part.gigabytes), *(["--dry"] if self.dry else [])]
        data = self.options.data or (PACK / DATA if (PACK / DATA).is_dir() and not self.dry else None)
        command += ["--data", str(data.resolve())] if data else []
        with self._log(part).open("wb") as log:  # a process group of its own: what a part starts ends with it
            process = subprocess.Popen(
                command, cwd=PROJECT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        return Running(part, process, result, time.monotonic(), limit)

    def _told(self, running: Running) -> dict:
        """What a part has written so far; why not more, where it ended without a word."""
        try:
            told = json.loads(running.result.read_text())
        except FileNotFoundError:
            told = {}
        if told.get("status") in ("done", "skipped", "failed"):
            return told
        if running.process.returncode == -signal.SIGKILL:
            return {**told, "status": "cut", "reason": f"killed at its limit of {running.limit:.0f} s, or by the machine"}
        lines = self._log(running.part).read_text(errors="replace").splitlines()
        return {**told, "status": "failed", "reason": lines[-1] if lines else f"exit code {running.process.returncode}"}

    def run(self, parts: Sequence[Part]) -> dict[str, dict]:
        """The parts' entries in the record, by name."""
        waiting = list(parts)
        workers = self._workers()
        try:
            while waiting or self.running:
                while waiting and self._may_start(waiting[0], workers):
                    part = waiting.pop(0)
                    limit = min(part.limit, self._left()) if not self.dry else part.limit
                    if limit < 5:
                        self._keep(part, {"status": "skipped", "reason": f"the {BUDGET} s were used up", "seconds": 0.0}, waiting)
                    elif reason := self._without_base(part):
                        self._keep(part, {"status": "skipped", "reason": reason, "seconds": 0.0}, waiting)
                    else:
                        self.running.append(self._start(part, limit))
                for running in list(self.running):
                    if running.process.poll() is None and time.monotonic() - running.started > running.limit:
                        _kill(running.process)
                    if running.process.poll() is not None:
                        self.running.remove(running)
                        seconds = round(time.monotonic() - running.started, 1)
                        self._keep(
                            running.part, {**self._told(running), "seconds": seconds, "limit": round(running.limit)}, waiting
                        )
                time.sleep(0.1)
        finally:
            for running in self.running:
                _kill(running.process)
        return self.found

    def _workers(self) -> int:
        cores = len(os.sched_getaffinity(0))
        memory = self.machine["gigabytes"]
        workers = max(1, min(cores // 2, len(PARTS) if memory is None else int(memory // RUN_GB)))
        self.environment["OMP_NUM_THREADS"] = str(max(1, cores // workers))
        return workers

    def _may_start(self, part: Part, workers: int) -> bool:
        beside = part.together and all(running.part.together for running in self.running)
        return not self.running or (beside and len(self.running) < workers)

    def _without_base(self, part: Part) -> str:
        """Why a section cannot run, where the base could not be made in this run."""
        base = self.found.get("base")
        return f"no base: {base['reason']}" if part.together and base and base["status"] != "done" else ""

    def _left(self) -> float:
        return BUDGET - (time.monotonic() - self.started)

    def _keep(self, part: Part, entry: dict, waiting: Sequence[Part]) -> None:
        self.found[part.name] = self.record["parts"][part.name] = entry
        write_atomic(self.path, json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")
        left = [*(running.part for running in self.running), *waiting]
        alone = sum(p.expected for p in left if not p.together)
        rounds = -(-sum(p.together for p in left) // self._workers())
        told = (
            f"about {min(alone + rounds * 150, max(self._left(), 0)):.0f} s left"
            if left and not self.dry
            else f"{len(left)} parts left"
        )
        reason = f" ({entry['reason']})" if entry.get("reason") else ""
        clock = f"[{time.monotonic() - self.started:4.0f} s]"
        print(f"{clock} {part.name}: {entry['status']} in {entry['seconds']:.0f} s{reason}; {told}", flush=True)


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def summary(parts: Mapping[str, dict], show: Callable[[str], None] = print) -> None:
    """The tables of the parts, and what did not go well."""
    for name, part in parts.items():
        if part.get("rows"):
            show(f"\n{name}")
            for row in part["rows"]:
                show("  " + "  ".join(f"{key} {_short(value)}" for key, value in row.items() if value is not None))
    bad = [f"{name}: {part['status']}, {part.get('reason', '')}" for name, part in parts.items() if part["status"] != "done"]
    show("\n" + "\n".join(bad or ["Every part is done."]))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny: shows that it runs, measures nothing")
    parser.add_argument("--data", type=Path, help="folder of real rows for 5.1; default: those of the pack, else generated ones")
    parser.add_argument("--out", type=Path, help="folder of the records; default: benchmarks/results")
    options = parser.parse_args(argv)
    parts = chosen(options.only, options.dry)
    driver = Driver(options)
    print(f"{driver.machine['device']}; {len(parts)} parts; the record is {driver.path}", flush=True)
    found = driver.run(parts)
    summary(found)
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends what runs, see Driver.run
    try:
        failed = [name for name, part in main().items() if part["status"] == "failed"]
    except LabError as error:
        sys.exit(str(error))
    sys.exit(1 if failed else 0)
