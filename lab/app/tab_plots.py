"""Plots: the alphas as heatmaps, by layer, by module, and how they moved while they were learned."""

import gradio as gr

from lab.app import charts
from lab.app.context import guarded
from lab.app.page import Page
from lab.errors import LabError


def build(page: Page) -> None:
    context = page.context
    private = {"api_visibility": "private"}
    with gr.Tab("Plots", id="plots") as tab:
        with gr.Row():
            refresh = gr.Button("Draw again", min_width=100, elem_id="draw")
            png = gr.Button("Save as PNG", min_width=100, elem_id="save-png")
            svg = gr.Button("Save as SVG", min_width=100, elem_id="save-svg")
        saved = gr.File(label="Saved", visible=False, file_count="multiple", elem_id="saved-plots")
        pictures = gr.HTML("", elem_id="pictures", apply_default_css=False)

    def made(session) -> dict:
        session = context.check(session)
        grid, values = session.need(), session.alphas
        found = {
            "heatmap": charts.heatmap(values, grid),
            "by-layer": charts.by_layer(values, grid),
            "by-module": charts.by_module(values, grid),
        }
        try:
            view = context.jobs.find(session.job).view if session.job else {}
        except LabError:
            view = {}
        if len(view.get("drift", ())) > 1:
            found["drift"] = charts.drift(list(view["drift"]), view["grid"])
        return found

    @guarded
    def drawn(session):
        found = made(session)
        note = "" if "drift" in found else '<p class="dim">The drift shows here after a run of Learn.</p>'
        return f'<div class="charts">{"".join(charts.figure(chart) for chart in found.values())}</div>{note}'

    def saver(kind: str):
        @guarded
        def save(session):
            found = made(session)
            return gr.update(
                value=charts.files(list(found.values()), [f"alphas-{name}" for name in found], kind), visible=True
            )

        return save

    gr.on([tab.select, refresh.click], drawn, page.session, pictures, show_progress="hidden", **private)
    png.click(saver("png"), page.session, saved, **private)
    svg.click(saver("svg"), page.session, saved, **private)
