"""More than two skills (beyond the paper): which are merged for which targets, and how score, coefficients and cost grow.

Skills and merges depend on the set of skills and not on the target: the store makes them once for each set.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from lab.errors import LabError
from lab.experiments.candidates import describe
from lab.experiments.context import open_contexts
from lab.experiments.presets import Preset
from lab.experiments.section import Section
from lab.experiments.sections import READING
from lab.lora.stacked import attach, folded
from lab.merging import build, merge
from lab.records import tables
from lab.records.record import RunRecord, skill_names
from lab.tasks import Task, extraction, instruction, manual, manual_in_terms, manual_qa, second_manual, technical_reading, terms

SKILLS = (manual.TASK, instruction.TASK, terms.TASK, extraction.TASK, second_manual.TASK)  # in the order in which they come in
NEEDS = (  # target, the skills it needs
    (manual_qa.TASK, (manual.TASK, instruction.TASK)),
    (technical_reading.TASK, (terms.TASK, extraction.TASK)),
    (manual_in_terms.TASK, (manual.TASK, instruction.TASK, terms.TASK)),
)

Grown = Mapping[tuple[str, int], Sequence[RunRecord]]  # (target, number of skills) -> records


def sections(most: int = len(SKILLS)) -> list[Section]:
    """For each target the skills it needs, then each larger set of the first k of SKILLS that has them all, up to `most`."""
    if most not in range(3, len(SKILLS) + 1):
        raise LabError(f"The most skills are {most!r}; give a whole number from 3 to {len(SKILLS)}.")
    found = []
    for target, needed in NEEDS:
        larger = (SKILLS[:k] for k in range(len(needed) + 1, most + 1))
        fitting = [skills for skills in larger if set(needed) <= set(skills)]
        found += [_section(target, skills) for skills in (needed, *fitting)]
    return found


def _section(target: Task, skills: tuple[Task, ...]) -> Section:
    return Section(f"x2_more_skills_{target.name}_{len(skills)}", skills, target, presets=READING.presets)


def place(section: Section) -> tuple[str, int]:
    """(target, number of skills)."""
    return section.target.name, len(section.skills)


def scores(records: Grown) -> pd.DataFrame:
    """One row per (target, method, k): label, role, score, low, high (fractions, 95 %), n, seeds, rank, and seconds to make.

    change_difference, _low, _high, _p_holm, _verdict: `tables.differences` of the same method, this set of skills minus the
    target's smallest, Holm over all; NaN for the smallest, the base and single skills.
    """
    lines, pairs, first = {}, {}, {}
    for (target, k), own in records.items():
        table = tables.result_table(own, reference=own[0].method)
        for method, row in table.iterrows():
            group = [r for r in own if r.method == method]
            made = [(r.parameters.get("rank"), r.seconds["make"]) for r in group]
            rank, seconds = pd.DataFrame(made, columns=["rank", "seconds"]).astype(float).mean()
            told = row[["label", "role", "score", "low", "high", "n", "seeds"]]
            lines[target, method, k] = {**told, "rank": rank, "seconds": seconds}
            start = first.setdefault((target, method), (k, group))
            if start[0] != k and describe(method, skill_names(own)).role not in ("base", "skill"):
                pairs[target, method, k] = group, start[1]
    table = pd.DataFrame.from_dict(lines, orient="index")
    if pairs:
        changes = tables.differences(pairs)[["difference", "low", "high", "p_holm", "verdict"]]
        table = table.join(changes.add_prefix("change_"))
    table.index = pd.MultiIndex.from_tuples(table.index, names=["target", "method", "k"])
    return table


def format_scores(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """One target's methods as people read them: per cent (95 %) for each number of skills, and what the largest set changed."""
    own = table.loc[target]
    counts = own.index.unique("k")
    cells = [f"{100 * score:.1f} ({100 * low:.1f}–{100 * high:.1f})" for score, low, high in own[["score", "low", "high"]].to_numpy()]
    last = own.groupby(level="method", sort=False).tail(1)
    reached = last.index.get_level_values("k") == counts.max()  # not all are asked with the largest set
    last = last.droplevel("k")
    shown = pd.Series(cells, index=own.index).unstack("k").add_suffix(" skills, %").reindex(last.index)
    if len(counts) > 1:
        change = last.filter(like="change_").rename(columns=lambda name: name.removeprefix("change_"))
        told = tables.format_differences(change.join(last[["n", "seeds"]]))
        shown[f"{counts.max()} minus {counts.min()} skills, points"] = told["difference, points"].where(reached, "")
        shown["p (Holm)"] = told["p (Holm)"].where(reached, "")
    shown["n × seeds"] = [f"{n} × {seeds}" for n, seeds in last[["n", "seeds"]].to_numpy()]
    return shown.set_index(last["label"]).rename_axis(None).rename_axis(columns=None).fillna("")


def coefficients(records: Grown) -> pd.DataFrame:
    """What a learned merge gives each skill: mean over modules (and ranks), with the least and the greatest of the seeds.

    One row per (method, skill, k): value, low, high.
    Of the sets of the first k of SKILLS; they are the same for every target.
    """
    found: dict[tuple, dict[int, float]] = {}
    for (_, k), own in records.items():
        for record in own:
            if not record.coefficients or describe(record.method).role != "learned":
                continue
            values = pd.DataFrame(record.coefficients["values"], index=record.coefficients["skills"]).mean(axis=1)
            by_skill = values.groupby(lambda name: name.partition("[")[0], sort=False).mean()  # one rank of a skill is "manual[3]"
            if set(by_skill.index) == {task.name for task in SKILLS[:k]}:
                for skill, value in by_skill.items():
                    found.setdefault((record.method, skill, k), {})[record.seed] = value
    lines = [(sum(v.values()) / len(v), min(v.values()), max(v.values())) for v in found.values()]
    index = pd.MultiIndex.from_tuples(found, names=["method", "skill", "k"])
    return pd.DataFrame(lines, index=index, columns=["value", "low", "high"])


def speeds(chosen: Iterable[Section], preset: Preset, seed: int, artifacts: Path, rows: int = 32, tokens: int = 24) -> pd.DataFrame:
    """Tokens per second, by number of skills: "folded" into the base, "stacked" beside it, stacked with a "router" (MoE).

    rows prompts at a time and `tokens` new ones for each, the fastest of three rounds; skills from the store. What a router has
    learned does not change its speed: this one is new.
    """
    contexts = [context for section in chosen for context in open_contexts(section, preset, [seed], artifacts)]
    model, tokenizer = contexts[0].model, contexts[0].tokenizer
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, len(tokenizer), (rows, tokens), generator=generator).to(model.device)

    def speed() -> float:
        rounds = []
        for _ in range(3):
            started = time.perf_counter()
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            rounds.append(time.perf_counter() - started)
        return rows * tokens / min(rounds)

    lines: dict[int, dict[str, float]] = {}
    for skills in (context.skills for context in contexts):
        lines[len(skills)] = line = {}
        with folded(model, merge("cat_static", skills)):
            line["folded"] = speed()
        with attach(model, skills) as stack:
            line["stacked"] = speed()
            build("moe", stack)
            line["router"] = speed()
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("k").sort_index()


def score_panels(table: pd.DataFrame, methods: Sequence[str]) -> dict[str, dict[str, pd.DataFrame]]:
    """For `figures.lines`: per cent right over the number of skills, a panel per target and a line per method."""
    own = table[["score", "low", "high"]].astype(float).mul(100).rename(columns={"score": "value"})
    return {target.replace("_", " "): _by_label(own.loc[target], methods) for target in own.index.unique("target")}


def coefficient_panels(coefficients: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """For `figures.lines`: a panel per merge, a line per skill, and what equal shares would be."""
    panels = {}
    for method in coefficients.index.unique("method"):
        own = coefficients.loc[method]
        counts = own.index.unique("k").sort_values()
        equal = pd.DataFrame({"value": [1 / k for k in counts]}, index=counts)
        by_skill = {skill.replace("_", " "): own.loc[skill] for skill in own.index.unique("skill")}
        panels[describe(method).label] = by_skill | {"equal shares": equal}
    return panels


def cost_panels(table: pd.DataFrame, speeds: pd.DataFrame, methods: Sequence[str]) -> dict[str, dict[str, pd.DataFrame]]:
    """For `figures.lines`: rank and seconds to make, for the target that every set of skills serves, and tokens per second."""
    own = table.loc[manual_qa.TASK.name]
    costs = {"rank": "rank", "seconds to make": "seconds"}
    panels = {title: _by_label(own[[name]].rename(columns={name: "value"}), methods) for title, name in costs.items()}
    return panels | {"tokens per second": {name: speeds[[name]].rename(columns={name: "value"}) for name in speeds}}


def _by_label(table: pd.DataFrame, methods: Sequence[str]) -> dict[str, pd.DataFrame]:
    return {describe(method).label: table.loc[method] for method in methods if method in table.index.unique("method")}


def finding(table: pd.DataFrame, coefficients: pd.DataFrame, method: str) -> str:
    """A few sentences from `scores` and `coefficients`: what unneeded skills do to a merge, what is best then, what it gives them."""
    label = describe(method).label
    parts, leaders = [], []
    for target, own in table.groupby(level="target", sort=False):
        lines = own.xs(method, level="method").droplevel("target")
        first, last = lines.iloc[0], lines.iloc[-1]
        part = f"{target.replace('_', ' ')} {100 * first['score']:.1f} % with {lines.index[0]}"
        if len(lines) > 1:
            sure = {"unclear": "no clear change", "better": "a clear gain", "worse": "a clear loss"}[last["change_verdict"]]
            part += f", {100 * last['score']:.1f} % with {lines.index[-1]} ({sure})"
        parts.append(part)
        best = own.xs(lines.index[-1], level="k").sort_values("score", kind="stable").iloc[-1]
        leaders.append(f"{target.replace('_', ' ')} {best['label']} ({100 * best['score']:.1f} %)")
    told = f"{label}, from the skills that a target needs to all: {'; '.join(parts)}. Best with all: {', '.join(leaders)}."
    if method not in coefficients.index.get_level_values("method"):
        return told
    most = coefficients.index.get_level_values("k").max()
    given = coefficients.xs((method, most), level=("method", "k"))["value"]
    least = given.idxmin().replace("_", " ")
    return f"{told} Of {most} skills it gives least to {least} ({given.min():.2f} of an equal {1 / most:.2f})."
