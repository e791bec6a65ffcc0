"""Results: the records as the site shows them, their completions, and the way back into Compare."""

import warnings
from html import escape

import gradio as gr

from lab.app import charts, html
from lab.app.context import Context, guarded
from lab.app.page import Page
from lab.app.takehome import apply_recipe
from lab.errors import LabError
from lab.merging import METHODS
from lab.pages.figures import method_bars
from lab.records import tables
from lab.records.record import REASONS, load_records

SHOWN = 25


def sections(context: Context) -> dict[str, list]:
    """Records by section, preset and number of problems."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = load_records(context.results)
    found: dict[str, list] = {}
    for record in records:
        found.setdefault(f"{record.section} · {record.preset} · {record.n + record.unscored} problems", []).append(
            record
        )
    return found


_BOARDS: dict[tuple, tuple] = {}  # records are never edited, so their keys say whether a board is still right


def board(records: list, reference: str = "cat") -> tuple:
    """(chart, table as people read it)."""
    key = tuple(record.key for record in records)
    if key not in _BOARDS:
        methods = {r.method for r in records}
        table = tables.result_table(records, reference if reference in methods else records[0].method)
        _BOARDS[key] = method_bars(table), tables.format_table(table)
    return _BOARDS[key]


def build(page: Page, tabs: gr.Tabs) -> None:
    context = page.context
    private = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Tab("Results", id="results") as tab:
        section = gr.Dropdown([], label="Section", elem_id="section")
        with gr.Row():
            wanted = gr.Textbox("", label="Filter methods (part of a name)", min_width=180, elem_id="filter")
            method = gr.Dropdown([], label="Method", min_width=130, elem_id="result-method")
            seed = gr.Dropdown([], label="Seed", min_width=70)
            reason = gr.Dropdown(["all", *REASONS], value="all", label="Answers", min_width=100)
            number = gr.Number(0, label="From number", precision=0, minimum=0, min_width=80)
        opening = gr.Button("Open this run's settings in Compare", elem_id="open-run")
        leaderboard = gr.HTML("", elem_id="leaderboard", apply_default_css=False)
        browser = gr.HTML("", elem_id="browser", apply_default_css=False)

    def records_of(name: str) -> list:
        found = sections(context)
        if name not in found:
            raise LabError("There are no such records; run the section first (make results).")
        return found[name]

    def drawn(records, part: str) -> str:
        chart, table = board(records)
        if part.strip():
            keep = [label for label in table.index if part.strip().lower() in label.lower()]
            table = table.loc[keep]
        rows = [
            (label, [escape(str(value)) for value in row])
            for label, row in zip(table.index, table.to_numpy(), strict=True)
        ]
        return charts.figure(chart) + html.table(list(table.columns), rows)

    @guarded
    def opened(chosen):
        found = sections(context)
        if not found:
            return (
                gr.update(choices=[], value=None),
                gr.skip(),
                gr.skip(),
                html.dim("No records yet: make results."),
                "",
            )
        name = chosen if chosen in found else next(iter(found))
        records = found[name]
        methods = list(dict.fromkeys(r.method for r in records))
        first = "cat" if "cat" in methods else methods[0]
        seeds = [str(r.seed) for r in records if r.method == first]
        return (
            gr.update(choices=list(found), value=name),
            gr.update(choices=methods, value=first),
            gr.update(choices=seeds, value=seeds[0]),
            drawn(records, ""),
            _answers(records, first, seeds[0], "all", 0),
        )

    @guarded
    def filtered(name, part):
        return drawn(records_of(name), part)

    @guarded
    def picked(name, method, reason, number):
        records = records_of(name)
        seeds = [str(r.seed) for r in records if r.method == method]
        return gr.update(choices=seeds, value=seeds[0] if seeds else None), _answers(
            records, method, seeds[0], reason, int(number or 0)
        )

    @guarded
    def browsed(name, method, seed, reason, number):
        return _answers(records_of(name), method, seed, reason, int(number or 0))

    @guarded
    def taken(session, name, method, seed):
        session = context.check(session)
        record = _record(records_of(name), method, seed)
        grid = session.need()
        columns = ["base", *[s for s in grid.skills][:3], "merge"]
        if record.coefficients:
            c = record.coefficients
            apply_recipe(session, {"skills": c["skills"], "modules": c["modules"], "coefficients": c["values"]})
            told = f"The mixer holds the coefficients of {method}, seed {seed}."
        elif method in grid.skills or method == "base":
            columns, told = list(dict.fromkeys(["base", method])), f"Compare asks {method}."
        else:
            if method not in METHODS or METHODS[method].recipe is not None:
                raise LabError(
                    f"{method} was trained and its weights are not among the records; Compare cannot open it."
                )
            label = session.add(method, session.make(method, {}))
            columns, told = [*columns, label], f"{method} is a column of Compare."
        note = (
            ""
            if str(record.seed) == "0"
            else " (The records of other seeds are of other skills than the shipped ones.)"
        )
        gr.Info(told + note)
        return [gr.Tabs(selected="compare"), *page.views(session, columns)]

    first_outputs = [section, method, seed, leaderboard, browser]
    gr.on([tab.select], opened, section, first_outputs, **private)
    section.input(opened, section, first_outputs, **private)
    wanted.change(filtered, [section, wanted], leaderboard, **private)
    method.input(picked, [section, method, reason, number], [seed, browser], **private)
    gr.on(
        [seed.input, reason.input, number.change], browsed, [section, method, seed, reason, number], browser, **private
    )
    opening.click(taken, [page.session, section, method, seed], [tabs, *page.shared], **private)


def _record(records: list, method: str, seed: str):
    found = [r for r in records if r.method == method and str(r.seed) == str(seed)]
    if not found:
        raise LabError(f"There is no record of {method} with seed {seed}.")
    return found[0]


def _answers(records: list, method: str, seed: str, reason: str, first: int) -> str:
    record = _record(records, method, seed)
    rows = [row for row in record.rows() if reason in ("all", row["reason"])]
    part = rows[max(first, 0) : max(first, 0) + SHOWN]
    counts = ", ".join(f"{name} {count}" for name, count in record.classes.items())
    low, high = (100 * bound for bound in record.interval)
    told = html.dim(
        f"right {100 * record.scores['right']:.1f} % ({low:.1f} to {high:.1f}); {counts}. "
        f"Shown: {len(part)} of {len(rows)} answers, from number {max(first, 0)}."
    )
    heading = f"<h3>{escape(method)}, seed {escape(str(record.seed))}</h3>"
    return heading + told + ("".join(map(_row, part)) or html.dim("No such answers."))


def _row(row: dict) -> str:
    mark = {1: "good", 0: "bad"}.get(row["score"], "dim")
    question = escape(row["prompt"].removeprefix("Question: ")[:110])
    returned, gold = escape(str(row["extracted"])[:200]) or "nothing", escape(str(row["answer"]))
    return (
        f'<details class="question"><summary><i class="dot {mark}"></i> {escape(row["id"])} '
        f'<span class="dim">{escape(row["reason"])}</span> {question}</summary>'
        f'<pre class="prompt">{escape(row["prompt"])}</pre>'
        f'<div class="answers"><article><pre>{escape(row["completion"])}</pre>'
        f"<footer>returned <code>{returned}</code>, gold <code>{gold}</code></footer></article></div></details>"
    )
