"""Plots: the alphas as heatmaps, by layer, by module, and how they moved while they were learned."""

import gradio as gr

from lab.app import actions, charts
from lab.app.frame import Page


def build(page: Page) -> None:
    context = page.context
    with gr.Tab("Plots", id="plots") as tab:
        with gr.Row():
            refresh = gr.Button("Draw again", min_width=100, elem_id="draw")
            png = gr.Button("Save as PNG", min_width=100, elem_id="save-png")
            svg = gr.Button("Save as SVG", min_width=100, elem_id="save-svg")
        saved = gr.File(label="Saved", visible=False, file_count="multiple", elem_id="saved-plots")
        pictures = gr.HTML("", elem_id="pictures", apply_default_css=False)

    def drawn(session):
        found = actions.pictures(context, session)
        note = "" if "drift" in found else '<p class="dim">The drift shows here after a run of Learn.</p>'
        return f'<div class="charts">{"".join(map(charts.figure, found.values()))}</div>{note}'

    page.on([tab.select, refresh.click], drawn, [], pictures)
    for button, kind in ((png, "png"), (svg, "svg")):

        def save(session, kind=kind):
            found = actions.pictures(context, session)
            return gr.update(
                value=charts.files(list(found.values()), [f"alphas-{name}" for name in found], kind), visible=True
            )

        page.on(button.click, save, [], saved, show_progress="full")
