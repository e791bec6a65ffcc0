"""Adapters, merges and routers of one's own, asked one's own rows: recorded one by one, a table per file of rows, and what is kept."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lab.errors import LabError
from lab.evaluation import statistics
from lab.evaluation.evaluate import Decoding, evaluate
from lab.evaluation.generate import further_ends
from lab.evaluation.sandbox import isolation_level
from lab.experiments.context import Routed, asked_digest, remembering
from lab.experiments.store import Store
from lab.files import content_hash
from lab.lora.adapter import LoraAdapter
from lab.lora.base import base_hash, load_base
from lab.lora.compatibility import check_compatible
from lab.lora.stacked import attach
from lab.merging import METHODS
from lab.merging.routing import load_router
from lab.records import tables
from lab.records.format import p_value, percent, percent_range, points_range
from lab.records.record import RunRecord, by_question, find_record, make_record, save_record
from lab.tasks import Task
from lab.tasks.metrics import Asked

BASE = "base"  # the contender without an adapter


@dataclass(frozen=True)
class Contender:
    """name: in tables and records. role: one of lab.experiments.candidates.ROLES. what: None is the base itself."""

    name: str
    role: str
    what: LoraAdapter | Routed | None

    @property
    def recipe(self) -> Mapping:
        return self.what.recipe if isinstance(self.what, LoraAdapter) else {}


def contender(what: LoraAdapter, name: str) -> Contender:
    """An adapter in its role: a merge by what its recipe says, else a skill."""
    method = METHODS.get(str(what.recipe.get("method", "")))
    return Contender(name, method.role if method else "skill", what)


@dataclass(frozen=True)
class OwnData:
    """A file of rows. name: where it is a skill's name too, its rows are that skill's own. judge: identity of the judge, "" without one."""

    name: str
    task: Task
    asked: Sequence[Asked]
    judge: str = ""


def ask_all(
    base: str, contenders: Sequence[Contender], data: Sequence[OwnData], *, dtype: str, chat: bool, batch_size: int, work: Path,
    told: Callable[[str], None],
) -> list[RunRecord]:  # fmt: skip
    """One record per contender and data, data outermost; what `work` holds already is not asked again.

    told: a line after each, with how long the rest will take. Raises LabError, before anything is asked, for what does not fit the
    base and for turns that its chat template refuses.
    """
    model, tokenizer = load_base(base, dtype=dtype)
    for found in contenders:
        if isinstance(found.what, Routed):
            with attach(model, found.what.adapters) as stack:
                load_router(found.what.folder, stack)
        elif found.what:
            check_compatible([found.what], model)
    examples = {one.name: [asked.example(tokenizer, chat) for asked in one.asked] for one in data}
    on_base = {"base": base_hash(base), "dtype": dtype}
    decoding = {"ends": further_ends(model, tokenizer)}
    store, folder = Store(work / "store"), work / "records"
    records, spent, asked_now = [], 0.0, 0
    left = len(contenders) * sum(map(len, examples.values()))
    for one in data:
        own = examples[one.name]
        task = one.task
        facts = {"metric": task.name, "max_new_tokens": task.max_new_tokens, "stop": task.stop, "chat": chat, "judge": one.judge}
        for found in contenders:
            digest = found.what.digest() if found.what else ""
            key = content_hash(found.name, on_base, digest, one.task.version, facts, decoding, asked_digest(own))
            record = find_record(folder, one.name, key)
            if record is None:
                began = time.monotonic()
                remember = remembering(store, model, found.what, on_base)
                answered = evaluate(
                    model, tokenizer, one.task, own, Decoding(batch_size=batch_size), remember=remember, label=f"{one.name}, {found.name}"
                )
                rows = list(answered.rows)
                made = make_record(
                    rows, section=one.name, preset="own", method=found.name, seed=0, task=one.task.name, task_version=one.task.version,
                    parameters={"role": found.role, "base": base, **facts, **({"rank": found.what.rank} if found.what else {})},
                    hashes={"base": on_base["base"], "adapter": digest, "data": asked_digest(own)},
                    coefficients=_coefficients(found.recipe),
                    seconds=answered.seconds, sandbox=isolation_level().name if one.task.name == "program" else "", key=key,
                )  # fmt: skip
                record = save_record(made, rows, folder)
                spent, asked_now = spent + time.monotonic() - began, asked_now + len(own)
            left -= len(own)
            rest = f"; about {_duration(spent / asked_now * left)} to go" if asked_now and left else ""
            told(f"{one.name}: {found.name} {percent_range(record.scores['right'], *record.interval)} % of {record.n}{rest}")
            records.append(record)
    return records


def _coefficients(recipe: Mapping) -> dict[str, list] | None:
    if not recipe.get("coefficients"):
        return None
    values = [[round(value, 5) for value in row] for row in recipe["coefficients"]]
    return {"skills": recipe["skills"], "modules": recipe["modules"], "values": values}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def own_table(records: Sequence[RunRecord], reference: str) -> pd.DataFrame:
    """tables.result_table of one data's records, in their order, under the contenders' own names."""
    names = [record.method for record in records]
    table = tables.result_table(records, reference).loc[names]
    table = table.drop(columns=[name for name in table if name.startswith("own ")])  # of a recipe's skills: nothing was asked of these
    table["label"], table["role"] = names, [record.parameters["role"] for record in records]
    table.attrs["reference"] = reference
    return table


def retention(records: Sequence[RunRecord]) -> pd.DataFrame:
    """What each other adapter keeps of each skill whose own rows were asked: statistics.retention, the p-values adjusted over all (Holm).

    One row per skill and adapter; empty where no data is called as a skill among the contenders, or the base was not asked. Columns:
    skill, adapter, n, base, skill_score, adapter_score, difference, low, high, p, p_holm, kept, kept_low, kept_high.
    """
    by_data: dict[str, dict[str, RunRecord]] = {}
    for record in records:
        by_data.setdefault(record.section, {})[record.method] = record
    skills = [name for name, own in by_data.items() if name in own and own[name].parameters["role"] == "skill" and BASE in own]
    lines = []
    for skill in skills:
        own = by_data[skill]
        scores = {name: list(by_question(record.rows()).values()) for name, record in own.items()}
        for name, record in own.items():
            if name == BASE or name in skills:
                continue
            found = statistics.retention(scores[BASE], scores[skill], scores[name])
            lines.append({
                "skill": skill, "adapter": name, "n": found.difference.difference.n, "base": own[BASE].scores["right"],
                "skill_score": own[skill].scores["right"], "adapter_score": record.scores["right"],
                "difference": found.difference.difference.mean, "low": found.difference.difference.low,
                "high": found.difference.difference.high, "p": found.difference.p_value, "kept": found.kept, "kept_low": found.low,
                "kept_high": found.high,
            })  # fmt: skip
    adjusted = statistics.holm({str(place): line["p"] for place, line in enumerate(lines)})
    for place, line in enumerate(lines):
        line["p_holm"] = adjusted[str(place)]
    return pd.DataFrame(lines)


def format_retention(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it: per cent, differences in points. Strings throughout."""
    kept = table[["kept", "kept_low", "kept_high"]].to_numpy(dtype=float)
    return pd.DataFrame(
        {
            "skill": table["skill"], "adapter": table["adapter"],
            "base, %": list(map(percent, table["base"])), "skill alone, %": list(map(percent, table["skill_score"])),
            "adapter, %": list(map(percent, table["adapter_score"])),
            "difference, points": [points_range(*row) for row in table[["difference", "low", "high"]].to_numpy(dtype=float)],
            "p (Holm)": list(map(p_value, table["p_holm"])),
            "of the skill's gain kept, %": ["no clear gain" if row[0] != row[0] else percent_range(*row) for row in kept],
            "n": table["n"].astype(str),
        }
    )  # fmt: skip


def answers(records: Sequence[RunRecord]) -> list[dict]:
    """Every answer of every contender, as lines of a JSONL file."""
    fields = ("id", "prompt", "targets", "completion", "extracted", "score", "reason", "extras")
    return [{"contender": r.method} | {name: row[name] for name in fields} for r in records for row in r.rows()]


def as_json(table: pd.DataFrame) -> list[dict]:
    """A table's rows for programs, NaN as null."""
    rows = table.reset_index().to_dict("records") if table.index.name else table.to_dict("records")
    return [{name: None if isinstance(value, float) and value != value else value for name, value in row.items()} for row in rows]


def check_reference(reference: str | None, contenders: Sequence[Contender]) -> str:
    """The contender that the others are compared with: as asked, else the first. Raises LabError for one that is not there."""
    names = [found.name for found in contenders]
    if reference and reference not in names:
        raise LabError(f"There is no contender {reference!r} to compare with; choose one of {', '.join(names)}.")
    return reference or names[0]
