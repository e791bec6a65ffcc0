"""Records of runs: one JSON per method and seed with its completions beside it. A record is written once and never edited."""

import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from lab.errors import LabError
from lab.evaluation import statistics
from lab.experiments.candidates.registry import describe
from lab.files import PROJECT, clear_leftovers, write_atomic

REASONS = (
    "right", "partly right", "wrong", "no answer", "raised", "not permitted", "module not offered", "timed out", "syntax error",
    "no code", "unscored",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """One method, one seed, one task: what was measured and everything that determined it.

    method: a registered method, or a skill's own name for that skill alone. n: problems scored; unscored: problems left out.
    scores: means over the scored problems; 'right' is the main one. interval: 95 % of 'right', as if no two problems were
    wordings of one question. classes: reason -> count, over all
    problems. own: skill -> this method's score on that skill's own test. parameters, hashes, environment: JSON-able.
    coefficients: None or {'skills': [...], 'modules': [...], 'values': skills x modules}. loss: per step, or None.
    seconds: stage -> seconds. sandbox: isolation level, and what still holds
    of it where it is weak. key: content hash of all that determines the result.
    completions: sha256 of the completions beside it. path: where the record lies; not part of its content.
    """

    section: str
    preset: str
    method: str
    seed: int
    task: str
    task_version: int
    n: int
    scores: Mapping[str, float]
    interval: tuple[float, float]
    classes: Mapping[str, int]
    unscored: int
    own: Mapping[str, float]
    parameters: Mapping[str, object]
    hashes: Mapping[str, str]
    coefficients: Mapping[str, list] | None
    loss: Sequence[float] | None
    seconds: Mapping[str, float]
    sandbox: str
    environment: Mapping[str, object]
    key: str
    completions: str
    path: Path | None = field(default=None, compare=False, repr=False)

    def rows(self) -> list[dict]:
        """The completions: rows as lab.evaluation.evaluate.scored_rows makes them.

        Raises LabError when the file is missing or is not the one that this record was made of.
        """
        if self.path is None:
            raise LabError(f"The record of {self.method} seed {self.seed} was not saved; save it before reading completions.")
        file = self.path.with_suffix(".jsonl.gz")
        rows = _lines(file)
        if (asked := questions_file(self)) is not None:
            questions = _lines(asked)
            if len(questions) != len(rows) - 1:
                raise LabError(f"The questions {asked} are not those of {file}; delete both and run again.")
            rows = [question | row for question, row in zip(questions, rows[1:], strict=True)]
        if hashlib.sha256(jsonl(rows)).hexdigest() != self.completions:
            raise LabError(f"The completions {file} do not belong to their record; delete both and run again.")
        return rows


def questions_file(record: RunRecord) -> Path | None:
    """Where what was asked of a saved record's rows lie: once for all records of its folder that were asked the same.

    None for rows that hold them themselves. Raises LabError when the completions are missing or damaged.
    """
    head = _lines(record.path.with_suffix(".jsonl.gz"))[:1]
    return record.path.with_name(f"questions-{head[0]['questions']}.jsonl.gz") if head and head[0].keys() == {"questions"} else None


_ASKED = ("group", "id", "metadata", "prompt", "question", "targets")  # of a completions row: the same for every method


_CIRCUMSTANCES = {"path": None, "seconds": {}, "environment": {}}


def make_record(
    rows: Sequence[Mapping],
    *,
    section: str,
    preset: str,
    method: str,
    seed: int,
    task: str,
    task_version: int,
    key: str,
    own: Mapping[str, float] | None = None,
    parameters: Mapping[str, object] | None = None,
    hashes: Mapping[str, str] | None = None,
    coefficients: Mapping[str, list] | None = None,
    loss: Sequence[float] | None = None,
    seconds: Mapping[str, float] | None = None,
    sandbox: str = "",
) -> RunRecord:
    """A record of these completions, its scores, interval and classes counted from them, its environment from this machine.

    Raises LabError when no row is scored or two rows have the same id.
    """
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise LabError(f"Problem {twice} occurs twice in the completions of {method}; give every problem its own id.")
    estimate = statistics.mean_interval([row["score"] for row in rows])
    scored = [row for row in rows if row["score"] is not None]
    extras = sorted({name for row in scored for name in row["extras"]})
    classes = Counter(row["reason"] for row in rows)
    return RunRecord(
        section=section,
        preset=preset,
        method=method,
        seed=seed,
        task=task,
        task_version=task_version,
        n=estimate.n,
        scores={"right": estimate.mean}
        | {name: float(np.mean([row["extras"][name] for row in scored if name in row["extras"]])) for name in extras},
        interval=(estimate.low, estimate.high),
        classes={reason: classes[reason] for reason in sorted(classes, key=reason_order)},
        unscored=estimate.unscored,
        own=dict(own or {}),
        parameters=dict(parameters or {}),
        hashes=dict(hashes or {}),
        coefficients=coefficients,
        loss=None if loss is None else [round(float(value), 5) for value in loss],
        seconds=dict(seconds or {}),
        sandbox=sandbox,
        environment=environment(),
        key=key,
        completions=hashlib.sha256(jsonl(rows)).hexdigest(),
    )


def save_record(record: RunRecord, rows: Sequence[Mapping], folder: Path | str) -> RunRecord:
    """Write completions, then the record, under `folder`; gives the record as it lies there.

    The same result saved again is left as it is (seconds and machine may differ). Raises LabError when the key is taken by
    another result, when the rows are not those of the record, or when the disk is full.
    """
    path = Path(folder) / record.section / f"{record.method}-seed{record.seed}-{record.key[:10]}.json"
    text = jsonl(rows)
    if hashlib.sha256(text).hexdigest() != record.completions:
        raise LabError(f"These completions are not those of the record of {record.method} seed {record.seed}; make it from them.")
    content = asdict(replace(record, path=None))
    del content["path"]
    try:
        lines = [f" {json.dumps(name)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}" for name, value in content.items()]
    except (TypeError, ValueError) as error:
        raise LabError(f"The record of {record.method} seed {record.seed} cannot be written as JSON: {error}.") from error
    past = _intact(path)
    if past is not None:
        made = _parse("{" + ",".join(lines) + "}")
        if replace(past, **_CIRCUMSTANCES) == replace(made, **_CIRCUMSTANCES):
            return past
        raise LabError(
            f"{path} holds another result for the same key (right {past.scores['right']:.4f}, now {made.scores['right']:.4f}); "
            "a past record is never edited: put what changed into the key, or raise the task's version."
        )
    save_rows(rows, path)
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return _read(path)


def save_rows(rows: Sequence[Mapping], path: Path) -> None:
    """Write the completions of the record at `path`; what was asked goes into a file that records asked the same share."""
    asked = jsonl([{name: row[name] for name in _ASKED} for row in rows])
    name = hashlib.sha256(asked).hexdigest()[:10]
    questions, packed = path.with_name(f"questions-{name}.jsonl.gz"), gzip.compress(asked, mtime=0)
    if not questions.exists() or questions.read_bytes() != packed:
        write_atomic(questions, packed)
    else:
        clear_leftovers(questions)
    answered = [{key: value for key, value in row.items() if key not in _ASKED} for row in rows]
    write_atomic(path.with_suffix(".jsonl.gz"), gzip.compress(jsonl([{"questions": name}, *answered]), mtime=0))


def load_records(folder: Path | str, section: str | None = None) -> list[RunRecord]:
    """All records under `folder`, or of one section, in the order of their methods and seeds.

    Damaged and foreign files are skipped and named in one warning.
    """
    records, skipped = read_records(folder, section)
    if skipped:
        warnings.warn(f"Skipped in {folder}, not a record or damaged: {', '.join(skipped)}.", stacklevel=2)
    return records


def read_records(folder: Path | str, section: str | None = None) -> tuple[list[RunRecord], list[str]]:
    """As `load_records`, with the damaged and foreign files named beside (relative to `folder`) and no warning."""
    folder = Path(folder)
    records, skipped = [], []
    for path in sorted(folder.glob(f"{section or '*'}/*.json")):
        try:
            records.append(_read(path))
        except LabError:
            skipped.append(str(path.relative_to(folder)))
    skills = skill_names(records)
    return sorted(records, key=lambda r: (r.section, describe(r.method, skills).position, r.seed, r.key)), skipped


def find_record(folder: Path | str, section: str, key: str) -> RunRecord | None:
    """The finished record with this key, its completions intact; None when the work is still to be done.

    A damaged one is named in a warning, since it is about to be made again.
    """
    for path in (Path(folder) / section).glob(f"*-{key[:10]}.json"):
        record = _intact(path)
        if record is None:
            warnings.warn(f"{path}, or its completions, is damaged: it is made again.", stacklevel=2)
        elif record.key == key:
            for file in filter(None, (path, path.with_suffix(".jsonl.gz"), questions_file(record))):
                clear_leftovers(file)
            return record
    return None


def environment() -> dict[str, object]:
    """Where and with what a run was made: git commit (None without git), dirty, versions, device, cores, system.

    Looked up once per process, whose code is the code that was there when it started.
    """
    return dict(_environment())


@functools.cache
def _environment() -> dict[str, object]:
    names = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    commit = _git("rev-parse", "HEAD")
    # Results and executed notebooks change while a run is going on; they do not make its code another one.
    status = _git("status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)artifacts")
    return {
        "commit": commit or None,
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "device": _device(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def skill_names(records: Iterable[RunRecord]) -> list[str]:
    """The skills that these records speak of, in the order of their first mention."""
    records = list(records)
    named = [name for r in records for name in (*r.own, *(r.coefficients or {}).get("skills", ()))]
    return list(dict.fromkeys(name.partition("[")[0] for name in named))  # one rank of a skill is called "maths[3]"


def by_question(rows: Iterable[Mapping], score: str = "right") -> dict[str, float | None]:
    """Score per question: the mean over its wordings, which are not independent; None where one of them is unscored.

    score: "right", or another of the rows' extras.
    """
    scores: dict[str, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row["question"] or row["id"], []).append(row["score"] if score == "right" else row["extras"].get(score))
    return {question: None if None in own else sum(own) / len(own) for question, own in scores.items()}


def jsonl(rows: Sequence[Mapping]) -> bytes:
    return "".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows).encode()


def _lines(file: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:
        raise LabError(f"The completions {file} are missing or damaged; delete the record and run again.") from error


def _parse(text: str) -> RunRecord:
    content = json.loads(text)
    names = {f.name for f in fields(RunRecord)} - {"path"}
    if not isinstance(content, dict) or set(content) != names:
        raise LabError("This is not a record.")
    mappings = ("scores", "classes", "own", "parameters", "hashes", "seconds", "environment")
    fits = all(isinstance(content[name], dict) for name in mappings) and all(type(content[name]) is int for name in ("seed", "n"))
    if not fits or not isinstance(content["scores"].get("right"), float | int):
        raise LabError("This is not a record.")
    return RunRecord(**content | {"interval": tuple(content["interval"])})


def _read(path: Path) -> RunRecord:
    try:
        record = _parse(path.read_text())
        # A record of another folder or name would stand for a run that it is not.
        if path.name != f"{record.method}-seed{record.seed}-{record.key[:10]}.json" or path.parent.name != record.section:
            raise LabError(f"{path} is not the record that its name says.")
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{path} is not a record or is damaged; delete it and run again.") from error
    return replace(record, path=path)


def _intact(path: Path) -> RunRecord | None:
    """The record at `path` if it and its completions can be read."""
    try:
        record = _read(path)
        record.rows()
    except LabError:
        return None
    return record


def _git(*arguments: str) -> str | None:
    """What git says about the project's own folder; None without git or outside a repository."""

    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device() -> str:
    import torch  # here, so that reading records needs no torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or "CPU"


def reason_order(reason: str) -> tuple:
    return (REASONS.index(reason) if reason in REASONS else len(REASONS), reason)
