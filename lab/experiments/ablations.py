"""Ablations: sweeps over a method's settings, what a sweep would choose, learned against static, the spread over seeds.

A sweep scores many merges cheaply: the merge is folded into the base, a few problems of the target are answered, the base's
weights are put back, and the loss is measured on rows of the skills' own data that no point learned on. One file holds a sweep; it
grows point by point, so that an interrupted sweep goes on, and a finer grid over the same settings only adds points.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lab.errors import LabError
from lab.evaluation import statistics
from lab.evaluation.evaluate import evaluate
from lab.experiments.candidates import Candidate, describe
from lab.experiments.context import Entry, RunContext, asked_digest, open_contexts
from lab.experiments.presets import Preset
from lab.experiments.section import Section, title_of
from lab.files import clear_leftovers, content_hash, lock, write_atomic
from lab.lora.adapter import LoraAdapter
from lab.lora.stacked import folded
from lab.merging import METHODS, get_method, learn, merge
from lab.merging.registry import complete_parameters
from lab.records import tables
from lab.records.record import RunRecord, environment, load_records
from lab.tasks import Example

HELD_OUT_ROWS = 80  # enough to order merges by their loss; the target's answers cost more
ORACLE, HONEST = "best on the target", "lowest held-out loss"
_SUFFIXES = {ORACLE: "oracle", HONEST: "held_out"}  # of a choice that is asked again
LEARNING = ("learning_rate", "coefficient_share")  # of a learned method, besides its own parameters
Grid = Mapping[str, Sequence]


def sweep(
    section: Section, preset: Preset, method: str, grid: Grid, seed: int, problems: int, *, out: Path, artifacts: Path
) -> pd.DataFrame:
    """Score every point of a grid with a method that gives an adapter; points that are on file are not done again.

    grid: values by name. Names are the method's parameters; for a static method also "weight <skill>" for every skill,
    for a learned one learning_rate and coefficient_share, the share of the training rows to learn on. problems: the
    first so many of the target's test. out: folder of the records, which takes a folder sweeps. A point whose merge is
    that of another (density 0 leaves the base, whatever the weights) is asked once.

    One row per point: the grid's columns, score with low and high (95 %, Wilson), n, unscored, loss (held-out rows,
    nats per token), seconds, scores (per problem). attrs: method, section, pool (the coefficient_share that rows are
    taken from).

    Raises LabError for a router or a search, a name or value that the method does not take, and a damaged file.
    """
    points = _points(section, method, grid)
    preset = preset.change(coefficient_share=max(grid.get("coefficient_share", [preset.coefficient_share])))
    if problems < 2:
        raise LabError(f"problems is {problems}; give 2 or more.")
    (context,) = open_contexts(section, preset, [seed], artifacts)
    target = section.target
    examples = context.examples(target, "test", problems, seed=0)
    asked = [target.version, target.stop, target.max_new_tokens, asked_digest(examples)]
    fixed = {name: value for name, value in complete_parameters(get_method(method), {}).items() if name not in grid}
    made = {**context.method_key(method, {}), "parameters": fixed}
    key = content_hash(context.coefficient_key(**made), asked, context.decoding_key, HELD_OUT_ROWS)
    file = Path(out) / "sweeps" / f"{section.name}-{method}-seed{seed}-{key[:10]}.jsonl"
    Path(artifacts).mkdir(parents=True, exist_ok=True)
    with lock(Path(artifacts) / f".{file.name}.lock"):
        head, done = _read(file)
        if not head:
            head = {
                "section": section.name, "preset": preset.name, "method": method, "seed": seed, "task": target.name,
                "task_version": target.version, "problems": problems, "key": key, "environment": environment(),
            }  # fmt: skip
        missing = [point for point in points if _name(point) not in done]
        done_by_adapter = {line["adapter"]: line for line in done.values()}
        clear_leftovers(file)
        for point in tqdm(missing, desc=f"{method}, {len(points)} points", mininterval=2.0):
            line = _score(context, method, point, examples, done_by_adapter)
            done[_name(point)] = done_by_adapter[line["adapter"]] = line
            lines = (json.dumps(entry, allow_nan=False) for entry in (head, *done.values()))
            write_atomic(file, "\n".join(lines) + "\n")
    table = pd.DataFrame([_row(done[_name(point)]) for point in points])
    table.attrs = {"method": method, "section": section.name, "seed": seed, "pool": preset.coefficient_share}
    return table


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """What two ways of choosing take of a sweep, as rows of it; `point` is their place there.

    ORACLE looks at the target's test, as the paper did, and among equal scores at the loss; HONEST looks at the loss
    on the skills' own data only.
    """
    oracle = table.sort_values(["score", "loss"], ascending=[False, True]).index[0]
    chosen = table.loc[[oracle, table["loss"].astype(float).idxmin()]]
    return chosen.assign(point=chosen.index).set_axis([ORACLE, HONEST])


def chosen(table: pd.DataFrame, choice: str) -> Candidate:
    """A choice of a sweep as a candidate, for all problems of the test and the skills of any seed."""
    method, pool = table.attrs["method"], table.attrs["pool"]
    point = {name: choices(table).at[choice, name] for name in _grid_columns(table)}
    point = {name: value.item() if isinstance(value, np.generic) else value for name, value in point.items()}

    def make(context: RunContext) -> Entry:
        context = context.change(coefficient_share=pool)
        weights, parameters = _settings(context, method, point)
        key = {**context.method_key(method, parameters), "weights": weights}
        if METHODS[method].recipe is not None:
            key = context.coefficient_key(**key, **{name: point[name] for name in LEARNING if name in point})
        return context.made(f"swept_{method}", key, lambda _: (_merged(context, method, point), {}))

    return replace(describe(f"{method}_{_SUFFIXES[choice]}"), make=make)


def confirm(sweeps: Sequence[pd.DataFrame]) -> dict[str, Candidate]:
    """Both choices of every sweep as candidates by name: "ties_factors_oracle", "ties_factors_held_out", …"""
    found = [chosen(table, choice) for table in sweeps for choice in _SUFFIXES]
    return {candidate.name: candidate for candidate in found}


def panels(
    table: pd.DataFrame, by: Sequence[str], rows: str, columns: str, value: str = "score"
) -> dict[str, pd.DataFrame]:
    """A sweep as tables for `figures.heatmaps`, one per combination of `by`; the best of what else the grid varies."""
    scale = 100 if value == "score" else 1
    best = "min" if value == "loss" else "max"
    return {
        _title(by, part.iloc[0]): scale * part.pivot_table(value, rows, columns, aggfunc=best)
        for _, part in table.groupby(list(by), sort=True)
    }


def marks(table: pd.DataFrame, by: Sequence[str], rows: str, columns: str) -> dict[str, tuple]:
    """Where the choices stand in those panels."""
    return {name: (_title(by, row), row[rows], row[columns]) for name, row in choices(table).iterrows()}


def choice_table(sweeps: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What each sweep's choices are and score. Strings throughout.

    Among them is Spearman's correlation, over the points, of the held-out loss with the target: −1 where the loss
    orders as the target does.
    """
    lines = []
    for table in sweeps:
        label = describe(table.attrs["method"]).label
        order = table[["loss", "score"]].astype(float).corr("spearman").iat[0, 1]
        for choice, row in choices(table).iterrows():
            score, low, high = (100 * row[name] for name in ("score", "low", "high"))
            lines.append({
                "method": label, "chosen by": choice,
                "point": _title(_grid_columns(table), row),
                "target, % (95 % interval)": f"{score:.1f} ({low:.1f}–{high:.1f})",
                "held-out loss": f"{row['loss']:.3f}",
                "n": str(row["n"]), "points": str(len(table)), "minutes": f"{table['seconds'].sum() / 60:.0f}",
                "rank correlation of loss and target": "" if np.isnan(order) else f"{order:+.2f}".replace("-", "−"),
            })  # fmt: skip
    return pd.DataFrame(lines).set_index("method").rename_axis(None)


def learned_against_static(sections: Mapping[str, Sequence[RunRecord]], paper: Mapping[str, float]) -> pd.DataFrame:
    """Figure 9 of the paper: what learned coefficients add to equal ones. Strings throughout.

    sections: name -> records of cat_static and of learned forms of it. paper: name -> the points that the paper says of
    its learned one. Differences are paired by problem; p after Holm within a section.
    """
    parts = {}
    for title, records in sections.items():
        shown = tables.format_table(tables.result_table(records, reference="cat_static"))
        shown = shown.filter(regex="^right|^difference|^p |^n ")
        said = [f"{paper[title]:+g}" if name == describe("cat").label and title in paper else "" for name in shown.index]
        parts[title_of(title)] = shown.assign(**{"paper, points": said})
    return pd.concat(parts)


def seed_spread(records: Sequence[RunRecord], paper: Mapping[str, str] = {}) -> pd.DataFrame:
    """How far the seeds lie apart, per method (the paper's Appendix C.1): mean ± standard deviation, in per cent.

    paper: method -> what the paper says. Strings throughout; one seed has no deviation.
    """
    table = tables.result_table(records, reference=records[0].method)
    lines = {}
    for method, row in table.iterrows():
        by_seed = 100 * np.array(row["by_seed"])
        spread = f" ± {by_seed.std(ddof=1):.2f}" if len(by_seed) > 1 else ""
        lines[row["label"]] = {
            "mean ± sd over seeds, %": f"{by_seed.mean():.2f}{spread}",
            "each seed, %": ", ".join(f"{value:.1f}" for value in by_seed),
            "95 % interval, %": f"{100 * row['low']:.1f}–{100 * row['high']:.1f}",
            "n × seeds": f"{row['n']} × {row['seeds']}",
            "paper, %": paper.get(method, ""),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def companions(records: Sequence[RunRecord], folder: Path) -> list[RunRecord]:
    """These records, and those of other methods that have section, preset, problems, data and seeds in common."""
    first, seeds = records[0], {r.seed for r in records}
    circumstances = {"data", "train_missing"}  # where data lies and what may be trained; the data itself is told by its hash

    def alike(other: RunRecord) -> bool:
        ours, theirs = first.parameters["preset"], other.parameters.get("preset", {})
        return (
            all(ours[name] == theirs[name] for name in (ours.keys() & theirs.keys()) - circumstances)
            and other.parameters.get("problems") == first.parameters["problems"] and other.seed in seeds
            and other.task_version == first.task_version
            and other.hashes.get("data") == first.hashes["data"]
        )  # fmt: skip

    methods = {r.method for r in records}
    return [*records, *(r for r in load_records(folder, first.section) if r.method not in methods and alike(r))]


def finding(
    sweeps: Sequence[pd.DataFrame], sections: Mapping[str, Sequence[RunRecord]], asked: Sequence[RunRecord] = ()
) -> str:
    """One sentence: learned against static, and what choosing on the test itself is worth.

    asked: records of the candidates of `confirm`, whose scores are told in place of the sweep's own few problems.
    """
    parts = []
    for name, records in sections.items():
        learned = tables.result_table(records, reference="cat_static").loc["cat"]
        points = [_signed(100 * learned[column]) for column in ("difference", "difference_low", "difference_high")]
        parts.append(
            f"{title_of(name)}: learned CAT is {points[0]} points ({points[1]} to {points[2]}) from static CAT"
        )
    for table in sweeps:
        said = []
        for choice, suffix in _SUFFIXES.items():
            again = [r.scores["right"] for r in asked if r.method == f"{table.attrs['method']}_{suffix}"]
            once = f"{100 * choices(table).at[choice, 'score']:.1f} %"
            said.append(f"{100 * sum(again) / len(again):.1f} % on the whole test ({once} in the sweep)" if again else once)
        label = describe(table.attrs["method"]).label
        parts.append(
            f"of {len(table)} settings of {label} the best on the target scores {said[0]}, the one with the lowest held-out loss "
            f"{said[1]}"
        )
    return "; ".join(parts) + "."


def _points(section: Section, method: str, grid: Grid) -> list[dict]:
    """Every combination of the grid's values, checked."""
    found = get_method(method)
    own = {parameter.name for parameter in found.parameters} - {"seed"}
    if found.kind in ("router", "search") or (found.recipe and found.recipe.data != "mix"):
        raise LabError(
            f"{method} cannot be swept: it gives no adapter from the skills' own data; choose another method."
        )
    weights = [f"weight {task.name}" for task in section.skills]
    known = [*sorted(own), *(LEARNING if found.recipe else weights)]
    for name, values in grid.items():
        if name not in known:
            raise LabError(f"A sweep of {method} has no {name!r}; choose {', '.join(known)}.")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise LabError(f"The sweep of {method} has no values for {name}; give a list.")
    given = [name for name in weights if name in grid]
    if found.recipe is None and given and given != weights:
        raise LabError(f"A sweep with weights needs one of every skill: {', '.join(weights)}.")
    if found.recipe and "learning_rate" not in grid:
        raise LabError(f"A sweep of {method} needs learning_rate: give a list, such as [0.01, 0.1].")
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    for point in points:
        complete_parameters(found, {name: value for name, value in point.items() if name in own})
    return points


def _settings(context: RunContext, method: str, point: Mapping) -> tuple[list[float], dict]:
    """A point's weights ([] for the method's own) and parameters, the context's seed among them."""
    names = {parameter.name for parameter in METHODS[method].parameters}
    parameters = {name: value for name, value in point.items() if name in names}
    if "seed" in names:
        parameters["seed"] = context.seed
    named = [f"weight {task.name}" for task in context.section.skills]
    return [point[name] for name in named if name in point], parameters


def _merged(context: RunContext, method: str, point: Mapping) -> LoraAdapter:
    """The point's merge of the context's skills."""
    weights, parameters = _settings(context, method, point)
    if METHODS[method].recipe is None:
        return merge(method, context.skills, weights or None, **parameters)
    preset = context.preset
    rows, _ = learn.split_held_out(context.coefficient_rows, context.seed)
    share = point.get("coefficient_share", preset.coefficient_share) / preset.coefficient_share
    return learn.learn(
        method, context.model, context.skills, rows[: max(2, round(len(rows) * share))], context.tokenizer.pad_token_id,
        rates=(point["learning_rate"],), batch_size=preset.coefficient_batch, epochs=preset.coefficient_epochs,
        seed=context.seed, precision=preset.precision, parameters=parameters,
    ).adapter  # fmt: skip


def _score(context: RunContext, method: str, point: Mapping, examples: Sequence[Example], known: Mapping[str, Mapping]) -> dict:
    """A point's line. known: lines by their merge's digest."""
    started = time.monotonic()
    adapter = _merged(context, method, point)
    digest = adapter.digest()[:16]
    if digest in known:
        return {**known[digest], "point": dict(point), "seconds": round(time.monotonic() - started, 2)}
    _, held_out = learn.split_held_out(context.coefficient_rows, context.seed)
    with folded(context.model, adapter):
        loss = learn.held_out_loss(context.model, held_out[:HELD_OUT_ROWS], context.tokenizer.pad_token_id)
        scores = evaluate(context.model, context.tokenizer, context.section.target, examples, context.decoding).scores
    return {
        "point": dict(point), "adapter": digest, "loss": round(loss, 5),
        "scores": [score if score in (None, 0, 1) else round(score, 4) for score in scores],
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


def _row(line: Mapping) -> dict:
    found = statistics.mean_interval(line["scores"])
    score = {"score": found.mean} | {name: getattr(found, name) for name in ("low", "high", "n", "unscored")}
    return line["point"] | score | {name: line[name] for name in ("loss", "seconds", "scores")}


def _read(file: Path) -> tuple[dict, dict[str, dict]]:
    """Head and points of a sweep's file; nothing where there is none."""
    if not file.exists():
        return {}, {}
    try:
        head, *lines = map(json.loads, file.read_text().splitlines())
        return head, {_name(line["point"]): line for line in lines}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LabError(f"The sweep {file} is damaged; delete it and run again.") from error


def _name(point: Mapping) -> str:
    return json.dumps(point, sort_keys=True)


def _grid_columns(table: pd.DataFrame) -> list[str]:
    return list(table.columns[: table.columns.get_loc("score")])


def _title(names: Sequence[str], point: Mapping) -> str:
    """Such as "density 0.2"; words ("softmax") need no name before them."""
    short = {"learning_rate": "rate", "coefficient_share": "share"}
    return ", ".join(point[n] if isinstance(point[n], str) else f"{short.get(n, n)} {point[n]:g}" for n in names)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
