"""Compare: a prompt or a set of them, answered side by side."""

import random

import gradio as gr

from lab.app import charts, html
from lab.app.compare import CHAT, LETTERS, TEMPLATES, Question, compare, show, task_questions, wrap
from lab.app.context import AT_ONCE, MODEL, guarded
from lab.app.learning import TASKS
from lab.app.page import Page
from lab.app.sources import read_prompts
from lab.app.streaming import Decoding
from lab.app.votes import Vote, elo
from lab.errors import LabError

KINDS = ("One prompt", "Problems of a task", "A file")


def build(page: Page) -> None:
    context = page.context
    embedded = context.engine.source == "embedded"
    templates = [*TEMPLATES, *([CHAT] if context.engine.tokenizer.chat_template else [])]

    def example(task: str, number: int | None = None) -> tuple[str, str, str]:
        """(text, template, gold) of a test problem."""
        number = random.randrange(200) if number is None else number
        question = task_questions(task, context.preset, 1, number)[0]
        head, _, tail = TASKS[task].template.partition("{text}")
        label = next(label for label, text in TEMPLATES.items() if text == TASKS[task].template)
        return question.prompt.removeprefix(head).removesuffix(tail), label, question.gold

    text, template, gold = (
        example("hard_math_code", 1) if embedded else ("Write a function that adds two numbers.", "as typed", "")
    )
    with gr.Tab("Compare", id="compare"):
        kind = gr.Radio(KINDS, value=KINDS[0], show_label=False, container=False, elem_id="kind")
        with gr.Group() as one:
            prompt = gr.Textbox(text, label="Prompt", lines=3, max_lines=12, elem_id="prompt")
            with gr.Row():
                shape = gr.Dropdown(templates, value=template, label="Put to the model as", min_width=200)
                known = gr.Textbox(gold, label="Right answer, if known", min_width=130, elem_id="gold")
                task_one = gr.Dropdown(list(TASKS), value="hard_math_code", label="Examples from", min_width=140)
        with gr.Row() as example_row:
            another = gr.Button("Another example", min_width=110, size="sm", elem_id="another")
        with gr.Group(visible=False) as many:
            with gr.Row():
                task = gr.Dropdown(list(TASKS), value="hard_math_code", label="Task", min_width=190)
                count = gr.Number(20, label="Problems", precision=0, minimum=1, min_width=90)
                first = gr.Number(0, label="From number", precision=0, minimum=0, min_width=90)
        with gr.Group(visible=False) as filed:
            with gr.Row():
                file = gr.File(
                    label="Prompts: .txt (one per line) or .jsonl (prompt, and answer if known)",
                    file_types=[".txt", ".jsonl", ".json"],
                    height=110,
                )
                shape_file = gr.Dropdown(templates, value="as typed", label="Put to the model as")
        page.columns.render()
        with gr.Accordion("Decoding and showing", open=False):
            with gr.Row():
                tokens = gr.Number(110, label="New tokens", precision=0, minimum=1, maximum=4096, min_width=90)
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
        with gr.Row(visible=False) as booth:
            choice = gr.Radio([], label="Which answer is best?", elem_id="choice")
            vote = gr.Button("Vote and reveal", elem_id="vote", min_width=120)
        with gr.Accordion("Ratings from blind votes", open=False) as ratings_box:
            ratings = gr.HTML("", apply_default_css=False, elem_id="ratings")

    private = {"api_visibility": "private"}
    kind.change(
        lambda k: [gr.update(visible=k == name) for name in (*KINDS, KINDS[0])],
        kind,
        [one, many, filed, example_row],
        show_progress="hidden",
        **private,
    )
    another.click(guarded(lambda t: example(t)), task_one, [prompt, shape, known], show_progress="hidden", **private)

    @guarded
    def asked(
        session,
        kind,
        prompt,
        shape,
        gold,
        task,
        count,
        first,
        file,
        shape_file,
        columns,
        tokens,
        temperature,
        top_p,
        seed,
        run,
        against,
        blind,
    ):
        session = context.check(session)
        if kind == KINDS[0]:
            questions = [
                Question(
                    wrap(prompt, shape, context.engine.tokenizer),
                    gold.strip(),
                    TEMPLATES.get(shape) == TASKS["code"].template,
                )
            ]
        elif kind == KINDS[1]:
            questions = task_questions(task, context.preset, int(count or 0), int(first or 0))
        else:
            if not file:
                raise LabError("Choose a file of prompts first.")
            questions = [
                Question(wrap(text, shape_file, context.engine.tokenizer), gold) for text, gold in read_prompts(file)
            ]
        if blind and len(columns) < 2:
            raise LabError("A blind comparison needs at least two columns.")
        decoding = Decoding(int(tokens or 0), float(temperature), float(top_p), int(seed or 0))
        yield html.dim("waiting for a turn…"), gr.update(visible=False), gr.skip()
        state = None
        for state in compare(context.engine, session, questions, columns, decoding, run=run, blind=blind):
            yield show(state, against), gr.skip(), gr.skip()
        letters = [f"Answer {LETTERS[i]}" for i in range(len(state.columns))]
        booth_now = blind and len(questions) == 1 and state.done and not state.note
        yield (
            show(state, against),
            gr.update(visible=booth_now),
            gr.update(choices=[*letters, "none is better"], value=None),
        )

    inputs = [
        page.session,
        kind,
        prompt,
        shape,
        known,
        task,
        count,
        first,
        file,
        shape_file,
        page.columns,
        tokens,
        temperature,
        top_p,
        seed,
        run,
        page.against,
        blind,
    ]
    options = {"concurrency_id": MODEL, "concurrency_limit": AT_ONCE, "show_progress": "hidden", **private}
    gr.on([ask.click, prompt.submit], asked, inputs, [answers, booth, choice], trigger_mode="once", **options)

    def stopped(session):
        if session is not None:
            session.stop.set()

    stop.click(stopped, page.session, None, queue=False, **private)

    @guarded
    def marked(session, against):
        return show(session.run, against) if session is not None and session.run is not None else gr.skip()

    page.against.input(marked, [page.session, page.against], answers, show_progress="hidden", **private)

    @guarded
    def voted(session, choice):
        state = context.check(session).run
        if state is None or not state.blind or not state.done:
            raise LabError("There is nothing to vote on; ask a blind question first.")
        if state.voted is not None:
            raise LabError("You have voted on these answers already; ask again.")
        if not choice:
            raise LabError("Choose an answer first.")
        letters = [f"Answer {LETTERS[i]}" for i in range(len(state.order))]
        winner = state.players[state.order[letters.index(choice)]] if choice in letters else ""
        context.ballot.cast(Vote(state.questions[0].prompt, state.players, winner))
        state.voted = winner or "none"
        return show(state), gr.update(visible=False), rated()

    def rated() -> str:
        table = elo(context.ballot.votes())
        if table.empty:
            return html.dim("No votes yet. Tick “Blind, with a vote”, ask, and vote.")
        return charts.figure(charts.elo_chart(table)) + _ratings(table)

    vote.click(voted, [page.session, choice], [answers, booth, ratings], show_progress="hidden", **private)
    ratings_box.expand(rated, None, ratings, show_progress="hidden", **private)


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
