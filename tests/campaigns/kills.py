"""Kills with -9 while something is written: `python -m tests.campaigns.kills [KILLS [SEED]]` (default 500, 0).

A process does one of the JOBS and is killed, either just before one of its operations on files or at any time after the first. What
it was to replace must then be there, whole, or its successor, whole; and the same job, done again, must give to the byte what it
gives undisturbed, with nothing of the killed one left. Prints kills, lost, left over and failed; exits with 1 if any of the
last three is not zero.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked

import json
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lab import files
from lab.cli.main import main as command
from lab.experiments.store import Store
from lab.files import content_hash, write_atomic
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.peft_io import load, save
from lab.records.record import find_record, load_records, make_record, save_record
from lab.training import loop
from lab.training.loop import Encoded, TrainConfig, bucketed_batches, fit

tqdm.monitor_interval = 0  # its thread's locks would be held for ever in a forked process
PATIENCE = 120  # seconds for one job on a loaded machine
OPERATIONS = {
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir", "os.truncate", "fcntl.flock",
    "shutil.rmtree", "ctypes.dlsym",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """work: done in the folder, in a process of its own. result: what it makes there, by name. before: what of it is there already.

    quietly: what else may stay.
    """

    name: str
    work: Callable[[Path], None]
    result: str
    before: Callable[[Path], None] = lambda folder: None
    quietly: Sequence[str] = ()


@dataclass
class Tally:
    kills: Counter = field(default_factory=Counter)
    late: int = 0
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.left or self.failed)

    def text(self) -> str:
        head = (
            f"user {os.getuid()}: {self.kills.total()} kills ({', '.join(f'{name} {n}' for name, n in self.kills.items())}; "
            f"{self.late} came too late), {len(self.lost)} lost, {len(self.left)} left over, {len(self.failed)} failed afterwards"
        )
        return "\n".join([head, *self.lost[:20], *self.left[:20], *self.failed[:20]])


# The jobs


def lay_out(root: Path) -> None:
    """Two skills, a base and rows, which all jobs read."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, eos_token_id=1, bos_token_id=2, pad_token_id=0)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    words = ["<pad>", "</s>", "<s>", "<unk>", *(f"w{i}" for i in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(root / "base")
    for name in ("one", "two"):
        save(root / name, skill(root, name))
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2}"} for i in range(40)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def skill(root: Path, name: str) -> LoraAdapter:
    places = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "qo"]
    return LoraAdapter(name, str(root / "base"), {place: LoraFactors(torch.randn(4, 16), torch.randn(16, 4), 0.5) for place in places})


def lab(*arguments: object) -> None:
    code = command([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"the command ended with {code}")


def merge(folder: Path, *more: str) -> None:
    root = folder.parent
    lab("merge", root / "one", root / "two", "--method", "cat_static", "--weights", 0.25, 0.75, "--out", folder / "both", "--overwrite", *more)


def merge_without_exchange(folder: Path) -> None:
    class Old:
        def __init__(self, *_, **__): ...

    files.ctypes.CDLL = Old  # of this process: a system without an exchange of names
    merge(folder)


def former(folder: Path) -> None:
    save(folder / "both", load(folder.parent / "one"))


def learn(folder: Path) -> None:
    root = folder.parent
    loop.fit.__kwdefaults__["checkpoint_seconds"] = 0.0
    lab("learn", root / "one", root / "two", "--method", "cat", "--data", root / "rows.jsonl", "--rates", 0.1, "--steps", 4, "--batch-size", 4,
        "--out", folder / "both", "--overwrite")  # fmt: skip


def fill_store(folder: Path) -> None:
    def make(place: Path, checkpoint: Path) -> None:
        torch.manual_seed(0)
        model = LlamaForCausalLM.from_pretrained(folder.parent / "base", dtype=torch.float32)
        batches = bucketed_batches([Encoded((2, 5, 6, 7, 1), 2)] * 8, 2, 4, 0, 0)
        losses = fit(model, batches, TrainConfig(steps=4, learning_rate=1e-3), checkpoint=checkpoint, checkpoint_seconds=0.0)
        save(place, load(folder.parent / "one"), overwrite=True)
        write_atomic(place / "training.json", json.dumps([round(loss, 3) for loss in losses]))

    Store(folder / "store").get("skill", {"seed": 0}, make, lambda place: load(place) and json.loads((place / "training.json").read_text()))


def record(folder: Path) -> None:
    rows = [
        {"id": f"{i}", "question": f"{i}", "group": "", "prompt": f"w{i} " * 40, "targets": ["1"], "metadata": {}, "completion": "w1 " * 40,
         "extracted": "1", "score": float(i % 2), "reason": "right" if i % 2 else "wrong", "extras": {}}
        for i in range(200)
    ]  # fmt: skip
    made = make_record(rows, section="s", preset="p", method="cat", seed=0, task="t", task_version=1, key="0123456789abcdef")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged one would be told
        found = find_record(folder / "records", "s", made.key)
        load_records(folder / "records")
        (found or save_record(made, rows, folder / "records")).rows()


JOBS = (
    Job("merge --overwrite", merge, "both", former),
    Job("merge", merge, "both"),
    Job("merge --overwrite without an exchange of names", merge_without_exchange, "both", former),
    Job("merge --fold-into", lambda folder: merge(folder, "--fold-into", str(folder.parent / "base")), "both", former),
    Job("learn --overwrite", learn, "both", former),
    Job("store entry", fill_store, "store/skill-*", quietly=["store", "store/.skill-*.lock"]),
    Job("record", record, "records/s/*.json", quietly=["records", "records/s", "records/s/*.jsonl.gz"]),
)
SHARES = (8, 3, 8, 2, 4, 4, 4)


# The kills


def run(job: Job, folder: Path, at: int = 0, beginning: int = -1) -> None:
    """Do a job in this process, a child, and end it. at: kill itself before this operation. beginning: where to write a byte at the first."""
    code, seen = 1, 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in OPERATIONS or (not seen and not any(isinstance(a, (str, os.PathLike)) and str(folder) in str(a) for a in arguments)):
            return
        seen += 1
        if seen == 1 and beginning >= 0:
            os.write(beginning, b"x")
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with open(folder.parent / "said", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.addaudithook(watch)
        job.work(folder)
        code = 0
        if beginning >= 0:
            os.write(beginning, f" {seen}".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork(job: Job, folder: Path, at: int = 0, after: float = -1) -> tuple[int, int, float]:
    """(exit status, operations, seconds from the first one on) of a job in a process of its own. after: seconds to its kill."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        run(job, folder, at, writes)
    os.close(writes)
    select.select([reads], [], [], PATIENCE)
    began = time.monotonic()
    if after >= 0:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # or it has ended, and waits to be looked after
    _, status = os.waitpid(child, 0)
    told = os.read(reads, 99).partition(b" ")[2]
    os.close(reads)
    return status, int(told or 0), time.monotonic() - began


def entries(folder: Path, job: Job) -> list[str]:
    """What is in the folder and belongs there neither as the result nor otherwise."""
    wanted = {path for pattern in (job.result, *job.quietly) for path in folder.glob(pattern)}
    inside = {path for top in folder.glob(job.result) if top.is_dir() for path in top.rglob("*")}
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path not in wanted | inside)


def state(folder: Path, job: Job) -> str:
    """What names the result as it is there; "" for none."""
    found = sorted(folder.glob(job.result))
    if job.name == "record":  # the machine's part of it differs from run to run
        return content_hash(*sorted(folder.glob("records/s/*.jsonl.gz"))) if found else ""
    return content_hash(*found) if found else ""


def kept_aside(folder: Path, job: Job) -> str:
    """What names the former result where it has no successor yet."""
    kept = sorted(folder.glob(".both.*.writing/old-*"))
    return content_hash(*kept) if "without" in job.name and not (folder / "both").exists() else ""


def campaign(kills: int, seed: int = 0, every: int = 0) -> Tally:
    tally, draw = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        root = Path(name)
        fork(Job("lay out", lambda folder: lay_out(root), ""), root / "x")  # what starts threads is done elsewhere
        known = {}
        for job in JOBS:
            folder = root / "undisturbed"
            folder.mkdir()
            job.before(folder)
            old = state(folder, job)
            status, operations, seconds = fork(job, folder)
            if status or entries(folder, job):
                raise SystemExit(f"{job.name} fails undisturbed: {(root / 'said').read_text()[-2000:]} {entries(folder, job)}")
            known[job.name] = old, state(folder, job), operations, seconds
            shutil.rmtree(folder)
        while tally.kills.total() < kills:
            (job,) = draw.choices(JOBS, SHARES)
            old, new, operations, seconds = known[job.name]
            folder = root / f"kill-{tally.kills.total()}"
            folder.mkdir()
            job.before(folder)
            aimed = draw.random() < 0.6
            at, after = (draw.randint(1, operations), -1) if aimed else (0, draw.uniform(0, seconds))
            status, _, _ = fork(job, folder, at, after)
            what = f"{job.name}, {f'operation {at}' if aimed else f'after {after:.3f} s'}"
            if os.WIFSIGNALED(status):
                tally.kills[job.name] += 1
            elif status:
                tally.failed.append(f"failed by itself: {what}: {(root / 'said').read_text()[-500:]}")
                break
            else:
                tally.late += 1
            if (now := state(folder, job)) not in (old, new) and kept_aside(folder, job) != old:
                tally.lost.append(f"lost: {what}: {now[:8]} is neither {old[:8]} nor {new[:8]}")
            status, _, _ = fork(job, folder)
            if status:
                tally.failed.append(f"failed: {what}: {(root / 'said').read_text()[-500:]}")
            elif state(folder, job) != new:
                tally.lost.append(f"lost: {what}: done again it is another")
            if left := entries(folder, job):
                tally.left.append(f"left over: {what}: {left}")
            shutil.rmtree(folder)
            if every and tally.kills.total() % every == 0:
                print(tally.text(), flush=True)
    return tally


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = campaign(*(int(text) for text in sys.argv[1:3] or ["500"]), every=20)
    print(found.text())
    sys.exit(not found.clean)
