"""The page: the mixer at the side, the tabs beside it."""

import gradio as gr

from lab.app import actions, endpoints, html, mixer, tab_compare, tab_home, tab_learn, tab_load, tab_plots, tab_results, tab_set
from lab.app.context import Context
from lab.app.frame import IN_LINE, PRIVATE, Page, guarded, usual_columns
from lab.errors import LabError

LASTING = "soup-lab"


def build_page(context: Context) -> gr.Blocks:
    """The whole app on this context."""
    # delete_cache: what was uploaded or exported goes after a day
    with gr.Blocks(title="Soup Lab", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        session = gr.State(None)
        # The fixed secret lets the browser read them after the server was started anew; the key itself is what nobody guesses.
        job = gr.BrowserState("", storage_key="soup-lab-job", secret=LASTING)
        key = gr.BrowserState("", storage_key="soup-lab-key", secret=LASTING)
        gr.HTML(
            '<h1>Soup Lab</h1><span class="dim">mix LoRA skills layer by layer, take the merge home</span>',
            elem_id="title",
            apply_default_css=False,
        )
        with gr.Row(visible=False, elem_id="welcome") as welcome:
            line = gr.HTML("", apply_default_css=False)
            afresh = gr.Button("Start fresh", size="sm", min_width=100, elem_id="start-fresh")
            back = gr.Button("Bring it back", size="sm", min_width=100, elem_id="bring-back", visible=False)
        with gr.Row(elem_id="frame", equal_height=False):
            with gr.Column(scale=3, min_width=340, elem_id="side"):
                with gr.Row(elem_id="settings"):
                    buttons = {
                        label: gr.Button(label, size="sm", min_width=10, elem_id=label.lower().replace(" ", "-"))
                        for label in ("Undo", "Keep A", "Use A", "Keep B", "Use B")
                    }
                mix = mixer.mixer()
                note = gr.HTML("", apply_default_css=False)
            page = Page(
                context,
                session,
                mix,
                note,
                text=gr.Textbox(
                    label="Alphas as text",
                    lines=9,
                    max_lines=24,
                    elem_id="rules",
                    buttons=["copy"],
                    render=False,
                    info="Rules on top of what is set: `layers 0-2 q,v: 0.3`, `code: complement maths`",
                ),
                columns=gr.CheckboxGroup([], label="Columns", elem_id="columns", render=False),
                against=gr.Dropdown(
                    [("no marks", "")],
                    value="",
                    label="Mark differences from",
                    min_width=150,
                    elem_id="against",
                    render=False,
                ),
                take=gr.Dropdown([], label="What", min_width=150, elem_id="take", render=False),
                skill=gr.Dropdown(["every skill"], value="every skill", label="Curve for", min_width=120, render=False),
                job=job,
            )
            with gr.Column(scale=8, min_width=320):
                with gr.Tabs(elem_id="tabs") as tabs:
                    tab_compare.build(page)
                    tab_set.build(page)
                    follow = tab_learn.build(page)
                    tab_plots.build(page)
                    tab_home.build(page)
                    tab_load.build(page)
                    tab_results.build(page, tabs)

        @guarded
        def edited(session, event: gr.EventData):
            for change in event._data["changes"]:
                mixer.edit(context.check(session), change)
            return page.views(session)

        # An edit that was refused must not stay on the screen: the component is drawn anew from what holds.
        mix.edit(edited, session, page.shared, trigger_mode="multiple", **PRIVATE, **IN_LINE).failure(
            lambda s: page.views(s) if s else [gr.skip()] * len(page.shared), session, page.shared, **PRIVATE, **IN_LINE
        )
        page.change(buttons["Undo"].click, actions.undo, trigger_mode="multiple")
        for slot in "AB":
            page.change(buttons[f"Keep {slot}"].click, lambda _, session, slot=slot: session.store(slot))
            page.change(buttons[f"Use {slot}"].click, lambda _, session, slot=slot: session.recall(slot))

        welcomes = [welcome, line, afresh, back]
        first = {name: component.value for name, component in page.form.items()}

        def begun(session, said: str = "", fresh: bool = False) -> list:
            """Everything on the page anew, from a session that has just come. fresh: what was kept was put away."""
            session.form = {**first, "columns": usual_columns(session), **session.form}
            chosen = [column for column in session.form["columns"] if column in session.columns]
            told = [gr.update(visible=bool(said)), html.dim(said), gr.update(visible=not fresh), gr.update(visible=fresh)]
            return [*told, *(session.form[name] for name in first), *page.views(session, chosen)]

        @guarded
        def opened(key, request: gr.Request):
            session, said = context.arrive(key)
            shown = begun(session, said)
            alphas = dict(request.query_params).get("alphas", "") if request else ""
            if alphas and session.grid is not None and session.form.get("link") != alphas:  # a reload must not undo what came after it
                session.form["link"] = alphas
                try:
                    session.set_text(alphas)
                    gr.Info("The alphas of the link are set.")
                except LabError as error:
                    gr.Warning(f"The link's alphas could not be used. {error}", duration=15)
                shown[-len(page.shared) :] = page.views(session, session.form["columns"])
            return [session, session.key, session.job or gr.skip(), *shown]

        def anew(session):
            actions.start_fresh(context, session)
            return begun(session, "You begin anew; your work until now is put aside.", fresh=True)

        def again(session):
            return begun(session, actions.bring_back(context, session))

        everything = [*welcomes, *page.form.values(), *page.shared]
        page.on(afresh.click, anew, [], everything, **IN_LINE)
        page.on(back.click, again, [], everything, **IN_LINE)

        def remembered(session, columns, *values):
            if session is not None and not session.emptied and session.form:  # else the page is still loading
                session.form = {**session.form, **dict(zip(page.form, values, strict=True)), "columns": columns}
                context.keep(session)

        fields = [page.columns, *page.form.values()]
        gr.on(
            [component.change for component in fields], remembered, [session, *fields], None, trigger_mode="always_last",
            queue=False, **PRIVATE,
        )  # fmt: skip

        def closed(request: gr.Request):
            context.close(request.session_hash)

        blocks.load(opened, key, [session, key, job, *everything], **PRIVATE).then(*follow, **PRIVATE)
        blocks.unload(closed)
        endpoints.build(page)
    context.blocks, context.key = blocks, session._id
    return blocks
