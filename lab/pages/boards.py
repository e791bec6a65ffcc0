"""Records as the site shows them, beside each other where they may be: leaderboard, completions, coefficients."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.errors import LabError
from lab.evaluation.statistics import mean_interval
from lab.experiments.candidates import describe
from lab.experiments.presets import PRESETS
from lab.files import content_hash
from lab.pages.figures import coefficient_grids
from lab.pages.published import Published
from lab.records.record import RunRecord, by_question, questions_file, skill_names

Rows = Sequence[Mapping]


@dataclass(frozen=True)
class Board:
    """Records that answer the same questions from the same base and data: one section, preset, task and number of problems.

    records: in the order of methods and seeds. rows: key of a record -> its completions; a record without them is missing here.
    names: what tells it from the section's other boards.
    """

    section: str
    label: str
    skills: Sequence[str]
    records: Sequence[RunRecord]
    rows: Mapping[str, Rows]

    @property
    def first(self) -> RunRecord:
        return self.records[0]

    @property
    def problems(self) -> int:
        return self.first.n + self.first.unscored

    def name(self, record: RunRecord) -> str:
        """What a record's method is called here; where run more than once, with the hash of its settings, or its key."""
        label = describe(record.method, self.skills).label
        same = [r for r in self.records if r.method == record.method]
        if len({r.seed for r in same}) == len(same):
            return label
        settings = {r.key: content_hash(r.parameters.get("preset")) for r in same}
        told = settings if len({(r.seed, settings[r.key]) for r in same}) == len(same) else {r.key: r.key for r in same}
        return f"{label} ({told[record.key][:6]})"

    def runs(self) -> dict[str, list[RunRecord]]:
        """Name of a method -> its records, one per seed."""
        found: dict[str, list[RunRecord]] = {}
        for record in self.records:
            found.setdefault(self.name(record), []).append(record)
        return found

    def role(self, record: RunRecord) -> str:
        return describe(record.method, self.skills).role


@dataclass(frozen=True)
class Line:
    """A method's line on a leaderboard. Shares are fractions; seconds are of all stages, mean over the seeds.

    low, high: 95 % over seeds and problems; None where several seeds' completions are not there to count them from.
    own: skill -> score on its own test. further: the task's other scores. rank: None for the base and where it is not recorded.
    """

    name: str
    role: str
    method: str
    score: float
    low: float | None
    high: float | None
    problems: int
    records: Sequence[RunRecord]
    own: Mapping[str, float]
    further: Mapping[str, float]
    rank: float | None
    seconds: float


def boards(records: Sequence[RunRecord]) -> tuple[list[Board], list[str]]:
    """The boards of these records, in their order, and a sentence for each file of completions that is damaged."""
    groups: dict[tuple, list[RunRecord]] = {}
    rows, damaged = {}, []
    for record in records:
        groups.setdefault(_group(record), []).append(record)
        if record.path.with_suffix(".jsonl.gz").exists():
            try:
                rows[record.key] = record.rows()
            except LabError as error:
                damaged.append(str(error).replace(f"{record.path.parents[1]}/", ""))
    labels = [_label(group) for group in groups.values()]
    found = []
    for label, (key, group) in zip(labels, groups.items(), strict=True):
        same = sum(other == label and known[0] == key[0] for other, known in zip(labels, groups, strict=True)) > 1
        label = f"{label}, data {key[-1][:6]}" if same else label
        found.append(
            Board(key[0], label, skill_names(group), group, {r.key: rows[r.key] for r in group if r.key in rows})
        )
    return found, damaged


def lines(board: Board) -> list[Line]:
    """The board's methods, best first."""
    found = []
    for name, records in board.runs().items():
        first = records[0]
        low, high = _interval(board, records)
        found.append(
            Line(
                name,
                board.role(first),
                first.method,
                _mean([r.scores["right"] for r in records]),
                low,
                high,
                board.problems,
                records,
                own=_means([r.own for r in records]),
                further={
                    score: value for score, value in _means([r.scores for r in records]).items() if score != "right"
                },
                rank=_mean([r.parameters.get("rank") for r in records]),
                seconds=_mean([sum(r.seconds.values()) for r in records]),
            )
        )
    return sorted(found, key=lambda line: -line.score)


SHOWN = 30  # problems of a board in the browser of completions; its page must hold them itself, for it opens from disk


def completions(board: Board) -> dict:
    """The board's first SHOWN completions as compact JSON-able data, problem by problem, so that like stands beside like.

    runs: label, method, role, seed, record (path below the records' folder). before: texts that some runs put before a question.
    problems: [id, prompt, answer, answers], where an answer is [completion, extracted, reason, score, number of the text before
    or null, other scores], or null where the run has no such problem.
    """
    runs = [record for record in board.records if record.key in board.rows]
    by_id = [{row["id"]: row for row in board.rows[record.key]} for record in runs]
    before: dict[str, int] = {}
    problems = []
    for problem in list(dict.fromkeys(name for rows in by_id for name in rows))[:SHOWN]:
        answers = [rows.get(problem) for rows in by_id]
        prompt = min((row["prompt"] for row in answers if row), key=len)
        expected = next(" or ".join(row["targets"]) for row in answers if row)
        told = []
        for row in answers:
            if row is None:
                told.append(None)
                continue
            place = None
            if row["prompt"] != prompt:
                place = before.setdefault(row["prompt"].removesuffix(prompt), len(before))
            told.append([row["completion"], row["extracted"], row["reason"], row["score"], place, row["extras"]])
        problems.append([problem, prompt, expected, told])
    return {
        "label": board.label,
        "runs": [
            {
                "label": board.name(r), "method": r.method, "role": board.role(r), "seed": r.seed, "record": place_of(r),
                "questions": questions_of(r),
            }
            for r in runs
        ],
        "before": list(before),
        "problems": problems,
    }


def coefficients(board: Board) -> dict | None:
    """The board's learned coefficients as JSON-able data; None when it has none.

    Each run: label, method, seed, record, layers, kinds, and skills: [name, mean, least, greatest], each of these
    layers x kinds. A merge with a coefficient per rank has its ranks' mean, least and greatest; others the mean only.
    """
    runs = []
    for record in board.records:
        if not record.coefficients:
            continue
        layers, kinds, grids = coefficient_grids(record)
        skills = []
        names = [re.sub(r"\[\d+\]$", "", name) for name in record.coefficients["skills"]]
        for name in dict.fromkeys(names):
            own = grids[[place for place, other in enumerate(names) if other == name]]
            several = [own.mean(0), own.min(0), own.max(0)] if len(own) > 1 else [own[0]]
            skills.append([name, *(_plain(grid) for grid in several)])
        runs.append(
            {
                "label": board.name(record),
                "method": record.method,
                "seed": record.seed,
                "record": place_of(record),
                "layers": layers,
                "kinds": kinds,
                "skills": skills,
                "ranks": len(names) // len(skills),
            }
        )
    return {"label": board.label, "runs": runs} if runs else None


def measured(number: Published, boards: Sequence[Board], column: str) -> tuple[float, Line] | None:
    """What the boards of this kind have for a published number, in its unit, with the line of its (first) method.

    Of several boards the one with most problems, then most records, speaks. None where it has nothing.
    """
    own = [b for b in boards if b.section == number.section and kind(b) == column]
    if column != "embedded":
        own = [b for b in own if number.task in ("", b.first.task)]
    if not own:
        return None
    found = lines(max(own, key=lambda board: (board.problems, len(board.records))))
    methods = Counter(line.method for line in found)
    by_method = {
        line.method: line for line in found if methods[line.method] == 1
    }  # run with two settings: neither is it

    def mean(methods: Sequence[str]) -> float | None:
        found = [by_method[name] for name in methods if name in by_method]
        values = [line.score if number.score == "right" else line.further.get(number.score) for line in found]
        return _mean(values) if len(found) == len(methods) and None not in values else None

    value = mean(number.methods)
    if number.over:
        other = mean([number.over])
        if value is None or other is None or (number.unit == "% more" and other == 0):
            return None
        value = value - other if number.unit == "points" else value / other - 1
    if value is None:
        return None
    return value if number.unit == "F1" else 100 * value, by_method[number.methods[0]]


def kind(board: Board) -> str | None:
    """Which column of "paper | measured" a board fills: "paper", "small" or "embedded"; None for other bases or data.

    The first two need the Hub's data, with a folder beside it (FOLDER+hub) for what is not there.
    """
    base = _base(board.first)
    data = board.first.parameters.get("preset", {}).get("data")
    sources = set(data.values()) if isinstance(data, Mapping) else {data}
    if base.startswith("embedded"):
        return "embedded" if sources == {"world"} else None
    known = PRESETS.get(board.first.preset)
    return known.name if known and known.base == base and all(str(source).endswith("hub") for source in sources) else None


def place_of(record: RunRecord) -> str:
    """Where a record lies below the folder of records, without its ending."""
    return f"{record.section}/{Path(record.path).stem}"


def questions_of(record: RunRecord) -> str | None:
    """Where the questions of its rows lie below the folder of records; None when the rows hold them themselves."""
    file = questions_file(record)
    return file and f"{record.section}/{file.name}"


def _group(record: RunRecord) -> tuple:
    total = record.n + record.unscored
    return (
        record.section,
        record.preset,
        record.task,
        record.task_version,
        total,
        _base(record),
        record.hashes.get("data", ""),
    )


def _base(record: RunRecord) -> str:
    preset = record.parameters.get("preset")
    return str(preset.get("base", "")) if isinstance(preset, Mapping) else ""


def _label(records: Sequence[RunRecord]) -> str:
    first = records[0]
    base = _base(first)
    named = first.preset if base in ("", first.preset) else f"{first.preset} ({Path(base).name})"
    return f"{named}, {first.n + first.unscored} problems of {first.task.replace('_', ' ')}"


def _interval(board: Board, records: Sequence[RunRecord]) -> tuple[float | None, float | None]:
    scores = [by_question(board.rows.get(r.key, ())) for r in records]
    if len(records) == 1 and not scores[0]:
        return records[0].interval
    if not scores[0] or any(own.keys() != scores[0].keys() for own in scores):
        return None, None
    estimate = mean_interval([[own[name] for name in scores[0]] for own in scores])
    return estimate.low, estimate.high


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _means(given: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    names = dict.fromkeys(name for own in given for name in own)
    means = {name: _mean([own.get(name) for own in given]) for name in names}
    return {name: value for name, value in means.items() if value is not None}


def _plain(grid: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in grid]
