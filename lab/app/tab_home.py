"""Take home: exports, recipe, and what repeats it outside the page."""

from pathlib import Path

import gradio as gr

from lab.app import actions, takehome
from lab.app.frame import IN_LINE, MODEL, Page
from lab.app.scratch import fresh_folder
from lab.app.sources import check_size, clean_name
from lab.errors import LabError
from lab.lora.peft_io import DTYPES


def build(page: Page) -> None:
    context = page.context
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
        lines = _code("Command", "shell", elem_id="commands")
        notebook = _code("Notebook of the section, with every control", "shell")
        python = _code("Load the export (an adapter with PEFT)", "python")
        gr.Markdown("### A recipe that was saved")
        recipe = gr.File(label="recipe.json", file_types=[".json"], height=110, elem_id="recipe-in")

    def previewed(session, column):
        if session.grid is None or not column:
            return "", "", ""
        made = (takehome.commands, takehome.papermill_command, takehome.snippet)
        return tuple(make(session, column, context.base_name) for make in made)

    page.on([tab.select, page.take.change], previewed, [page.take], [lines, notebook, python])

    def exported(session, column, dtype, form, pad):
        path = actions.export(context, session, column or "merge", dtype, form.startswith("whole"), pad=pad)
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
            gr.Info(takehome.apply_recipe(session, takehome.read_recipe(text)))
        except (LabError, OSError, UnicodeDecodeError) as error:  # the field is emptied all the same, for the next file
            told = str(error) if isinstance(error, LabError) else "The recipe cannot be read as UTF-8 text."
            gr.Warning(told, duration=12)
        return [*page.views(session), None]

    page.on(recipe.upload, brought, [recipe], [*page.shared, recipe], **IN_LINE, show_progress="full")


def _code(label: str, language: str, **options) -> gr.Code:
    return gr.Code("", label=label, language=language, interactive=False, lines=1, wrap_lines=True, **options)
