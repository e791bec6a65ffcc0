"""Comparisons that are taken away as files, and kept as records beside those of the project."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lab.app import charts
from lab.app.compare import Comparison
from lab.app.scratch import fresh_folder
from lab.errors import LabError
from lab.evaluation.evaluate import scored_rows
from lab.evaluation.sandbox import isolation_level
from lab.evaluation.scorers import Verdict
from lab.files import content_hash
from lab.pages.figures import method_bars
from lab.records import tables
from lab.records.record import RunRecord, jsonl, make_record, read_records, save_record
from lab.tasks import Example

SAVED = "saved by you"  # stands where a record of the project names its preset
MOST = 100  # comparisons of one visitor


def place(folder: Path, key: str) -> Path:
    """Where the comparisons of one visitor lie."""
    return folder / content_hash(key)


def rows_of(state: Comparison, column: int) -> list[dict]:
    """The questions that all columns have answered, with this column's answers: rows as those of a record."""
    done = [i for i, row in enumerate(state.answers) if all(answer.done for answer in row)]
    if not done:
        raise LabError("There is no whole answer to save yet; ask, and wait until the answers are there.")
    examples, verdicts = [], []
    for i in done:
        question, verdict = state.questions[i], state.verdicts[i][column]
        example = question.example or Example(f"prompt-{i}", "", targets=(question.gold,) if question.gold else ())
        examples.append(replace(example, prompt=question.prompt))
        verdicts.append(verdict or Verdict("unscored", None, ""))
    return scored_rows(examples, [state.answers[i][column].text for i in done], verdicts)


def judged(state: Comparison) -> int:
    """How many questions are judged for every column: what a table speaks of."""
    return sum(all(v is not None and v.score is not None for v in row) for row in state.verdicts)


def save(state: Comparison, name: str, folder: Path, key: str, hashes: Mapping[str, str]) -> list[RunRecord]:
    """Keep a comparison under a name, a record for each column. Raises LabError for a name that is taken or none, and where fewer
    than two questions are judged: of one there is no interval."""
    section = re.sub(r"[^\w .-]+", "-", name).strip(" .-")[:60]
    own = place(folder, key)
    if not section:
        raise LabError("Give the comparison a name.")
    if (own / section).exists():
        raise LabError(f"There is a comparison {section!r} already; give another name.")
    if own.is_dir() and sum(1 for _ in own.iterdir()) >= MOST:
        raise LabError(f"There are {MOST} saved comparisons already; remove one in Results first.")
    if judged(state) < 2:
        raise LabError("A table needs at least two questions that are judged; ask the problems of a task, or a file with answers.")
    try:
        return [_record(state, at, column, section, own, hashes) for at, column in enumerate(state.columns)]
    except LabError:
        shutil.rmtree(own / section, ignore_errors=True)  # all of it or nothing
        raise


def _record(state: Comparison, at: int, column: str, section: str, own: Path, hashes: Mapping[str, str]) -> RunRecord:
    rows, recipe = rows_of(state, at), dict(state.recipes[at])
    values = recipe.pop("coefficients", None)
    coefficients = {"skills": recipe.pop("skills"), "modules": recipe.pop("modules"), "values": values} if values else None
    method = column.replace("/", "-")
    task = next((question.task for question in state.questions if question.task), None)
    record = make_record(
        rows, section=section, preset=SAVED, method=method, seed=state.seed, task=task.name if task else "prompts",
        task_version=task.version if task else 1, key=content_hash(section, column, recipe, values, rows), parameters=recipe,
        hashes=hashes, coefficients=coefficients, seconds={"answer": round(sum(row[at].seconds for row in state.answers), 2)},
        sandbox=isolation_level().name,
    )  # fmt: skip
    return save_record(record, rows, own)


def saved(folder: Path, key: str) -> tuple[list[RunRecord], list[str]]:
    """A visitor's saved comparisons, and the files among them that are damaged."""
    return read_records(place(folder, key)) if key else ([], [])


def remove(folder: Path, key: str, section: str) -> None:
    """Remove a saved comparison. Raises LabError where there is none of that name."""
    own = place(folder, key)
    if section not in {path.name for path in (own.iterdir() if own.is_dir() else ())}:
        raise LabError(f"There is no saved comparison {section!r}.")
    shutil.rmtree(own / section)


def answers_file(state: Comparison) -> str:
    """All answers as JSON lines, also of what nobody could judge; gives the path."""
    path = fresh_folder() / "answers.jsonl"
    rows = [{"column": column, **row} for at, column in enumerate(state.columns) for row in rows_of(state, at)]
    path.write_bytes(jsonl(rows))
    return str(path)


def files(records: Sequence[RunRecord], reference: str) -> list[str]:
    """Answers as JSON lines, the table as CSV (numbers), LaTeX and Markdown (as people read it), the bars as PNG and SVG."""
    folder = fresh_folder()
    table = tables.result_table(records, reference)
    shown = tables.format_table(table)
    rows = [{"column": record.method, "seed": record.seed, **row} for record in records for row in record.rows()]
    (folder / "answers.jsonl").write_bytes(jsonl(rows))
    table.to_csv(folder / "table.csv")
    (folder / "table.tex").write_text(_latex(shown), encoding="utf-8")
    (folder / "table.md").write_text(_markdown(shown), encoding="utf-8")
    chart = method_bars(table)
    texts = [str(folder / name) for name in ("answers.jsonl", "table.csv", "table.tex", "table.md")]
    return [*texts, *charts.files([chart], ["chart"], "png"), *charts.files([chart], ["chart"], "svg")]


def _latex(shown: pd.DataFrame) -> str:
    text = shown.to_latex(escape=True, column_format="l" + "r" * shown.shape[1])
    for sign, written in (("−", "$-$"), ("–", "--"), ("×", r"$\times$")):
        text = text.replace(sign, written)
    return text


def _markdown(shown: pd.DataFrame) -> str:
    def line(cells) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    body = [line([label, *row]) for label, row in zip(shown.index, shown.to_numpy(), strict=True)]
    return "\n".join([line(["", *shown.columns]), line(["---", *["---:"] * shown.shape[1]]), *body, ""])
