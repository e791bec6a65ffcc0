"""Tables of records: what was measured, how sure it is, and how methods differ.

Wherever a table needs single problems (paired tests, super-linearity, examples), it reads the completions beside the record.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from lab.errors import LabError
from lab.evaluation import statistics
from lab.experiments.candidates.registry import describe, spaced
from lab.files import PROJECT
from lab.records.format import p_value, percent, percent_range, plain, points_range
from lab.records.record import RunRecord, by_question, load_records, reason_order, skill_names

RESAMPLES = 19999  # of the tests in a table of many comparisons: Holm multiplies the least possible p by their number


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


def _mean(values: Iterable[float | None]) -> float:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else float("nan")


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
            "right on the target, %": [percent(value) for value in table["score"]],
            "own tests, mean %": [percent(value) for value in table["own"]],
            "rank": ["" if np.isnan(value) else f"{value:.0f}" for value in table["rank"]],
            "skills per token, effective": ["" if np.isnan(value) else f"{value:.2f}" for value in table["support"]],
            "seconds to make": [f"{value:.1f}" for value in table["seconds"]],
        },
        index=table["label"].rename(None),
    )


MERGES = ("static", "router", "learned")  # roles


@dataclass(frozen=True)
class Standing:
    """The best merge of some records (by this very test), and what it is held against. Rows of `result_table`.

    against: "skill" (the best alone), "data_mix" and "paper" (the paper's CAT), as far as there are records of them and they are
    not the best merge itself -> (row, verdict of `differences` of the best merge minus it).
    """

    best: pd.Series
    merges: int
    against: Mapping[str, tuple[pd.Series, str]]


def standing(records: Sequence[RunRecord], paper: str = "cat") -> Standing | None:
    """Where the best merge stands; None without a merge."""
    table = result_table(records, reference=records[0].method)
    table["score"] = table["score"].astype(float)
    merges = table[table["role"].isin(MERGES)]
    if merges.empty:
        return None
    best = merges["score"].idxmax()
    alone = table[table["role"] == "skill"]
    rivals = {"skill": alone["score"].idxmax() if len(alone) else None, "data_mix": "data_mix", "paper": paper}
    rivals = {what: name for what, name in rivals.items() if name in table.index and name != best}
    of = {method: [r for r in records if r.method == method] for method in (best, *rivals.values())}
    pairs = {(what,): (of[best], of[name]) for what, name in rivals.items()}
    verdicts = differences(pairs)["verdict"] if pairs else {}
    return Standing(table.loc[best], len(merges), {what: (table.loc[name], verdicts[what,]) for what, name in rivals.items()})


def finding(records: Sequence[RunRecord], paper: str = "cat") -> str:
    """What was found, in a few sentences: the best merge against the best skill and data-mix, then where the paper's method stands."""
    found = standing(records, paper)
    if found is None:
        return "There is no merge among these records."
    order = {"better": "clearly ahead of", "worse": "clearly behind", "unclear": "not clearly different from"}

    def said(what: str) -> str:
        row, verdict = found.against[what]
        return f"{order[verdict]} {row['label']} ({percent(row['score'])} %)"

    rivals = [said(what) for what in ("skill", "data_mix") if what in found.against]
    chosen = f"The best of {found.merges} merges on this test" if found.merges > 1 else "The only merge"
    told = f"{chosen}, {found.best['label']}, solves {percent(found.best['score'])} %"
    told += f": {' and '.join(rivals)}." if rivals else "."
    if "paper" in found.against:
        row, verdict = found.against["paper"]
        behind = {"better": "clearly behind it", "worse": "clearly ahead of it", "unclear": "not clearly different from it"}[verdict]
        told += f" {row['label']}, the paper's method, solves {percent(row['score'])} %, {behind}."
    return told


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """A result table as people read it: per cent with intervals, differences in points, p after Holm. Strings throughout."""
    reference = table.attrs["reference"]
    shown = pd.DataFrame({"method": table["label"]})
    shown["right, % (95 % interval)"] = [percent_range(*row) for row in table[["score", "low", "high"]].to_numpy()]
    for name in table.columns[len(_COLUMNS[:9]) : -len(_COLUMNS[9:])]:
        heading = f"{name.removeprefix('own ')} test, %" if name.startswith("own ") else f"{spaced(name)}, %"
        shown[heading] = [percent(value) for value in table[name]]
    differences = table[["difference", "difference_low", "difference_high"]].to_numpy(dtype=float)
    heading = f"difference to {table.at[reference, 'label']}, points"
    shown[heading] = [points_range(*row) for row in differences]
    shown["p (Holm)"] = [p_value(value) for value in table["p_holm"]]
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
            "difference, points": [points_range(*row) for row in table[["difference", "low", "high"]].to_numpy(dtype=float)],
            "p (Holm)": [p_value(value) for value in table["p_holm"]],
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
    return table[sorted(table.columns, key=reason_order)]


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
        if info.role in ("base", "skill"):
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
            "solved": [plain(count) for count in table["merged_count"]],
            "only by the merge": [plain(count) for count in table["merged_only_count"]],
            "only by the merge, % (95 % interval)": [
                percent_range(*row) for row in table[["merged_only", "low", "high"]].to_numpy(dtype=float)
            ],
            "by a skill, not the merge": [plain(count) for count in table["lost_count"]],
            "by any skill": [plain(count) for count in table["any_skill_count"]],
            "skills added up": [plain(count) for count in table["sum_of_skills"]],
            "super-linear": ["yes" if more else "no" for more in table["super_linear"]],
        },
        index=table.index,
    )


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
        index=[f"no {spaced(first)}", spaced(first)],
        columns=[f"no {spaced(second)}", spaced(second)],
    )


WORLDS = {"embedded": "embedded world", "laptop": "SmolLM2-135M"}  # presets whose runs are committed, and what they are called


def worlds(records: Sequence[RunRecord], **sections: str) -> dict[str, Sequence[RunRecord]]:
    """The same section in each world: a run's records as its own preset's, the committed ones as the others'.

    sections: the section's name by preset, such as laptop="s5_1_math_code_short". Without records of a world it is left out.
    """
    own = records[0].preset if records else ""
    folders = {preset: PROJECT / "results" / ("" if preset == "embedded" else preset) / "records" for preset in sections}
    found = {WORLDS.get(own, f"measured here, {own}"): records} if own not in sections else {}
    for preset, section in sections.items():
        found[WORLDS[preset]] = records if preset == own else load_records(folders[preset], section)
    return {label: group for label, group in found.items() if group}


def paper_and_measured(
    worlds: Mapping[str, Sequence[RunRecord]], paper: Mapping[str, float | None], score: str = "right"
) -> pd.DataFrame:
    """Each world's scores beside the published ones, in per cent, with 95 % intervals over questions and seeds.

    worlds: label -> records. paper: method -> fraction, or None where the paper has none. score: which of a record's.
    """
    groups = {world: _group(records) for world, records in worlds.items()}
    skills = skill_names([record for records in worlds.values() for record in records])
    names = sorted({*paper, *(name for group in groups.values() for name in group)}, key=lambda name: describe(name, skills).position)
    columns = {}
    for world, group in groups.items():
        estimates = {name: statistics.mean_interval(_values(group[name], score)) for name in names if name in group}
        size = " × ".join(str(max(getattr(e, size) for e in estimates.values())) for size in ("n", "seeds"))
        columns[f"{world}, % (n = {size})"] = [percent_range(e.mean, e.low, e.high) if (e := estimates.get(name)) else "" for name in names]
    columns["paper (Llama-7B), %"] = [percent(paper.get(name)) for name in names]
    return pd.DataFrame(columns, index=[describe(name, skills).label for name in names])


def _values(records: Sequence[RunRecord], score: str) -> list[list[float | None]]:
    """(seeds, questions) of one method."""
    return [list(by_question(r.rows(), score).values()) for r in records]


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
        WorkedExample(key, rows[method][key]["prompt"], " or ".join(rows[method][key]["targets"]), {labels[n]: rows[n][key] for n in names})
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


def _is_sure(p_holm: float, low: float, high: float) -> bool:
    """Whether a difference is clear: by the test, which speaks of these seeds, and by its interval, which speaks of new ones too."""
    return p_holm < 0.05 and low * high > 0
