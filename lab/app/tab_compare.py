"""Compare: a prompt or a set of them, answered side by side."""

from html import escape

import gradio as gr

from lab.app import actions, charts, html
from lab.app.compare import AS_TYPED, shapes, show
from lab.app.frame import MODEL, PRIVATE, Page, guarded
from lab.app.votes import elo
from lab.errors import LabError

KINDS = ("One prompt", "Problems of a task", "A file")


def build(page: Page) -> None:
    context = page.context
    showcase, templates = context.showcase, shapes(context.showcase, context.engine.tokenizer)
    target, tasks = showcase.target, list(showcase.tasks)
    text, template, gold = "Write a function that adds two numbers.", AS_TYPED, ""
    if context.engine.source == showcase.base:
        text, template, gold = actions.example(context, target, 1)
    examples = showcase.examples(target) if showcase.examples else []
    sentences = [actions.example(context, target, i)[0] for i in range(len(examples))]
    with gr.Tab("Compare", id="compare"):
        example = gr.State([text, gold])  # whose gold stands there, as long as the text does
        kind = gr.Radio(KINDS, value=KINDS[0], show_label=False, container=False, elem_id="kind")
        with gr.Group() as one:
            prompt = gr.Textbox(text, label=showcase.says, lines=1 if sentences else 3, max_lines=12, elem_id="prompt")
            sentence = gr.Dropdown(
                sentences, value=text if sentences else None, label="Examples", visible=bool(sentences), elem_id="sentence"
            )
            with gr.Row():
                shape = gr.Dropdown(templates, value=template, label="Put to the model as", min_width=200)
                known = gr.Textbox(gold, label="Right answer, if known", min_width=130, elem_id="gold")
                task_one = gr.Dropdown(tasks, value=target, label="Examples from", min_width=140, visible=not sentences)
            reads = gr.HTML(_reads(context, text, template), apply_default_css=False, elem_id="reads")
        with gr.Row(visible=not sentences) as example_row:
            another = gr.Button("Another example", min_width=110, size="sm", elem_id="another")
        with gr.Group(visible=False) as many:
            with gr.Row():
                task = gr.Dropdown(tasks, value=target, label="Task", min_width=190)
                count = gr.Number(20, label="Problems", precision=0, minimum=1, min_width=90, elem_id="problems")
                first = gr.Number(0, label="From number", precision=0, minimum=0, min_width=90)
        with gr.Group(visible=False) as filed:
            with gr.Row():
                file = gr.File(
                    label="Prompts: .txt (one per line), .jsonl or .csv (prompt, and answer if known)",
                    file_types=[".txt", ".jsonl", ".json", ".csv"],
                    height=110,
                    elem_id="prompts-file",
                )
                first_of = gr.Number(20, label="Ask the first", precision=0, minimum=1, min_width=90, elem_id="first-of")
                shape_file = gr.Dropdown(templates, value=AS_TYPED, label="Put to the model as")
            length = gr.HTML("", elem_id="prompts-length", apply_default_css=False)
        page.columns.render()
        with gr.Accordion("Decoding and showing", open=False):
            with gr.Row():
                tokens = gr.Number(showcase.new_tokens, label="New tokens", precision=0, minimum=1, maximum=4096, min_width=90)
                temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: greedy)", min_width=150)
                top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", min_width=120)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
            with gr.Row():
                run = gr.Checkbox(True, label="Run programs in the sandbox and judge answers", min_width=240)
                page.against.render()
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=120, scale=2)
            stop = gr.Button("Stop", elem_id="stop", min_width=80)
            blind = gr.Checkbox(False, label="Blind, with a vote", min_width=180, elem_id="blind", container=False)
        answers = gr.HTML("", elem_id="answers", apply_default_css=False)
        with gr.Row(visible=False, elem_id="keeping") as keeping:
            name = gr.Textbox("", label="Save this comparison as", placeholder="ties against cat", min_width=180, elem_id="comparison-name")
            save = gr.Button("Save this comparison", elem_id="save-comparison", min_width=150)
        saved_files = gr.File(
            label="Answers (JSONL), table (CSV, LaTeX, Markdown), chart (PNG, SVG)", visible=False, file_count="multiple",
            elem_id="comparison-files",
        )  # fmt: skip
        with gr.Row(visible=False) as booth:
            choice = gr.Radio([], label="Which answer is best?", elem_id="choice")
            vote = gr.Button("Vote and reveal", elem_id="vote", min_width=120)
        with gr.Accordion("Ratings from blind votes", open=False) as ratings_box:
            ratings = gr.HTML("", apply_default_css=False, elem_id="ratings")

    page.form |= {"example": example, "kind": kind, "prompt": prompt, "shape": shape, "gold": known, "task": task, "count": count, "first": first}
    places = [one, many, filed, *([] if sentences else [example_row])]
    kind.change(lambda k: [gr.update(visible=k == name) for name in (*KINDS, KINDS[0])][: len(places)], kind, places, **PRIVATE)
    latest = {"trigger_mode": "always_last", **PRIVATE}
    edits = [prompt.change, shape.change]
    gr.on(edits, lambda *asked: _reads(context, *asked), [prompt, shape], reads, **latest)
    if sentences:  # the answer is known for the examples only

        def recognised(prompt, shape):
            gold = actions.known_answer(context, prompt, shape)
            return gold, [prompt, gold]

        sentence.input(lambda text: text, sentence, prompt, **PRIVATE)
        gr.on(edits, recognised, [prompt, shape], [known, example], **latest)

    def exemplified(session, task):
        text, template, gold = actions.example(context, task)
        return text, template, gold, [text, gold]

    def edited(session, kind, prompt, shape, gold, example, against):
        if kind != KINDS[0]:
            return gr.skip(), gr.skip()
        left, news = actions.edited(context, session, prompt, shape, gold, example)
        return left if left != gold else gr.skip(), show(session.run, against) if news else gr.skip()

    page.on(another.click, exemplified, [task_one], [prompt, shape, known, example])

    def counted(session, file):
        return html.dim(actions.file_length(session, file)) if file else ""

    page.on(file.change, counted, [file], length)

    def questions(kind, prompt, shape, gold, task, count, first, file, shape_file, first_of) -> list:
        if kind == KINDS[0]:
            return [actions.question(context, prompt, shape, gold)]
        if kind == KINDS[1]:
            return actions.problems(context, task, int(count or 0), int(first or 0))
        if not file:
            raise LabError("Choose a file of prompts first.")
        return actions.file_questions(context, file, shape_file, int(first_of or 0))

    what = [kind, prompt, shape, known, task, count, first, file, shape_file, first_of]

    def asked(session, columns, tokens, temperature, top_p, seed, run, against, blind, *what):
        found = questions(*what)
        growing = actions.answers(
            context, session, found, columns, tokens, temperature, top_p, seed, run=run, blind=blind
        )
        yield html.dim("waiting for a turn…"), gr.update(visible=False), gr.skip(), gr.update(visible=False), gr.update(visible=False)
        state = None
        for state in growing:
            yield show(state, against), *[gr.skip()] * 4
        yield *[gr.skip()] * 3, gr.update(visible=True), gr.skip()
        if not blind or state.note:
            return
        if len(state.ballot) < 2:
            state.voted, state.note = "none", "All answers are the same, so there is nothing to vote on."
            yield show(state, against), *[gr.skip()] * 4
        else:
            choices = gr.update(choices=[*state.ballot, "none is better"], value=None)
            yield show(state, against), gr.update(visible=True), choices, gr.skip(), gr.skip()

    settings = [page.columns, tokens, temperature, top_p, seed, run, page.against, blind]
    page.on(
        [ask.click, prompt.submit], asked, [*settings, *what], [answers, booth, choice, keeping, saved_files],
        trigger_mode="once", **MODEL,
    )  # fmt: skip

    def kept(session, name):
        files, told = actions.save_comparison(context, session, name)
        gr.Info(told)
        return gr.update(value=files, visible=True)

    page.on([save.click, name.submit], kept, [name], saved_files, show_progress="full")

    def stopped(session):
        if session is not None:
            session.stop.set()

    stop.click(stopped, page.session, None, queue=False, api_visibility="private")

    def marked(session, against):
        return show(session.run, against) if session.run is not None else gr.skip()

    page.on(page.against.input, marked, [page.against], answers)
    editing = ([kind, prompt, shape, known, example, page.against], [known, answers])
    page.on([prompt.change, shape.change, known.change], edited, *editing, trigger_mode="always_last", queue=False)

    def rated() -> str:
        votes, damaged = context.ballot.votes()
        lost = html.items([("bad", f"{context.ballot.file.name}, line {n}: damaged, not counted.") for n in damaged])
        table = elo(votes)
        if table.empty:
            return html.dim("No votes yet. Tick “Blind, with a vote”, ask, and vote.") + lost
        return charts.figure(charts.elo_chart(table)) + _ratings(table) + lost

    def voted(session, choice):
        return show(actions.vote(context, session, choice)), gr.update(visible=False), rated()

    page.on(vote.click, voted, [choice], [answers, booth, ratings])
    ratings_box.expand(guarded(rated), None, ratings, **PRIVATE)


def _reads(context, prompt: str, shape: str) -> str:
    """What the model reads of what a visitor types, to be unfolded."""
    try:
        text = actions.seen_prompt(context, prompt, shape)
    except LabError as error:  # told where the question is asked
        text = str(error)
    return f'<details class="reads"><summary>What the model reads</summary><pre class="prompt">{escape(text)}</pre></details>'


def _ratings(table) -> str:
    """low and high are NaN where all votes are on one question."""
    return html.table(
        ["Elo", "95 %", "wins", "ties", "losses"],
        [
            (
                name,
                [
                    f"{row.rating:.0f}",
                    f"{row.low:.0f} to {row.high:.0f}" if row.low == row.low else "needs votes on two prompts",
                    *(f"{row[column]:.0f}" for column in ("wins", "ties", "losses")),
                ],
            )
            for name, row in table.iterrows()
        ],
        "Pairs of answers that votes have compared; intervals from resampling prompts",
    )
