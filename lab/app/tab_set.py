"""Set: alphas by text, by curves and by presets; links; other methods as columns."""

import gradio as gr

from lab.app import actions
from lab.app.controls import control, read_rank, read_weights, values_of
from lab.app.frame import IN_LINE, MODEL, Page
from lab.merging import METHODS, schema
from lab.merging.alphas import CURVES

_LINK = """(text) => {
  const link = new URL(window.location.href);
  link.search = ''; link.hash = '';
  link.searchParams.set('alphas', text);
  if (navigator.clipboard) navigator.clipboard.writeText(link.toString()).catch(() => {});
  return link.toString();
}"""


def build(page: Page) -> None:
    context = page.context
    with gr.Tab("Set", id="set"):
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                page.text.render()
                with gr.Row():
                    apply = gr.Button("Apply the text", variant="primary", elem_id="apply-rules", min_width=120)
                    share = gr.Button("Make a link", elem_id="share", min_width=100)
                link = gr.Textbox(
                    label="Link to these alphas",
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                    lines=1,
                    max_lines=3,
                )
            with gr.Column(min_width=300):
                with gr.Group():
                    with gr.Row():
                        page.skill.render()
                        curve = gr.Dropdown(
                            [*CURVES, "random", "complement"], value="ramp", label="Curve over depth", min_width=120
                        )
                    with gr.Row():
                        low = gr.Number(0.2, label="Low (or flat)", min_width=80)
                        high = gr.Number(1.0, label="High", min_width=80)
                        seed = gr.Number(0, label="Seed", precision=0, min_width=70)
                    draw = gr.Button("Apply the curve", elem_id="apply-curve")
                with gr.Group():
                    preset = gr.Dropdown(list(actions.PRESETS), value="everything at 1 (task arithmetic)", label="Preset")
                    use = gr.Button("Apply the preset", elem_id="apply-preset")
        gr.Markdown(
            "### Other methods\nA method's merge (or router) becomes a column of Compare, and can be taken home. "
            "Methods that learn are in the tab Learn."
        )
        static = sorted(((m.label, name) for name, m in METHODS.items() if m.recipe is None), key=lambda one: one[0].lower())
        with gr.Row():
            method = gr.Dropdown(static, value="ties", label="Method", min_width=160, elem_id="method")
            weights = gr.Textbox(
                "",
                label="Weights, one per skill (empty: the method's)",
                min_width=160,
                placeholder="0.7 0.3",
                interactive=True,  # only a rendered event reads it
            )
            rank = gr.Textbox("", label="Cut to rank (empty: no)", placeholder="none", min_width=110, interactive=True)

        @gr.render(inputs=method)
        def parameters(name):
            chosen = schema(name)
            gr.Markdown(f"{METHODS[name].summary} `{METHODS[name].formula}` ([source]({METHODS[name].paper}))")
            with gr.Row(elem_id="set-parameters", elem_classes=[f"of-{name}"]):
                made = [control(p) for p in chosen]
            title = METHODS[name].label
            add = gr.Button(f"Add {title} as a column", elem_id="add-method")

            def added(session, columns, weights, rank, *values):
                given = values_of(chosen, values)
                told = ", ".join(
                    f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in given.items()
                    if value != next(p for p in chosen if p.name == key).default
                )
                found = actions.add_method(
                    context,
                    session,
                    name,
                    given,
                    read_weights(weights, len(session.adapters)),
                    rank=read_rank(rank),
                    label=f"{title} ({told})" if told else title,
                )
                gr.Info(f"{found} is a column of Compare now.")
                return page.views(session, [*columns, found])

            inputs = [page.columns, weights, rank, *made]
            page.on(add.click, added, inputs, page.shared, **MODEL, show_progress="full")

        with gr.Row():
            several = gr.Dropdown(
                static, multiselect=True, label="Several at once, each as it is", min_width=260, elem_id="several-methods", max_choices=12
            )
            add_all = gr.Button("Add these methods", min_width=120, elem_id="add-methods")

        remove = gr.Button("Remove the columns of other methods", min_width=120, size="sm", elem_id="remove-columns")

    def drawn(session, *settings):
        rules = actions.curve_rules(session.need().skills, *settings)
        session.set_text("\n".join(rules))
        gr.Info("Applied: " + "; ".join(rules))
        return page.views(session)

    def removed(session, columns):
        actions.remove_columns(context, session)
        return page.views(session, [c for c in columns if c in session.columns])

    def added_all(session, columns, methods):
        found, refused = actions.add_methods(context, session, methods)
        if found:
            gr.Info(f"{', '.join(found)}: columns of Compare now.")
        for told in refused:
            gr.Warning(told, duration=12)
        return [*page.views(session, [*columns, *found]), []]

    page.on(add_all.click, added_all, [page.columns, several], [*page.shared, several], **MODEL, show_progress="full")
    page.change(apply.click, actions.set_alphas, [page.text])
    page.on(draw.click, drawn, [page.skill, curve, low, high, seed], page.shared, **IN_LINE)
    page.change(use.click, actions.use_preset, [preset])
    share.click(None, page.text, link, js=_LINK, api_visibility="private")
    page.on(remove.click, removed, [page.columns], page.shared)
