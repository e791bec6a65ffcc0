"""The page: the mixer at the side, the tabs beside it, and what all of them share."""

from dataclasses import dataclass

import gradio as gr

from lab.app import mixer as mixing
from lab.app.context import IN_LINE, Context, guarded
from lab.app.session import Session
from lab.errors import LabError


@dataclass
class Page:
    """Components that several tabs read or refresh. `shared` are outputs of everything that changes the session."""

    context: Context
    session: gr.State
    mixer: gr.HTML
    note: gr.HTML
    text: gr.Textbox
    columns: gr.CheckboxGroup
    against: gr.Dropdown
    take: gr.Dropdown
    skill: gr.Dropdown
    job: gr.BrowserState  # the id of the visitor's learning job; not in a tab, which is made only when it is opened

    @property
    def shared(self) -> list:
        return [self.mixer, self.note, self.text, self.columns, self.against, self.take, self.skill]

    def views(self, session: Session, chosen: list[str] | None = None) -> list:
        """Values for `shared`. chosen: columns to tick, else they stay as they are."""
        if session.grid is None:
            empty = gr.update(choices=[], value=None)
            return [{}, note(session), "", gr.update(choices=[], value=[]), empty, empty, empty]
        columns = session.columns
        ticked = {} if chosen is None else {"value": chosen}
        fresh = chosen is not None
        return [
            mixing.shown(session),
            note(session),
            session.text,
            gr.update(choices=columns, **ticked),
            gr.update(choices=[("no marks", ""), *columns], **({"value": ""} if fresh else {})),
            gr.update(choices=columns[1:], **({"value": "merge"} if fresh else {})),
            gr.update(choices=["every skill", *session.grid.skills], **({"value": "every skill"} if fresh else {})),
        ]


def usual_columns(session: Session) -> list[str]:
    """base, up to three skills, merge."""
    return ["base", *[a.name for a in session.adapters][:3], "merge"] if session.grid is not None else []


def note(session: Session) -> str:
    slots = " · kept: " + ", ".join(sorted(session.slots)) if session.slots else ""
    steps = f"{len(session.past)} to undo" if session.past else "nothing to undo"
    return f'<span class="dim">{steps}{slots}</span>' if session.grid is not None else ""


def build_page(context: Context) -> gr.Blocks:
    """The whole app on this context."""
    from lab.app import endpoints, tab_compare, tab_home, tab_learn, tab_load, tab_plots, tab_results, tab_set

    # delete_cache: what was uploaded or exported goes after a day
    with gr.Blocks(title="Soup Lab", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        session = gr.State(None)
        job = gr.BrowserState("", storage_key="soup-lab-job")
        gr.HTML(
            '<h1>Soup Lab</h1><span class="dim">mix LoRA skills layer by layer, take the merge home</span>',
            elem_id="title",
            apply_default_css=False,
        )
        with gr.Row(elem_id="frame", equal_height=False):
            with gr.Column(scale=3, min_width=340, elem_id="side"):
                mix = mixing.mixer()
                with gr.Row(elem_id="settings"):
                    undo = gr.Button("Undo", size="sm", min_width=10, elem_id="undo")
                    keep_a = gr.Button("Keep A", size="sm", min_width=10, elem_id="keep-a")
                    use_a = gr.Button("Use A", size="sm", min_width=10, elem_id="use-a")
                    keep_b = gr.Button("Keep B", size="sm", min_width=10, elem_id="keep-b")
                    use_b = gr.Button("Use B", size="sm", min_width=10, elem_id="use-b")
                told = gr.HTML("", apply_default_css=False)
            page = Page(
                context,
                session,
                mix,
                told,
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
                    tab_learn.build(page, blocks)
                    tab_plots.build(page)
                    tab_home.build(page)
                    tab_load.build(page)
                    tab_results.build(page, tabs)

        @guarded
        def edited(session, event: gr.EventData):
            for change in event._data["changes"]:
                mixing.edit(context.check(session), change)
            return page.views(session)

        @guarded
        def undone(session):
            context.check(session).undo()
            return page.views(session)

        private = {"api_visibility": "private", "show_progress": "hidden"}
        change = {**private, **IN_LINE}
        # An edit that was refused must not stay on the screen: the component is drawn anew from what holds.
        mix.edit(edited, session, page.shared, trigger_mode="multiple", **change).failure(
            lambda s: page.views(s) if s else [gr.skip()] * len(page.shared), session, page.shared, **change
        )
        undo.click(undone, session, page.shared, trigger_mode="multiple", **change)
        for slot, keep, use in (("A", keep_a, use_a), ("B", keep_b, use_b)):
            keep.click(guarded(_keeper(page, slot)), session, page.shared, **change)
            use.click(guarded(_user(page, slot)), session, page.shared, **change)

        @guarded
        def opened(request: gr.Request):
            fresh = context.session()
            alphas = dict(request.query_params).get("alphas", "") if request else ""
            if alphas and fresh.grid is not None:
                try:
                    fresh.set_text(alphas)
                    gr.Info("The alphas of the link are set.")
                except LabError as error:
                    gr.Warning(f"The link's alphas could not be used. {error}", duration=15)
            return [fresh, *page.views(fresh, usual_columns(fresh))]

        def closed(request: gr.Request):
            context.close(request.session_hash)

        blocks.load(opened, None, [session, *page.shared], **private)
        blocks.unload(closed)
        endpoints.build(page)
    context.blocks, context.key = blocks, session._id
    return blocks


def _keeper(page: Page, slot: str):
    def keep(session):
        page.context.check(session).store(slot)
        return page.views(session)

    return keep


def _user(page: Page, slot: str):
    def use(session):
        page.context.check(session).recall(slot)
        return page.views(session)

    return use
