"""Take home: exports, recipe, and what repeats it outside the page."""

from pathlib import Path

import gradio as gr

from lab.app import actions, takehome
from lab.app.frame import IN_LINE, MODEL, Page
from lab.app.scratch import fresh_folder
from lab.app.sources import check_size, clean_name
from lab.errors import LabError
from lab.lora.peft_io import DTYPES

FORMS = ["adapter (PEFT, zip)", "whole model, merge folded in (zip)", "the adapters themselves (zip)"]


def build(page: Page) -> None:
    context = page.context
    with gr.Tab("Take home", id="home") as tab:
        with gr.Row():
            page.take.render()
            dtype = gr.Dropdown(list(DTYPES), value="float32", label="Numbers as", min_width=120)
            form = gr.Radio(
                FORMS,
                value=FORMS[0],
                label="As",
                min_width=240,
            )
            pad = gr.Checkbox(False, label="Pad the rank to one that serving engines accept", min_width=200, elem_id="pad")
        with gr.Row():
            export = gr.Button("Export", variant="primary", elem_id="export", min_width=110)
            save = gr.Button("Save the recipe", elem_id="save-recipe", min_width=110)
        file = gr.File(label="Ready", visible=False, elem_id="exported")
        gr.Markdown("### The same again, without this page")
        lines = _code("Command", "shell", elem_id="commands")
        notebook = _code("Notebook of the section, with every control", "shell")
        python = _code("Load the export and ask it", "python")
        gr.Markdown("### A recipe that was saved")
        recipe = gr.File(label="recipe.json", file_types=[".json"], height=110, elem_id="recipe-in")

    def previewed(session, column, form):
        if session.grid is None or not column:
            return "", "", ""
        given = session, column, context.base_name
        code = takehome.snippet(*given, folded=form == FORMS[1], prompt=actions.present_prompt(context, session))
        return takehome.commands(*given), takehome.papermill_command(*given), code

    page.on([tab.select, page.take.change, form.change], previewed, [page.take, form], [lines, notebook, python])

    def exported(session, column, dtype, form, pad):
        if form == FORMS[2]:
            return gr.update(value=str(takehome.inputs_zip(session)), visible=True)
        path = actions.export(context, session, column or "merge", dtype, form == FORMS[1], pad=pad)
        return gr.update(value=str(path), visible=True)

    page.on(export.click, exported, [page.take, dtype, form, pad], file, **MODEL, show_progress="full")

    def saved(session, column):
        path = fresh_folder() / f"{clean_name(column or 'merge')}-recipe.json"
        path.write_text(takehome.recipe_text(session, column or "merge"), encoding="utf-8")
        return gr.update(value=str(path), visible=True)

    page.on(save.click, saved, [page.take], file, show_progress="full")

    def brought(session, file):
        try:
            check_size(Path(file))
            text = Path(file).read_text(encoding="utf-8")
            gr.Info(actions.use_recipe(context, session, takehome.read_recipe(text)))
        except (LabError, OSError, UnicodeDecodeError) as error:  # the field is emptied all the same, for the next file
            told = str(error) if isinstance(error, LabError) else "The recipe cannot be read as UTF-8 text."
            gr.Warning(told, duration=12)
        return [*page.views(session), None]

    page.on(recipe.upload, brought, [recipe], [*page.shared, recipe], **IN_LINE, show_progress="full")


def _code(label: str, language: str, **options) -> gr.Code:
    return gr.Code("", label=label, language=language, interactive=False, lines=1, wrap_lines=True, **options)
