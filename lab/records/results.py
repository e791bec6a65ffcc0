"""Records of runs: one JSON per method and seed with its completions beside it, and the tables that are made of them.

A record is written once and never edited. Wherever a table needs single problems (paired tests, super-linearity, examples), it
reads the completions that lie beside the record.
"""

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
import pandas as pd

from lab.errors import LabError
from lab.evaluation import statistics
from lab.files import PROJECT, write_atomic

ROLES = ("base", "skills", "controls", "static", "routers", "learned", "data", "open book")
RESAMPLES = 19999  # of the tests in a table of many comparisons: Holm multiplies the least possible p by their number
REASONS = ("right", "partly right", "wrong", "no answer", "raised", "timed out", "syntax error", "no code", "unscored")

# The one place that says what a method is called, what part it plays, and (by its line) where it stands. Skills stand after the
# base rows; a method that is not here is described by its nearest relative (see `describe`).
_METHODS = {
    "base": ("Base", "base"),
    "few_shot": ("Few-shot base", "base"),
    "terms_few_shot": ("terms skill, few-shot", "skills"),
    "manual_few_shot": ("manual skill, few-shot", "skills"),
    "cat_random": ("Random CAT", "controls"),
    "random_loras": ("Random LoRAs", "controls"),
    "new_lora": ("New LoRA, same data", "controls"),
    "new_lora_compute": ("New LoRA, same compute", "controls"),
    "rescale": ("Rescaled", "controls"),
    "rescale_one": ("One skill, rescaled", "controls"),
    "cat_static": ("Static CAT", "static"),
    "linear": ("Linear", "static"),
    "linear_factors": ("Linear on factors", "static"),
    "task_arithmetic": ("Task arithmetic", "static"),
    "svd": ("SVD", "static"),
    "slerp": ("SLERP", "static"),
    "ties": ("TIES", "static"),
    "ties_factors": ("TIES on factors", "static"),
    "dare_linear": ("DARE + linear", "static"),
    "dare_linear_factors": ("DARE + linear on factors", "static"),
    "dare_ties": ("DARE + TIES", "static"),
    "dare_ties_factors": ("DARE + TIES on factors", "static"),
    "magnitude_prune_factors": ("Magnitude pruning on factors", "static"),
    "della": ("DELLA", "static"),
    "breadcrumbs": ("Breadcrumbs", "static"),
    "knots": ("KnOTS", "static"),
    "core_space": ("Core Space", "static"),
    "tsv": ("TSV-M", "static"),
    "iso_c": ("Iso-C", "static"),
    "pico": ("Pico", "static"),
    "lora_lego": ("LoRA-LEGO", "static"),
    "arrow": ("Arrow", "routers"),
    "moe": ("MoE router", "routers"),
    "xlora": ("X-LoRA", "routers"),
    "remix": ("ReMix", "routers"),
    "lora_flow": ("LoRA-Flow", "routers"),
    "lorahub": ("LoRAHub, sees 5 targets", "learned"),
    "adamerging": ("AdaMerging", "learned"),
    "recycling": ("Recycling", "learned"),
    "rank_cat": ("CAT per rank", "learned"),
    "cat_released": ("Released CAT", "learned"),
    "cat": ("Learned CAT", "learned"),
    "data_mix": ("Data mix", "data"),
    "retrieval_bm25": ("Retrieval, BM25", "open book"),
    "retrieval_embedding": ("Retrieval, embeddings", "open book"),
}


@dataclass(frozen=True)
class MethodInfo:
    """How a method is shown. role: one of ROLES. position: sort key that groups by role."""

    name: str
    label: str
    role: str
    position: tuple


@dataclass(frozen=True)
class RunRecord:
    """One method, one seed, one task: what was measured and everything that determined it.

    method: a registered method, or a skill's own name for that skill alone. n: problems scored; unscored: problems left out.
    scores: means over the scored problems; 'right' is the main one. interval: 95 % of 'right', as if no two problems were
    wordings of one question. classes: reason -> count, over all
    problems. own: skill -> this method's score on that skill's own test. parameters, hashes, environment: JSON-able.
    coefficients: None or {'skills': [...], 'modules': [...], 'values': skills x modules}. loss: per step, or None.
    seconds: stage -> seconds. sandbox: isolation level. key: content hash of all that determines the result.
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
        """The completions: id, prompt, completion, extracted, answer, score (None when unscored), reason, extras.

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
        if hashlib.sha256(_jsonl(rows)).hexdigest() != self.completions:
            raise LabError(f"The completions {file} do not belong to their record; delete both and run again.")
        return rows


def questions_file(record: RunRecord) -> Path | None:
    """Where id, prompt and answer of a saved record's rows lie: once for all records of its folder that were asked the same.

    None for rows that hold them themselves. Raises LabError when the completions are missing or damaged.
    """
    head = _lines(record.path.with_suffix(".jsonl.gz"))[:1]
    return record.path.with_name(f"questions-{head[0]['questions']}.jsonl.gz") if head and head[0].keys() == {"questions"} else None


_ASKED = ("answer", "id", "prompt")  # of a completions row: the same for every method
# What may differ between two runs of the same thing without making them different results.
_CIRCUMSTANCES = {"path": None, "seconds": {}, "environment": {}}


def completion_rows(examples: Sequence, completions: Sequence[str], verdicts: Sequence) -> list[dict]:
    """Examples, their completions and verdicts as rows of a completions file. Raises LabError when the numbers differ."""
    if not len(examples) == len(completions) == len(verdicts):
        counts = f"{len(examples)} examples, {len(completions)} completions and {len(verdicts)} verdicts"
        raise LabError(f"There are {counts}; each example needs one of both.")
    return [
        {
            "id": example.id,
            "prompt": example.prompt,
            "completion": completion,
            "extracted": verdict.extracted,
            "answer": example.answer,
            "score": verdict.score,
            "reason": verdict.reason,
            "extras": dict(verdict.extras),
        }
        for example, completion, verdict in zip(examples, completions, verdicts, strict=True)
    ]


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
        classes={reason: classes[reason] for reason in sorted(classes, key=_reason_order)},
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
        completions=hashlib.sha256(_jsonl(rows)).hexdigest(),
    )


def save_record(record: RunRecord, rows: Sequence[Mapping], folder: Path | str) -> RunRecord:
    """Write completions, then the record, under `folder`; gives the record as it lies there.

    The same result saved again is left as it is (seconds and machine may differ). Raises LabError when the key is taken by
    another result, when the rows are not those of the record, or when the disk is full.
    """
    path = Path(folder) / record.section / f"{record.method}-seed{record.seed}-{record.key[:10]}.json"
    text = _jsonl(rows)
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
    asked = _jsonl([{name: row[name] for name in _ASKED} for row in rows])
    name = hashlib.sha256(asked).hexdigest()[:10]
    questions, packed = path.with_name(f"questions-{name}.jsonl.gz"), gzip.compress(asked, mtime=0)
    if not questions.exists() or questions.read_bytes() != packed:
        write_atomic(questions, packed)
    answered = [{key: value for key, value in row.items() if key not in _ASKED} for row in rows]
    write_atomic(path.with_suffix(".jsonl.gz"), gzip.compress(_jsonl([{"questions": name}, *answered]), mtime=0))


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
    """The finished record with this key, its completions intact; None when the work is still to be done."""
    for path in (Path(folder) / section).glob(f"*-{key[:10]}.json"):
        record = _intact(path)
        if record is not None and record.key == key:
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


def describe(method: str, skills: Iterable[str] = ()) -> MethodInfo:
    """Label, role and place of a method. `skills` names the methods that are a skill alone.

    An unlisted name takes its longest listed beginning ("cat_sigmoid" is of "cat"); one without is a static method.
    """
    skills = list(skills)
    order = list(_METHODS)
    if method in skills:
        return MethodInfo(method, f"{_spaced(method)} skill", "skills", (1, skills.index(method), method))
    parts = method.split("_")
    for length in range(len(parts), 0, -1):
        known = "_".join(parts[:length])
        if known in _METHODS:
            label, role = _METHODS[known]
            rest = " ".join(parts[length:])
            label = f"{label} ({rest})" if rest else label
            return MethodInfo(method, label, role, (ROLES.index(role), order.index(known), method))
    return MethodInfo(method, _spaced(method), "static", (ROLES.index("static"), len(order), method))


def skill_names(records: Iterable[RunRecord]) -> list[str]:
    """The skills that these records speak of, in the order of their first mention."""
    records = list(records)
    named = [name for r in records for name in (*r.own, *(r.coefficients or {}).get("skills", ()))]
    return list(dict.fromkeys(name.partition("[")[0] for name in named))  # one rank of a skill is called "maths[3]"


def result_table(records: Sequence[RunRecord], reference: str) -> pd.DataFrame:
    """One row per method, in order: what it scores, how sure that is, and how it differs from `reference`.

    Columns: label, role, score, low, high (95 %, over seeds and problems), by_seed (list), n, seeds, unscored, one per further
    score and one `own <skill>` per skill, difference, difference_low, difference_high, p (paired), p_holm, test, seconds (mean
    over seeds of all stages). Shares are fractions, differences are method minus reference, NaN in the reference's own row.
    A method with one seed (the base has no other) is compared with every seed of the reference.

    Raises LabError when the reference is missing, or records are of other problems or twice the same.
    """
    runs = _runs(records)
    if reference not in runs:
        raise LabError(f"There is no record of {reference} to compare with; choose one of {', '.join(runs)}.")
    skills, lines, p_values = skill_names(records), {}, {}
    for method, by_seed in runs.items():
        info, seeds = describe(method, skills), list(by_seed.values())
        estimate = statistics.mean_interval(_scores(by_seed))
        line = {
            "label": info.label,
            "role": info.role,
            "score": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
            "by_seed": [run.record.scores["right"] for run in seeds],
            "n": estimate.n,
            "seeds": estimate.seeds,
            "unscored": estimate.unscored,
        }
        for name in dict.fromkeys(name for run in seeds for name in run.record.scores if name != "right"):
            line[name] = _mean(run.record.scores.get(name) for run in seeds)
        for skill in skills:
            line[f"own {skill}"] = _mean(run.record.own.get(skill) for run in seeds)
        if method != reference:
            comparison = statistics.paired_test(*_paired(runs, method, reference))
            p_values[method] = comparison.p_value
            line |= {
                "difference": comparison.difference.mean,
                "difference_low": comparison.difference.low,
                "difference_high": comparison.difference.high,
                "p": comparison.p_value,
                "test": comparison.test,
            }
        line["seconds"] = _mean(sum(run.record.seconds.values()) for run in seeds)
        lines[method] = line
    adjusted = statistics.holm(p_values)
    for method, line in lines.items():
        line["p_holm"] = adjusted.get(method)
    further = [c for line in lines.values() for c in line if c not in _COLUMNS]
    columns = [*_COLUMNS[:9], *sorted(dict.fromkeys(further), key=lambda c: c.startswith("own ")), *_COLUMNS[9:]]
    table = pd.DataFrame.from_dict(lines, orient="index").reindex(columns=columns)
    table.index.name = "method"
    table.attrs["reference"] = reference
    return table


_COLUMNS = [
    "label", "role", "score", "low", "high", "by_seed", "n", "seeds", "unscored",
    "difference", "difference_low", "difference_high", "p", "p_holm", "test", "seconds",
]  # fmt: skip


def tradeoff(records: Sequence[RunRecord]) -> pd.DataFrame:
    """What each method keeps of the skills and what it composes, for methods with every skill's own test: means over seeds.

    Columns: label, role, own (mean over the skills' own tests) and score (the target), fractions; rank; support (effective
    number of skills per token, routers only); seconds to make it.
    """
    skills, lines = skill_names(records), {}
    for method, group in _group(records).items():
        if any(r.own.get(skill) is None for r in group for skill in skills):
            continue
        info = describe(method, skills)
        lines[method] = {
            "label": info.label, "role": info.role,
            "own": _mean(_mean(r.own[skill] for skill in skills) for r in group),
            "score": _mean(r.scores["right"] for r in group),
            "rank": _mean(r.parameters.get("rank") for r in group),
            "support": _mean(r.parameters.get("effective_support") for r in group),
            "seconds": _mean(r.seconds.get("make") for r in group),
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def format_tradeoff(table: pd.DataFrame) -> pd.DataFrame:
    """A tradeoff table as people read it, best on the target first. Strings throughout."""
    table = table.sort_values("score", ascending=False)
    return pd.DataFrame(
        {
            "right on the target, %": [_percent(value) for value in table["score"]],
            "own tests, mean %": [_percent(value) for value in table["own"]],
            "rank": ["" if np.isnan(value) else f"{value:.0f}" for value in table["rank"]],
            "skills per token, effective": ["" if np.isnan(value) else f"{value:.2f}" for value in table["support"]],
            "seconds to make": [f"{value:.1f}" for value in table["seconds"]],
        },
        index=table["label"].rename(None),
    )


def finding(table: pd.DataFrame) -> str:
    """One sentence from a result table: where the reference stands, which method it must be held against, and how sure that is."""
    reference = table.attrs["reference"]
    own = table.loc[reference]
    others = table.drop(index=reference)
    if others.empty:
        return f"{own['label']} solves {_percent(own['score'])} %; there is nothing to compare it with."
    best = others.loc[others["score"].astype(float).idxmax()]
    points, low, high = (-100 * float(best[name]) for name in ("difference", "difference_high", "difference_low"))
    size = f"{abs(points):.1f}"
    order = "level with" if size == "0.0" else f"{size} points {'ahead of' if points > 0 else 'behind'}"
    p_value = f"({_p_said(best['p_holm'])}, Holm)"
    if not best["p_holm"] < 0.05:
        sure = f"not a clear difference {p_value}"
    elif _is_sure(best["p_holm"], low, high):
        sure = f"a clear difference {p_value}"
    else:
        span = f"{low:+.1f} to {high:+.1f}".replace("-", "−")
        sure = f"a clear difference with these seeds {p_value}, not for new ones ({span})"
    return (
        f"{own['label']} solves {_percent(own['score'])} %, {order} the best other method, "
        f"{best['label']} ({_percent(best['score'])} %): {sure}."
    )


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """A result table as people read it: per cent with intervals, differences in points, p after Holm. Strings throughout."""
    reference = table.attrs["reference"]
    shown = pd.DataFrame({"method": table["label"]})
    shown["right, % (95 % interval)"] = [_percent_range(*row) for row in table[["score", "low", "high"]].to_numpy()]
    for name in table.columns[len(_COLUMNS[:9]) : -len(_COLUMNS[9:])]:
        heading = f"{name.removeprefix('own ')} test, %" if name.startswith("own ") else f"{_spaced(name)}, %"
        shown[heading] = [_percent(value) for value in table[name]]
    differences = table[["difference", "difference_low", "difference_high"]].to_numpy(dtype=float)
    heading = f"difference to {table.at[reference, 'label']}, points"
    shown[heading] = [_points_range(*row) for row in differences]
    shown["p (Holm)"] = [_p_value(value) for value in table["p_holm"]]
    shown["n × seeds"] = [f"{n} × {seeds}" for n, seeds in table[["n", "seeds"]].to_numpy()]
    if table["unscored"].any():
        shown["unscored"] = table["unscored"].astype(str)
    shown["seconds"] = [f"{value:,.0f}" for value in table["seconds"]]
    return shown.set_index("method").rename_axis(None)


def differences(pairs: Mapping[tuple, tuple[Sequence[RunRecord], Sequence[RunRecord]]]) -> pd.DataFrame:
    """How the first of each pair differs from the second, problem by problem; p corrected for all pairs (Holm).

    pairs: name -> the records of two methods (or of one, with other skills) that answered the same problems, one record per seed;
    one without seeds stands beside every seed of the other. One row per pair: difference, low, high (fractions, 95 %), p, p_holm,
    verdict, test, n, seeds. The verdict is "better" or "worse" where the difference is sure, else "unclear". Raises LabError when
    the problems differ.
    """
    by_path = {r.path: r for pair in pairs.values() for own in pair for r in own}
    rows = {path: {row["id"]: row for row in record.rows()} for path, record in by_path.items()}
    lines = {}
    for name, pair in pairs.items():
        runs = dict(enumerate({r.seed: _Run(r, rows[r.path]) for r in own} for own in pair))
        _check_problems(runs)
        found = statistics.paired_test(*_paired(runs, 0, 1), resamples=RESAMPLES)
        own = found.difference
        lines[name] = {
            "difference": own.mean, "low": own.low, "high": own.high, "p": found.p_value, "test": found.test,
            "n": own.n, "seeds": own.seeds,
        }  # fmt: skip
    adjusted = statistics.holm({name: line["p"] for name, line in lines.items()})
    for name, line in lines.items():
        sure = _is_sure(adjusted[name], line["low"], line["high"])
        line |= {"p_holm": adjusted[name], "verdict": ("better" if line["difference"] > 0 else "worse") if sure else "unclear"}
    return pd.DataFrame(list(lines.values()), index=pd.MultiIndex.from_tuples(lines))


def format_differences(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the columns of `differences` as people read it. Strings throughout."""
    return pd.DataFrame(
        {
            "difference, points": [_points_range(*row) for row in table[["difference", "low", "high"]].to_numpy(dtype=float)],
            "p (Holm)": [_p_value(value) for value in table["p_holm"]],
            "verdict": table["verdict"],
            "n × seeds": [f"{n} × {seeds}" for n, seeds in table[["n", "seeds"]].to_numpy()],
        },
        index=table.index,
    )


def error_classes(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Share of all problems in each class (columns, in the order of REASONS), per method label; mean over seeds."""
    skills = skill_names(records)
    lines = {}
    for method, by_seed in _group(records).items():
        shares = [{reason: count / (r.n + r.unscored) for reason, count in r.classes.items()} for r in by_seed]
        lines[describe(method, skills).label] = pd.DataFrame(shares).fillna(0).mean()
    table = pd.DataFrame(lines).T.fillna(0)
    return table[sorted(table.columns, key=_reason_order)]


def super_linearity(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Which problems each merge solves that no skill alone solves (Table 1 of the paper); skill and merge of the same seed.

    Rows: every method that has all skills to work with, by label. Columns: merged_only, low, high (share of problems, 95 %),
    merged_only_count, lost_count, merged_count, any_skill_count, sum_of_skills (mean counts over seeds), super_linear, n, seeds.

    Raises LabError when no record of a skill alone is there, or a score is neither 0 nor 1.
    """
    runs, skills = _runs(records), skill_names(records)
    alone = [skill for skill in skills if skill in runs]
    if not alone:
        raise LabError("There is no record of a skill alone; evaluate the skills before asking what a merge adds to them.")
    lines = {}
    for method in runs:
        info = describe(method, skills)
        if info.role in ("base", "skills"):
            continue
        merged, *others = _paired(runs, method, *alone)
        result = statistics.super_linearity(merged, others)
        share = result.merged_only
        line = asdict(result) | {"merged_only": share.mean, "low": share.low, "high": share.high}
        lines[info.label] = line | {"n": share.n, "seeds": share.seeds}
    return pd.DataFrame.from_dict(lines, orient="index")


def format_super_linearity(table: pd.DataFrame) -> pd.DataFrame:
    """A super-linearity table as people read it: counts of problems, mean over seeds, shares in per cent. Strings throughout."""
    return pd.DataFrame(
        {
            "solved": [_count(count) for count in table["merged_count"]],
            "only by the merge": [_count(count) for count in table["merged_only_count"]],
            "only by the merge, % (95 % interval)": [
                _percent_range(*row) for row in table[["merged_only", "low", "high"]].to_numpy(dtype=float)
            ],
            "by a skill, not the merge": [_count(count) for count in table["lost_count"]],
            "by any skill": [_count(count) for count in table["any_skill_count"]],
            "skills added up": [_count(count) for count in table["sum_of_skills"]],
            "super-linear": ["yes" if more else "no" for more in table["super_linear"]],
        },
        index=table.index,
    )


def _count(mean: float) -> str:
    return f"{mean:.1f}".removesuffix(".0")


def table_one(records: Sequence[RunRecord], method: str = "cat") -> pd.DataFrame:
    """The paper's Table 1 for two skills: fractions right, rows without and with the first skill, columns the second.

    Raises LabError unless there are records of `base`, of exactly two skills alone, and of the method.
    """
    groups, skills = _group(records), skill_names(records)
    alone = [skill for skill in skills if skill in groups]
    missing = [name for name in ("base", method) if name not in groups]
    if missing or len(alone) != 2:
        raise LabError(f"Table 1 needs base, {method} and two skills alone; there are {', '.join(groups)}.")
    first, second = alone
    right = {name: _mean(r.scores["right"] for r in groups[name]) for name in ("base", first, second, method)}
    return pd.DataFrame(
        [[right["base"], right[second]], [right[first], right[method]]],
        index=[f"no {_spaced(first)}", _spaced(first)],
        columns=[f"no {_spaced(second)}", _spaced(second)],
    )


def paper_and_measured(records: Sequence[RunRecord], paper: Mapping[str, float | None], score: str = "right") -> pd.DataFrame:
    """Published numbers beside ours, in per cent. paper: method -> fraction, or None where the paper has none. score: which of ours."""
    groups, skills = _group(records), skill_names(records)
    names = sorted({*paper, *groups}, key=lambda name: describe(name, skills).position)
    lines = {}
    for name in names:
        measured = _mean(r.scores.get(score) for r in groups[name]) if name in groups else None
        lines[describe(name, skills).label] = [_percent(paper.get(name)), _percent(measured)]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["paper, %", "measured, %"])


def loss_curves(records: Sequence[RunRecord]) -> dict[str, list[list[float]]]:
    """Loss per step of every method that learned something: label -> one curve per seed."""
    skills = skill_names(records)
    curves = {describe(m, skills).label: [r.loss for r in rs if r.loss] for m, rs in _group(records).items()}
    return {label: lines for label, lines in curves.items() if lines}


def stage_seconds(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Seconds of each stage, per method label; mean over seeds."""
    skills = skill_names(records)
    lines = {describe(m, skills).label: pd.DataFrame([r.seconds for r in rs]).mean() for m, rs in _group(records).items()}
    return pd.DataFrame(lines).T


def paired_rows(records: Sequence[RunRecord], methods: Sequence[str]) -> dict[int, dict[str, list[dict]]]:
    """Seed -> method -> completions rows, problems in one order for all; a method with one seed stands beside every other's.

    Raises LabError for a method without a record, other problems, or methods without a common seed.
    """
    runs = _runs(records)
    missing = [name for name in methods if name not in runs]
    if missing:
        raise LabError(f"There is no record of {missing[0]}; choose among {', '.join(runs)}.")
    order = list(next(iter(runs[methods[0]].values())).rows)
    return {
        seed: {name: [_at(runs[name], seed).rows[key] for key in order] for name in methods}
        for seed in _common_seeds(runs, methods)
    }


@dataclass(frozen=True)
class WorkedExample:
    """One problem and what several methods wrote. answers: label -> completions row."""

    id: str
    prompt: str
    answer: str
    answers: Mapping[str, Mapping]


def worked_examples(records: Sequence[RunRecord], method: str = "cat", count: int = 3) -> list[WorkedExample]:
    """Problems with the skills' and the method's completions, of the first seed that all of them have.

    First the problems that only the method solves, then those that it solves at all, then the rest; each in the order of the
    data, so nothing is picked by hand.
    """
    runs, skills = _runs(records), skill_names(records)
    if method not in runs:
        raise LabError(f"There is no record of {method}; choose one of {', '.join(runs)}.")
    names = [*(skill for skill in skills if skill in runs), method]
    seed = _common_seeds(runs, names)[0]
    rows = {name: _at(runs[name], seed).rows for name in names}
    solved = {name: {key for key, row in by_id.items() if row["score"] == 1} for name, by_id in rows.items()}
    by_skill = set().union(*(solved[name] for name in names[:-1]))
    order = sorted(rows[method], key=lambda key: (key not in solved[method], key in by_skill))
    labels = {name: describe(name, skills).label for name in names}
    return [
        WorkedExample(key, rows[method][key]["prompt"], rows[method][key]["answer"], {labels[n]: rows[n][key] for n in names})
        for key in order[:count]
    ]


@dataclass(frozen=True)
class _Run:
    """A record with its completions by problem."""

    record: RunRecord
    rows: Mapping[str, Mapping]

    @functools.cached_property
    def questions(self) -> dict[str, float | None]:
        return by_question(self.rows.values())


def _group(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records by method and, inside, by seed, both in order. Raises LabError for none, or two of the same method and seed."""
    if not records:
        raise LabError("There are no records; run the section first.")
    skills = skill_names(records)
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (describe(r.method, skills).position, r.seed)):
        group = groups.setdefault(record.method, [])
        if group and group[-1].seed == record.seed:
            raise LabError(
                f"There are two records of {record.method} seed {record.seed}; give the records of one run, "
                "for example those of one preset."
            )
        group.append(record)
    return groups


def _runs(records: Sequence[RunRecord]) -> dict[str, dict[int, _Run]]:
    runs = {
        method: {r.seed: _Run(r, {row["id"]: row for row in r.rows()}) for r in group}
        for method, group in _group(records).items()
    }
    _check_problems(runs)
    return runs


def _check_problems(runs: Mapping[object, Mapping[int, _Run]]) -> None:
    first = next(run for by_seed in runs.values() for run in by_seed.values())
    for by_seed in runs.values():
        for run in by_seed.values():
            if run.rows.keys() != first.rows.keys():
                raise LabError(
                    f"{run.record.method} (seed {run.record.seed}, {len(run.rows)} problems) and {first.record.method} "
                    f"({len(first.rows)} problems) were run on different problems; give records of the same ones."
                )


def by_question(rows: Iterable[Mapping]) -> dict[str, float | None]:
    """Score per question: the mean over its wordings, which are not independent; None where one of them is unscored.

    The id of a problem that is asked in several wordings names the wording, then the question: "format 3, 17".
    """
    scores: dict[str, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row["id"].rpartition(", ")[2], []).append(row["score"])
    return {question: None if None in own else sum(own) / len(own) for question, own in scores.items()}


def _scores(by_seed: Mapping[int, _Run]) -> list[list[float | None]]:
    """(seeds, questions), questions in the order of the first run."""
    order = list(next(iter(by_seed.values())).questions)
    return [[run.questions[question] for question in order] for run in by_seed.values()]


def _common_seeds(runs: Mapping[str, Mapping[int, _Run]], methods: Sequence[str]) -> list[int]:
    """Seeds that all these methods have; a method with one seed goes with any."""
    several = [set(runs[method]) for method in methods if len(runs[method]) > 1]
    seeds = sorted(set.intersection(*several)) if several else list(runs[methods[0]])
    if not seeds:
        raise LabError(f"{', '.join(methods)} have no seed in common; run them with the same seeds.")
    return seeds


def _at(by_seed: Mapping[int, _Run], seed: int) -> _Run:
    return by_seed[seed] if seed in by_seed else next(iter(by_seed.values()))


def _paired(runs: Mapping[str, Mapping[int, _Run]], *methods: str) -> list[list[list[float | None]]]:
    """Per method (seeds, questions), with the same questions and, as far as they have several, the same seeds."""
    order = list(next(iter(runs[methods[0]].values())).questions)
    seeds = _common_seeds(runs, methods)
    return [[[_at(runs[method], seed).questions[question] for question in order] for seed in seeds] for method in methods]


def _jsonl(rows: Sequence[Mapping]) -> bytes:
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


def _reason_order(reason: str) -> tuple:
    return (REASONS.index(reason) if reason in REASONS else len(REASONS), reason)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _mean(values: Iterable[float | None]) -> float:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else float("nan")


def _percent(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def _percent_range(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _points_range(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def _is_sure(p_holm: float, low: float, high: float) -> bool:
    """Whether a difference is clear: by the test, which speaks of these seeds, and by its interval, which speaks of new ones too."""
    return p_holm < 0.05 and low * high > 0


def _p_said(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _p_value(value: float | None) -> str:
    if value is None or np.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
