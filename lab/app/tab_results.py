"""Results: the records as the site shows them, their completions, and the way back into Compare."""

from html import escape

import gradio as gr

from lab.app import actions, charts, html
from lab.app.comparisons import SAVED
from lab.app.frame import PRIVATE, Page, guarded
from lab.records.record import REASONS

SHOWN = 25



def build(page: Page, tabs: gr.Tabs) -> None:
    context = page.context
    with gr.Tab("Results", id="results") as tab:
        section = gr.Dropdown([], label="Section", elem_id="section")
        with gr.Row():
            wanted = gr.Textbox("", label="Filter methods (part of a name)", min_width=180, elem_id="filter")
            method = gr.Dropdown([], label="Method", min_width=130, elem_id="result-method")
            seed = gr.Dropdown([], label="Seed", min_width=70)
            reason = gr.Dropdown(["all", *REASONS], value="all", label="Answers", min_width=100)
            number = gr.Number(0, label="From number", precision=0, minimum=0, min_width=80)
        with gr.Row():
            opening = gr.Button("Open this run's settings in Compare", elem_id="open-run", min_width=200)
            take = gr.Button("This section as files", elem_id="section-files", min_width=150)
            remove = gr.Button("Remove this comparison", elem_id="remove-comparison", min_width=150, visible=False)
        files = gr.File(
            label="Answers (JSONL), table (CSV, LaTeX, Markdown), chart (PNG, SVG)", visible=False, file_count="multiple",
            elem_id="files-of-section",
        )  # fmt: skip
        leaderboard = gr.HTML("", elem_id="leaderboard", apply_default_css=False)
        browser = gr.HTML("", elem_id="browser", apply_default_css=False)

    def drawn(records, part: str) -> str:
        chart, table = actions.board(records, part)
        if chart is None:
            return html.dim(f"No method here has {part.strip()!r} in its name.")
        rows = [
            (label, [escape(str(value)) for value in row])
            for label, row in zip(table.index, table.to_numpy(), strict=True)
        ]
        return charts.figure(chart) + html.table(list(table.columns), rows)

    @guarded
    def opened(session, chosen, part):
        found, damaged = actions.sections(context, session)
        if not found:
            return (
                gr.update(choices=[], value=None),
                gr.skip(),
                gr.skip(),
                html.dim("No records yet: make results."),
                "",
                gr.update(visible=False),
            )
        name = chosen if chosen in found else next(iter(found))
        records = found[name]
        names = actions.method_names(records)
        first = "cat" if "cat" in names else next(iter(names))
        seeds = [str(r.seed) for r in records if r.method == first]
        return (
            gr.update(choices=list(found), value=name),
            gr.update(choices=[(label, name) for name, label in names.items()], value=first),
            gr.update(choices=seeds, value=seeds[0]),
            drawn(records, part) + html.items([("bad", f"{name} is damaged or no record.") for name in damaged]),
            _answers(records, first, seeds[0], "all", 0),
            gr.update(visible=records[0].preset == SAVED),
        )

    @guarded
    def filtered(session, name, part):
        if not name:  # the records are still being read; what is drawn then is filtered next
            return gr.skip()
        return drawn(actions.records_in(context, session, name), part)

    @guarded
    def picked(session, name, method, reason, number):
        records = actions.records_in(context, session, name)
        seeds = [str(r.seed) for r in records if r.method == method]
        return gr.update(choices=seeds, value=seeds[0] if seeds else None), _answers(
            records, method, seeds[0], reason, int(number or 0)
        )

    @guarded
    def browsed(session, name, method, seed, reason, number):
        return _answers(actions.records_in(context, session, name), method, seed, reason, int(number or 0))

    def taken(session, *run):
        columns, told = actions.open_run(context, session, *run)
        gr.Info(told)
        return [gr.Tabs(selected="compare"), *page.views(session, columns)]

    def taken_along(session, name):
        return gr.update(value=actions.section_files(context, session, name), visible=True)

    def removed(session, name, part):
        gr.Info(f"{actions.remove_comparison(context, session, name)} is removed.")
        return opened(session, None, part)

    who, first_outputs = page.session, [section, method, seed, leaderboard, browser, remove]
    reading = gr.on([tab.select, section.input], opened, [who, section, wanted], first_outputs, **PRIVATE)
    reading.then(filtered, [who, section, wanted], leaderboard, **PRIVATE)  # by what was typed meanwhile
    wanted.change(filtered, [who, section, wanted], leaderboard, **PRIVATE)
    method.input(picked, [who, section, method, reason, number], [seed, browser], **PRIVATE)
    gr.on(
        [seed.input, reason.input, number.change], browsed, [who, section, method, seed, reason, number], browser, **PRIVATE
    )
    page.on(take.click, taken_along, [section], files, show_progress="full")
    page.on(remove.click, removed, [section, wanted], first_outputs)
    page.on(opening.click, taken, [section, method, seed], [tabs, *page.shared])


def _answers(records: list, method: str, seed: str, reason: str, first: int) -> str:
    record = actions.find_record(records, method, seed)
    rows = [row for row in record.rows() if reason in ("all", row["reason"])]
    part = rows[max(first, 0) : max(first, 0) + SHOWN]
    counts = ", ".join(f"{name} {count}" for name, count in record.classes.items())
    low, high = (100 * bound for bound in record.interval)
    told = html.dim(
        f"right {100 * record.scores['right']:.1f} % ({low:.1f} to {high:.1f}); {counts}. "
        f"Shown: {len(part)} of {len(rows)} answers, from number {max(first, 0)}."
    )
    heading = f"<h3>{escape(actions.method_names(records)[method])}, seed {escape(str(record.seed))}</h3>"
    return heading + told + ("".join(map(_row, part)) or html.dim("No such answers."))


def _row(row: dict) -> str:
    mark = {1: "good", 0: "bad"}.get(row["score"], "dim")
    question = escape(row["prompt"].removeprefix("Question: ")[:110])
    returned, gold = escape(str(row["extracted"])[:200]) or "nothing", escape(" or ".join(row["targets"])) or "unknown"
    return (
        f'<details class="question"><summary>{html.dot(mark, row["reason"])} {escape(row["id"])} '
        f'<span class="dim">{escape(row["reason"])}</span> {question}</summary>'
        f'<pre class="prompt">{escape(row["prompt"])}</pre>'
        f'<div class="answers"><article><pre>{escape(row["completion"])}</pre>'
        f"<footer>returned <code>{returned}</code>, gold <code>{gold}</code></footer></article></div></details>"
    )
