"""Load: the base and the adapters, with the report of what fits before anything runs."""

from html import escape

import gradio as gr

from lab.app import actions, html
from lab.app.frame import MODEL, PRIVATE, Page, usual_columns
from lab.app.session import Session
from lab.errors import LabError
from lab.export.report import report

NEW = "add it"
MEND = "It is for this base, whatever name it gives: use it"


def build(page: Page) -> None:
    context = page.context
    with gr.Tab("Load", id="load") as tab:
        base_note = gr.HTML("", elem_id="base-note", apply_default_css=False)
        with gr.Row(visible=context.access.roots is None):
            base = gr.Textbox(
                "",
                label="Another base: embedded, a folder, or a Hub id",
                placeholder="embedded",
                elem_id="base",
                min_width=240,
            )
            load_base = gr.Button("Load the base (for everybody)", min_width=140, elem_id="load-base")
        gr.Markdown("### Adapters")
        with gr.Row():
            source = gr.Textbox(
                "",
                label="Folder or Hub id of a PEFT adapter",
                placeholder="adapters/maths",
                elem_id="source",
                min_width=220,
            )
            place = gr.Dropdown([NEW, actions.ALL], value=NEW, label="In place of", min_width=120, elem_id="place")
            add = gr.Button("Load", variant="primary", elem_id="load-adapter", min_width=90)
        upload = gr.File(
            label="Or upload: a zip of the PEFT folder, or its two files",
            file_count="multiple",
            file_types=[".zip", ".json", ".safetensors"],
            height=110,
            elem_id="upload",
        )
        with gr.Row():
            gone = gr.Dropdown([], label="Take out", min_width=140)
            drop = gr.Button("Take out", min_width=90, elem_id="take-out")
            begin = gr.Button("Back to the first adapters", min_width=140)
        refusal = gr.HTML("", elem_id="refusal", apply_default_css=False)
        mend = gr.Button(MEND, visible=False, size="sm", elem_id="mend")
        verdict = gr.HTML("", elem_id="report", apply_default_css=False)

    outputs = [*page.shared, base_note, place, gone, refusal, mend, verdict]

    def views(session: Session, fresh: bool, refused: str = "") -> list:
        names = [a.name for a in session.adapters]
        choices = [gr.update(choices=[NEW, *names, actions.ALL], value=NEW), gr.update(choices=names, value=None)]
        return [
            *page.views(session, usual_columns(session) if fresh else None),
            _base(context),
            *choices,
            refused,
            gr.update(visible=bool(session.refused)),
            _report(context, session.adapters),
        ]

    def staged(session: Session, adapters, new=(), place: str = "") -> list:
        """Use these, or tell why not and go on with those before. new: what came among them, and in whose place."""
        facts = actions.stage(context, session, adapters)
        if facts.ok:
            one = "One adapter is in use; load another to merge."
            gr.Info("These adapters fit and are in use." if len(session.adapters) > 1 else one)
            return views(session, True)
        actions.refuse(context, session, new, place)
        gr.Warning("These adapters do not fit together; the report says why. The ones before stay in use.")
        told = "<p><b>Refused, and not loaded:</b></p>"
        return views(session, False, told + html.items([("bad", problem) for problem in facts.problems]))

    def loaded(session, source, place):
        new = actions.read_source(context, session, source, place)
        return staged(session, actions.put(context, session, new, place), new, place)

    def uploaded(session, files, place):
        try:
            new = actions.read_uploads(session, files, place)
            return [*staged(session, actions.put(context, session, new, place), new, place), None]
        except LabError as error:  # the field is emptied all the same, for the next file
            gr.Warning(str(error), duration=12)
            return [*[gr.skip()] * len(outputs), None]

    def begun(session):
        if not context.adapters:
            raise LabError("The app was started without adapters; load some.")
        return staged(session, context.adapters)

    def based(session, source):
        gr.Info(actions.exchange_base(context, session, source))
        return views(session, True)

    def looked(session):
        return (
            [gr.skip()] * len(page.shared) + views(session, False)[len(page.shared) :]
            if session
            else [gr.skip()] * len(outputs)
        )

    tab.select(looked, page.session, outputs, **PRIVATE)
    options = {**MODEL, "show_progress": "full"}
    page.on([add.click, source.submit], loaded, [source, place], outputs, **options)
    page.on(upload.upload, uploaded, [upload, place], [*outputs, upload], **options)
    page.on(mend.click, lambda session: staged(session, actions.mend(context, session)), [], outputs, **options)
    page.on(drop.click, lambda session, name: staged(session, actions.take_out(session, name)), [gone], outputs, **options)
    page.on(begin.click, begun, [], outputs, **options)
    page.on(load_base.click, based, [base], outputs, **options)


def _base(context) -> str:
    model = context.engine.model
    size = sum(p.numel() for p in model.parameters())
    kind = model.config.architectures[0] if model.config.architectures else type(model).__name__
    facts = f"{kind}, {size / 1e6:,.1f} million parameters, {str(model.dtype).removeprefix('torch.')} on {model.device}"
    return f'<p><b>Base: {escape(context.base_name)}</b> <span class="dim">{escape(facts)}</span></p>'


def _span(span) -> str:
    if span is None:
        return "?"
    return f"{span[0]:g}" if span[0] == span[1] else f"{span[0]:g} to {span[1]:g}"


def _report(context, adapters) -> str:
    if not adapters:
        return html.dim("No adapters are loaded.")
    facts = report(adapters, context.engine.model)
    rows = []
    for a in facts.adapters:
        bad = a.problem or any(repr(a.name) in problem for problem in facts.problems)
        verdict = ("bad", "does not fit") if bad else ("good", "fits")
        kinds, base = ("text", escape(", ".join(kind for kind, _ in a.kinds))), ("text", escape(a.base or "not stated"))
        rows.append(
            (a.name, [verdict, _span(a.rank), _span(a.scaling), str(a.modules), kinds, f"{a.parameters or 0:,}", base])
        )
    lines = [*(("bad", problem) for problem in facts.problems), *(("good", fit) for fit in facts.fits)]
    lines += [("dim", f"{a.name}: {note}") for a in facts.adapters for note in a.notes]
    open_ones = [m.name for m in facts.methods if m.open]
    refused: dict[str, list[str]] = {}
    for m in facts.methods:
        if m.reason and facts.ok:
            refused.setdefault(m.reason, []).append(m.name)
    methods = (
        f"<p><b>{len(open_ones)} methods are open to this set</b></p>{html.dim(', '.join(open_ones))}"
        if open_ones
        else ""
    )
    no = html.items([("dim", f"{', '.join(names)}: {reason}") for reason, names in refused.items()])
    columns = ["verdict", "rank", "scaling", "modules", "kinds", "parameters", "base"]
    return html.table(columns, rows) + html.items(lines) + methods + no
