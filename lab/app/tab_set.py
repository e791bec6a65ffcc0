"""Set: alphas by text, by curves and by presets; links; other methods as columns."""

import gradio as gr

from lab.merging.alphas import CURVES
from lab.app.context import AT_ONCE, IN_LINE, MODEL, guarded
from lab.app.controls import control, read_rank, read_weights, values_of
from lab.app.page import Page
from lab.merging import METHODS, schema

PRESETS = {
    "everything at 1 (task arithmetic)": lambda first, others: [f"{s}: 1" for s in (first, *others)],
    "everything at 0.8": lambda first, others: [f"{s}: 0.8" for s in (first, *others)],
    "equal share": lambda first, others: [f"{s}: {1 / (1 + len(others)):.4f}" for s in (first, *others)],
    "first skill early, others late": lambda first, others: [
        f"{first}: early 0.2 1",
        *(f"{s}: late 0.2 1" for s in others),
    ],
    "first skill attention, others MLP": lambda first, others: [
        *(f"{s}: 0.2" for s in (first, *others)),
        f"{first} attn: 1",
        *(f"{s} mlp: 1" for s in others),
    ],
    "everything off": lambda first, others: [f"{s}: 0" for s in (first, *others)],
}
_LINK = """(text) => {
  const link = new URL(window.location.href);
  link.search = ''; link.hash = '';
  link.searchParams.set('alphas', text);
  if (navigator.clipboard) navigator.clipboard.writeText(link.toString()).catch(() => {});
  return link.toString();
}"""


def preset_text(name: str, skills: tuple[str, ...]) -> str:
    """The rules of a preset for these skills."""
    return "\n".join(PRESETS[name](skills[0], skills[1:]))


def build(page: Page) -> None:
    context = page.context
    private = {"api_visibility": "private", "show_progress": "hidden"}
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
                    preset = gr.Dropdown(list(PRESETS), value="everything at 1 (task arithmetic)", label="Preset")
                    use = gr.Button("Apply the preset", elem_id="apply-preset")
        gr.Markdown(
            "### Other methods\nA method's merge (or router) becomes a column of Compare, and can be taken home. "
            "Methods that learn are in the tab Learn."
        )
        static = sorted(name for name, m in METHODS.items() if m.recipe is None)
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
            with gr.Row():
                made = [control(p) for p in chosen]
            add = gr.Button(f"Add {name} as a column", elem_id="add-method")

            @guarded
            def added(session, columns, weights, rank, *values):
                session = context.check(session)
                given = values_of(chosen, values)
                told = ", ".join(
                    f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in given.items()
                    if value != next(p for p in chosen if p.name == key).default
                )
                k = len(session.adapters)
                found = session.make(name, given, read_weights(weights, k), read_rank(rank))
                label = session.add(f"{name} ({told})" if told else name, found)
                gr.Info(f"{label} is a column of Compare now.")
                return page.views(session, [*columns, label])

            add.click(
                added,
                [page.session, page.columns, weights, rank, *made],
                page.shared,
                concurrency_id=MODEL,
                concurrency_limit=AT_ONCE,
                api_visibility="private",
            )

        remove = gr.Button("Remove the columns of other methods", min_width=120, size="sm", elem_id="remove-columns")

    @guarded
    def applied(session, text):
        context.check(session).set_text(text)
        return page.views(session)

    @guarded
    def drawn(session, skill, curve, low, high, seed):
        grid = context.check(session).need()
        skills = grid.skills if skill == "every skill" else (skill,)
        low, high = (0 if low is None else low), (1 if high is None else high)
        if curve == "complement":
            first = (
                next((s for s in grid.skills if s != skill), grid.skills[0])
                if skill != "every skill"
                else grid.skills[0]
            )
            rules = [
                f"{s}: complement {first}" for s in grid.skills if s != first and (skill == "every skill" or s == skill)
            ]
        elif curve == "flat":
            rules = [f"{s}: flat {low}" for s in skills]
        elif curve == "random":
            rules = [f"{s}: random {low} {high} seed {int(seed or 0)}" for s in skills]
        else:
            rules = [f"{s}: {curve} {low} {high}" for s in skills]
        session.set_text("\n".join(rules))
        gr.Info("Applied: " + "; ".join(rules))
        return page.views(session)

    @guarded
    def preset_used(session, name):
        session = context.check(session)
        session.set_text(preset_text(name, session.need().skills))
        return page.views(session)

    @guarded
    def removed(session, columns):
        session = context.check(session)
        session.others = {}
        context.tidy()
        return page.views(session, [c for c in columns if c in session.columns])

    apply.click(applied, [page.session, page.text], page.shared, **IN_LINE, **private)
    draw.click(drawn, [page.session, page.skill, curve, low, high, seed], page.shared, **IN_LINE, **private)
    use.click(preset_used, [page.session, preset], page.shared, **IN_LINE, **private)
    share.click(None, page.text, link, js=_LINK, api_visibility="private")
    remove.click(removed, [page.session, page.columns], page.shared, **private)
