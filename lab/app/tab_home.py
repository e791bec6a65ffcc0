"""Take home: exports, recipe, and what repeats it outside the page."""

from pathlib import Path

import gradio as gr

from lab.app import takehome
from lab.app.context import AT_ONCE, IN_LINE, MODEL, guarded
from lab.app.page import Page
from lab.app.scratch import fresh_folder
from lab.app.sources import check_size, clean_name
from lab.errors import LabError
from lab.lora.adapter import DTYPES


def build(page: Page) -> None:
    context = page.context
    private = {"api_visibility": "private"}
    with gr.Tab("Take home", id="home") as tab:
        with gr.Row():
            page.take.render()
            dtype = gr.Dropdown(list(DTYPES), value="float32", label="Numbers as", min_width=120)
            form = gr.Radio(
                ["adapter (PEFT, zip)", "whole model, merge folded in (zip)"],
                value="adapter (PEFT, zip)",
                label="As",
                min_width=240,
            )
            pad = gr.Checkbox(False, label="Pad the rank to one that serving engines accept", min_width=200, elem_id="pad")
        with gr.Row():
            export = gr.Button("Export", variant="primary", elem_id="export", min_width=110)
            save = gr.Button("Save the recipe", elem_id="save-recipe", min_width=110)
        file = gr.File(label="Ready", visible=False, elem_id="exported")
        gr.Markdown("### The same again, without this page")
        lines = gr.Code(
            "", language="shell", label="Command", interactive=False, elem_id="commands", lines=1, wrap_lines=True
        )
        notebook = gr.Code(
            "",
            language="shell",
            label="Notebook of the section, with every control",
            interactive=False,
            lines=1,
            wrap_lines=True,
        )
        python = gr.Code(
            "",
            language="python",
            label="Load the export (an adapter with PEFT)",
            interactive=False,
            lines=1,
            wrap_lines=True,
        )
        gr.Markdown("### A recipe that was saved")
        recipe = gr.File(label="recipe.json", file_types=[".json"], height=110, elem_id="recipe-in")

    @guarded
    def previewed(session, column):
        session = context.check(session)
        if session.grid is None or not column:
            return "", "", ""
        return (
            takehome.commands(session, column, context.base_name),
            takehome.papermill_command(session, column, context.base_name),
            takehome.snippet(session, column, context.base_name),
        )

    previews = [lines, notebook, python]
    gr.on(
        [tab.select, page.take.change],
        previewed,
        [page.session, page.take],
        previews,
        show_progress="hidden",
        **private,
    )

    @guarded
    def exported(session, column, dtype, form, pad):
        session = context.check(session)
        path = takehome.as_zip(
            context.engine, session, column or "merge", dtype=dtype, pad=pad, folded=form.startswith("whole")
        )
        return gr.update(value=str(path), visible=True)

    export.click(
        exported,
        [page.session, page.take, dtype, form, pad],
        file,
        concurrency_id=MODEL,
        concurrency_limit=AT_ONCE,
        **private,
    )

    @guarded
    def saved(session, column):
        session = context.check(session)
        path = fresh_folder() / f"{clean_name(column or 'merge')}-recipe.json"
        path.write_text(takehome.recipe_text(session, column or "merge"), encoding="utf-8")
        return gr.update(value=str(path), visible=True)

    save.click(saved, [page.session, page.take], file, **private)

    @guarded
    def brought(session, file):
        session = context.check(session)
        try:
            check_size(Path(file))
            text = Path(file).read_text(encoding="utf-8")
            gr.Info(takehome.apply_recipe(session, takehome.read_recipe(text)))
        except (LabError, OSError, UnicodeDecodeError) as error:  # the field is emptied all the same, for the next file
            told = str(error) if isinstance(error, LabError) else "The recipe cannot be read as UTF-8 text."
            gr.Warning(told, duration=12)
        return [*page.views(session), None]

    recipe.upload(brought, [page.session, recipe], [*page.shared, recipe], **IN_LINE, **private)
