"""Learn: alphas from data in the background; what settings and single layers are worth."""

from html import escape

import gradio as gr

from lab.app import actions, charts, html
from lab.app.actions import FIRST
from lab.app.controls import control, values_of
from lab.app.frame import IN_LINE, MODEL, PRIVATE, Page, guarded
from lab.app.jobs import Job
from lab.app.learning import learnable
from lab.errors import LabError
from lab.merging import METHODS, schema
from lab.records.format import p_said, percent_range, points_range

DATA = ("the skills' own calibration data", "my rows (JSONL or CSV)")

def build(page: Page) -> tuple:
    """The tab; gives what lets a page that has come again follow the run that it started earlier: `event.then(*what)`."""
    context = page.context
    names = [(m.label, m.name) for m in learnable()]
    with gr.Tab("Learn", id="learn") as tab:
        with gr.Row():
            data = gr.Radio(DATA, value=DATA[0], label="Data", min_width=220, elem_id="learn-data")
            rows = gr.Number(100, label="Rows per skill", precision=0, minimum=4, min_width=90)
        files = gr.File(
            label='One file per skill: {"prompt": …, "completion": …} to a line, or a CSV with these columns',
            file_count="multiple",
            file_types=[".jsonl", ".json", ".csv"],
            visible=False,
            height=110,
            elem_id="own-rows",
        )
        mixed = gr.Checkbox(False, label="One file holds the rows of all skills", visible=False, elem_id="mixed")
        read = gr.HTML("", elem_id="rows-read", apply_default_css=False)
        # What only a rendered event reads must be told that it can be changed.
        with gr.Row():
            method = gr.Dropdown(names, value=FIRST, label="Method", min_width=130, elem_id="learn-method")
            steps = gr.Number(40, interactive=True, label="Steps", precision=0, min_width=80, elem_id="steps")
            rate = gr.Number(0.1, interactive=True, label="Learning rate", min_width=90)
            batch = gr.Number(8, interactive=True, label="Rows per step", precision=0, min_width=80)
            seed = gr.Number(0, label="Seed", precision=0, min_width=70)
            checked = gr.Number(20, interactive=True, label="Check on problems", precision=0, minimum=0, min_width=90, elem_id="checked")
        job_id = page.job
        layers_id = gr.State("")

        @gr.render(inputs=method)
        def parameters(name):
            chosen = [p for p in schema(name) if p.name != "seed"]
            gr.Markdown(f"{METHODS[name].summary} `{METHODS[name].formula}` ([source]({METHODS[name].paper}))")
            gr.Markdown(_note(METHODS[name], context.showcase.target))
            with gr.Row(elem_id="learn-parameters", elem_classes=[f"of-{name}"]):
                made = [control(p) for p in chosen]
            start = gr.Button("Learn", variant="primary", elem_id="start-learning")

            def started(session, old, data, rows, files, mixed, steps, rate, batch, seed, checked, *values):
                if actions.going_on(context, old):
                    raise LabError("A run of yours is going on; stop it first.")
                given = values_of(chosen, values)
                if "seed" in {p.name for p in schema(name)}:
                    given["seed"] = int(seed or 0)
                own = _own(data, files)
                id = actions.learn(context, session, name, given, rows, steps, rate, batch, seed, files=own, mixed=mixed, checked=int(checked or 0))
                return id, gr.Timer(active=True), _status(context, context.jobs.find(id))

            inputs = [job_id, data, rows, files, mixed, steps, rate, batch, seed, checked, *made]
            page.on(start.click, started, inputs, [job_id, timer, status])

        with gr.Row():
            stop = gr.Button("Stop and keep what there is", elem_id="stop-learning", min_width=150)
            use = gr.Button("Use it", variant="primary", elem_id="use-learned", min_width=120)
            column = gr.Button("Add as a column", elem_id="learned-column", min_width=110)
        status = gr.HTML("", elem_id="learn-status", apply_default_css=False)
        timer = gr.Timer(1.0, active=False)
        gr.Markdown(
            "### What the settings cost each skill\nLoss on held-out rows, never learned on, "
            "in nats per token; ΔNLL against the skill's own adapter."
        )
        measure = gr.Button("Measure ΔNLL of the mixer, A, B, other columns and the last run", elem_id="measure")
        costs = gr.HTML("", elem_id="costs", apply_default_css=False)
        gr.Markdown(
            "### Effective layers\nOne layer after the other is lowered; the map shows what that costs each skill."
        )
        with gr.Row():
            factor = gr.Slider(0, 0.9, 0, step=0.1, label="Layer's alphas times", min_width=200)
            weigh_layers = gr.Button("Weigh the layers", elem_id="weigh-layers", min_width=120)
            stop_layers = gr.Button("Stop", min_width=70)
        layers = gr.HTML("", elem_id="layers", apply_default_css=False)
        layers_timer = gr.Timer(1.0, active=False)

    def chosen(data, files) -> list:
        own = data == DATA[1]
        told = html.items(actions.describe_rows(files)) if own else ""
        return [gr.update(visible=own), gr.update(visible=own), gr.update(visible=not own), told]

    gr.on([data.change, files.change], guarded(chosen), [data, files], [files, mixed, rows, read], **PRIVATE)

    def fitting(session, data):
        """Where no data is known for the skills, one's own is asked for."""
        if data == DATA[0] and session.grid is not None and not actions.has_data(context, session):
            return DATA[1]
        return gr.skip()

    page.on(tab.select, fitting, [data], data)

    def follow(draw):
        """A timer's handler: draws the job, and goes on until it is over."""

        def followed(id):
            if id not in context.jobs:
                return gr.Timer(active=False), gr.skip()
            job = context.jobs.find(id)
            return gr.Timer(active=not job.over), draw(context, job)

        return followed

    timer.tick(follow(_status), job_id, [timer, status], **PRIVATE)
    layers_timer.tick(follow(_layers_status), layers_id, [layers_timer, layers], **PRIVATE)
    @guarded
    def stopped(id):
        job = actions.going_on(context, id)
        if job is None:
            raise LabError("No run is going on.")
        context.jobs.stop(job)

    stop.click(stopped, job_id, None, queue=False, **PRIVATE)
    stop_layers.click(stopped, layers_id, None, queue=False, **PRIVATE)

    def used(session, id, columns):
        own = set(session.columns)
        gr.Info(actions.use_learned(context, session, id))
        new = [column for column in session.columns if column not in own]
        return page.views(session, [*columns, *new] if new else None)

    def added(session, id, columns):
        label = actions.learn_column(context, session, id, titled=True)
        gr.Info(f"{label} is a column of Compare now.")
        return page.views(session, [*columns, label])

    page.on(use.click, used, [job_id, page.columns], page.shared, **IN_LINE)
    page.on(column.click, added, [job_id, page.columns], page.shared)

    def measured(session, id, data, rows, files, mixed, seed):
        columns = ["base", *session.need().skills, "merge", *sorted(session.slots), *session.others]
        yield html.dim("measuring…")
        yield _losses(actions.delta_nll(context, session, columns, rows, seed, files=_own(data, files), mixed=mixed, job=id))

    page.on(measure.click, measured, [job_id, data, rows, files, mixed, seed], costs, **MODEL)

    def weighed(session, old, factor, data, rows, files, mixed, seed):
        if actions.going_on(context, old):
            raise LabError("The layers are being weighed already; stop that first.")
        id = actions.weigh_layers(context, session, factor, rows, seed, files=_own(data, files), mixed=mixed)
        return id, gr.Timer(active=True), _layers_status(context, context.jobs.find(id))

    inputs = [layers_id, factor, data, rows, files, mixed, seed]
    page.on(weigh_layers.click, weighed, inputs, [layers_id, layers_timer, layers])
    return follow(_status), job_id, [timer, status]


def _own(data: str, files: list[str] | None) -> list[str] | None:
    """One's own files, where these are chosen."""
    return (files or []) if data == DATA[1] else None


def _note(method, target: str) -> str:
    """What is special about what a method learns from or gives."""
    told = []
    if method.kind == "router":
        told.append(
            "A router decides by what it reads (most of them token by token): its result is a column of Compare and can be taken "
            "home with the skills, "
            "but it is no table of alphas, so it cannot be put into the mixer."
        )
    if method.recipe.data == "target":
        told.append(
            f"It searches without gradients, on examples of the **target** itself, which no other method sees: "
            f"{method.recipe.rows} worked problems of {target} (fewer where fewer are known), or all rows of your "
            f"files. Steps are its tries; learning rate and rows per step are not used."
        )
    if method.recipe.data == "prompts":
        told.append("It learns from the rows' prompts only: their answers are taken away.")
    if method.recipe.learning_rate is None and method.kind != "search":
        told.append("It learns in closed form: steps, learning rate and rows per step are not used.")
    if method.recipe.learning_rate is not None:
        rate, rows = method.recipe.learning_rate, method.recipe.batch_size
        told.append(f"Its source learns at a rate of {rate:g}, {rows} rows a step.")
    return " ".join(told)


def _losses(found: dict) -> str:
    """Table of losses; each label's own adapter is the reference of its ΔNLL, else the base."""
    rows, labels = [], list(found["base"])
    for column, losses in found.items():
        cells: list = []
        for label in labels:
            delta = losses[label] - found.get(label, found["base"])[label]
            told = _signed(delta)
            cells += [f"{losses[label]:.3f}", ("good", f"✓ {told}") if delta <= 0.02 else told]
        rows.append(("mixer (merge)" if column == "merge" else column, cells))
    return html.table([word for label in labels for word in (label, "Δ")], rows)


def _bar(job: Job, place: int) -> str:
    words = f"waiting: place {place} in the line" if job.state == "waiting" else job.state
    if job.state == "running" and "phase" in job.view:
        words = f"running: {job.view['phase']}"
    left = job.seconds_left if "phase" not in job.view else None  # its progress is that of the learning
    more = f" · about {left:.0f} s left" if left is not None else ""
    mark = "bad" if job.state == "failed" else ""
    told = f' <span class="{mark}">{escape(job.message)}</span>' if job.message else ""
    return (
        f'<div class="bar"><i style="width:{100 * job.progress:.0f}%"></i></div>'
        f'<p class="dim" data-state="{job.state}">{words}{more}{told}</p>'
    )


def _status(context, job: Job) -> str:
    """What the page shows of a learning job."""
    view = job.view
    losses = list(view.get("losses", ()))
    parts = [_bar(job, context.jobs.place(job))]
    if losses:
        parts.append(html.dim(f"{METHODS[view['method']].label}: step {len(losses)} of {view['steps']}, loss {losses[-1]:.3f}"))
    if job.result is not None and job.result.held_out is not None:
        parts.append(html.dim(f"loss on the run's own held-out rows: {job.result.held_out:.4f} nats per token"))
    if job.over and job.result is not None:
        parts.append(_verdict(view.get("verdict")))
    if losses:
        key = (len(losses), len(view["drift"]))
        if (view.get("drawn") or (None,))[0] != key:  # figures cost more than steps: draw each state once
            pictures = charts.figure(charts.loss_curve(losses))
            if view["drift"]:
                step, values = view["drift"][-1]
                pictures += charts.figure(charts.heatmap(values, view["grid"], f"Coefficients at step {step + 1}"))
            view["drawn"] = (key, pictures)
        parts.append(f'<div class="charts">{view["drawn"][1]}</div>')
    return "".join(parts)


NOISE = 0.05  # above this p a difference is taken for noise


def _verdict(verdict: dict | None) -> str:
    """Whether a run was worth it: losses and problems solved, before and after."""
    if verdict is None:
        return html.dim("It was stopped, so it was not compared with the mixer as it was before.")
    rows, columns, lines = [], ["before", "after", "difference"], []
    if verdict["losses"]:
        before, after = verdict["losses"]["before"], verdict["losses"]["after"]
        for skill in before:
            change = after[skill] - before[skill]
            rows.append((f"held-out loss of {skill}, nats per token", [f"{before[skill]:.3f}", f"{after[skill]:.3f}", _signed(change)]))
    right = verdict["right"]
    if right:
        cells = [escape(percent_range(*right[name])) for name in ("before", "after")]
        rows.append((f"right of {right['n']} problems, % (95 % interval)", [*cells, escape(points_range(*right["difference"]))]))
        if right["p"] > NOISE:
            lines.append(("bad", f"⚠ On {right['n']} problems the difference may be noise ({p_said(right['p'])}, {right['test']}); check on more."))
        else:
            better = "more" if right["difference"][0] > 0 else "fewer"
            lines.append(("good", f"✓ It solves {better} problems than the mixer before ({p_said(right['p'])}, {right['test']})."))
    else:
        lines.append(("dim", "No problems were asked: a lower loss on held-out rows does not say that more is solved."))
    table = html.table(columns, rows, "The mixer as it was when the run began, and what was learned") if rows else ""
    return f'<div id="verdict">{table}{html.items(lines)}</div>'


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _layers_status(context, job: Job) -> str:
    parts = [_bar(job, context.jobs.place(job))]
    if "costs" in job.view:
        view = job.view
        parts.append(
            charts.figure(charts.layer_costs(view["layers"], view["labels"], view["costs"].copy(), view["factor"]))
        )
    return "".join(parts)
