"""The main actions for programs: named endpoints, each with a session of its own per gradio_client.Client."""

import json

import gradio as gr
import pandas as pd

from lab.app import takehome
from lab.app.compare import TEMPLATES, Question, compare, wrap
from lab.app.context import AT_ONCE, IN_LINE, MODEL, guarded
from lab.app.learning import learn_job, skills_material, target_material, weigh
from lab.app.page import Page
from lab.app.session import Session
from lab.app.sources import open_adapter, open_uploads
from lab.app.streaming import Decoding
from lab.app.tab_results import board, sections
from lab.errors import LabError
from lab.export.report import report as report_on
from lab.merging import METHODS, get_method


def build(page: Page) -> None:
    context = page.context

    def ready(session: Session | None) -> Session:
        return context.check(session if session is not None else context.session())

    model = {"concurrency_id": MODEL, "concurrency_limit": AT_ONCE}

    def endpoint(function, inputs: list, outputs: list, **options) -> None:
        """`function(session, *inputs)` gives outputs; the session goes along unseen."""
        name = function.__name__
        hidden = gr.Button(visible=False)
        hidden.click(
            guarded(function),
            [page.session, *inputs],
            [page.session, *outputs],
            api_name=name,
            api_description=function.__doc__,
            show_progress="hidden",
            **options,
        )

    def state(session: Session) -> dict:
        return {
            "base": context.base_name,
            "skills": list(session.need().skills),
            "columns": session.columns,
            "alphas": session.text,
        }

    def text(label: str, value: str = "") -> gr.Textbox:
        return gr.Textbox(value, label=label, visible=False)

    def number(label: str, value: float) -> gr.Number:
        return gr.Number(value, label=label, visible=False)

    def data(label: str, value=None) -> gr.JSON:
        return gr.JSON(value, label=label, visible=False)

    def load_adapter(session, source, replace):
        """Read an adapter (folder or Hub id) and use it with the others, or in place of the one named in `replace`."""
        session = ready(session)
        adapter = open_adapter(source, context.access, taken=[a.name for a in session.adapters if a.name != replace])
        kept = [a for a in session.adapters if a.name != replace]
        session.take([*kept, adapter], context.engine.model, context.engine.source)
        session.sources[adapter.name] = source
        context.tidy()
        return session, state(session)

    def upload_adapters(session, files, alone):
        """Use uploaded adapters (a zip each, or the two files of one): with the others, or (alone) instead of them."""
        session = ready(session)
        kept = [] if alone else list(session.adapters)
        new = open_uploads(files or [], taken=[a.name for a in kept])
        session.take([*kept, *new], context.engine.model, context.engine.source)
        context.tidy()
        return session, state(session)

    def report(session):
        """What fits among the loaded adapters, and which methods are open to them."""
        session = ready(session)
        facts = report_on(session.adapters, context.engine.model)
        return session, {
            "ok": facts.ok,
            "fits": list(facts.fits),
            "problems": list(facts.problems),
            "text": facts.text(),
            "methods": [m.name for m in facts.methods if m.open],
        }

    def set_alphas(session, rules):
        """Apply rules such as `maths layers 0-2 q,v: 0.3`; gives all alphas as text."""
        session = ready(session)
        session.set_text(rules)
        return session, session.text

    def undo(session):
        """Take the last change of the alphas back."""
        session = ready(session)
        session.undo()
        return session, session.text

    def add_method(session, method, parameters, weights):
        """Merge by any method that learns nothing (or route by it); gives the name of its column."""
        session = ready(session)
        if not isinstance(parameters or {}, dict):
            raise LabError('parameters is a JSON object, such as {"density": 0.3}.')
        return session, session.add(method, session.make(method, parameters or {}, weights or None))

    def ask(session, prompt, columns, template, gold, max_new_tokens, temperature, top_p, seed):
        """Answers side by side, streamed: column -> text, tokens, tokens_per_second, done, verdict, value."""
        session = ready(session)
        columns = [c for c in columns.split(",") if c.strip()] if isinstance(columns, str) else list(columns or [])
        columns = [c.strip() for c in columns] or ["base", *session.need().skills, "merge"]
        question = Question(wrap(prompt, template, context.engine.tokenizer), gold, template == next(iter(TEMPLATES)))
        decoding = Decoding(int(max_new_tokens), float(temperature), float(top_p), int(seed))
        for now in compare(context.engine, session, [question], columns, decoding):
            yield (
                session,
                {
                    column: {
                        "text": answer.text,
                        "tokens": answer.tokens,
                        "tokens_per_second": round(answer.speed, 1),
                        "done": answer.done,
                        "verdict": verdict.reason if verdict else None,
                        "value": value,
                    }
                    for column, answer, verdict, value in zip(
                        now.columns, now.answers[0], now.verdicts[0], now.values[0], strict=True
                    )
                },
            )

    def learn(session, method, parameters, rows, steps, learning_rate, batch_size, seed):
        """Start learning on the skills' calibration data (a search: on examples of the target); gives the job's id."""
        session = ready(session)
        skills = session.need().skills
        recipe = get_method(method).recipe
        if recipe is not None and recipe.data == "target":
            material = target_material(context.engine, context.preset, recipe.rows)
        else:
            material = skills_material(context.engine, context.preset, skills, int(rows), int(seed))
        work = learn_job(
            context.engine,
            session.adapters,
            material,
            method=method,
            parameters=parameters or {},
            steps=int(steps),
            learning_rate=float(learning_rate),
            batch_size=int(batch_size),
            seed=int(seed),
        )
        session.job = context.jobs.submit("learn", work).id
        return session, session.job

    def learn_status(session, job):
        """State, progress, losses and seconds left of a job."""
        found = context.jobs.find(job)
        losses = [round(x, 5) for x in found.view.get("losses", ())]
        return session, {
            "state": found.state,
            "progress": found.progress,
            "place": context.jobs.place(found),
            "losses": losses,
            "seconds_left": found.seconds_left,
            "message": found.message,
            "held_out": found.result.held_out if found.result is not None else None,
        }

    def learn_stop(session, job):
        """End a job after its present step; what it has is kept."""
        found = context.jobs.find(job)
        context.jobs.stop(found)
        return session, found.state

    def learn_use(session, job):
        """Set the alphas that a job has learned; gives them as text."""
        session, found = ready(session), context.jobs.find(job)
        if found.result is None:
            raise LabError("That job has no result (yet).")
        if found.result.alphas is None or not found.result.grid.equals(session.need()):
            raise LabError("That job's result is no table of alphas for these adapters.")
        session.set(found.result.alphas)
        return session, session.text

    def learn_column(session, job):
        """Add what a job has learned, an adapter or a router, as a column; gives its name."""
        session, found = ready(session), context.jobs.find(job)
        if found.result is None:
            raise LabError("That job has no result (yet).")
        learned = found.result.result(session.adapters)
        return session, session.add(f"learned {learned.recipe['method']}", learned)

    def delta_nll(session, columns, rows, seed):
        """Loss of columns on each skill's held-out rows, nats per token: column -> skill -> loss."""
        session = ready(session)
        held = skills_material(context.engine, context.preset, session.need().skills, int(rows), int(seed)).held
        return session, weigh(context.engine, session, columns or ["base", *session.grid.skills, "merge"], held)

    def export(session, column, dtype, folded):
        """A column as the zip of a PEFT folder, or (folded) of the whole model."""
        session = ready(session)
        return session, str(takehome.as_zip(context.engine, session, column, dtype=dtype, folded=bool(folded)))

    def recipe(session, column):
        """The recipe of a column."""
        session = ready(session)
        return session, json.loads(takehome.recipe_text(session, column))

    def use_recipe(session, recipe):
        """Set what a recipe says; gives what was done."""
        session = ready(session)
        return session, takehome.apply_recipe(session, takehome.read_recipe(json.dumps(recipe)))

    def commands(session, column):
        """Shell commands that make a column again."""
        session = ready(session)
        return session, takehome.commands(session, column, context.base_name)

    def methods(session):
        """Every method: kind, source, formula, parameters."""
        return session, [
            {
                "name": m.name,
                "kind": m.kind,
                "learned": m.recipe is not None,
                "source": m.paper,
                "formula": m.formula,
                "parameters": {p.name: p.default for p in m.parameters},
            }
            for m in METHODS.values()
        ]

    def results(session, section):
        """The leaderboards: section -> rows; with a name only that one."""
        tables: dict[str, pd.DataFrame] = {}
        for name, records in sections(context).items():
            if section in ("", name):
                tables[name] = board(records)[1]
        return session, {name: table.reset_index(names="method").to_dict("records") for name, table in tables.items()}

    column, job = lambda: text("column", "merge"), lambda: text("job")
    out, words = lambda: data("result"), lambda: text("result")
    with gr.Column(visible=False):
        endpoint(load_adapter, [text("source"), text("replace")], [out()], **model)
        endpoint(
            upload_adapters,
            [
                gr.File(label="files", file_count="multiple", visible=False),
                gr.Checkbox(False, label="alone", visible=False),
            ],
            [out()],
            **model,
        )
        endpoint(report, [], [out()])
        endpoint(set_alphas, [text("rules")], [words()], **IN_LINE)
        endpoint(undo, [], [words()], **IN_LINE)
        endpoint(add_method, [text("method", "ties"), data("parameters", {}), data("weights", [])], [words()], **model)
        endpoint(
            ask,
            [
                text("prompt"),
                data("columns", []),
                text("template", next(iter(TEMPLATES))),
                text("gold"),
                number("max_new_tokens", 110),
                number("temperature", 0),
                number("top_p", 1),
                number("seed", 0),
            ],
            [out()],
            **model,
        )
        endpoint(
            learn,
            [
                text("method", "cat"),
                data("parameters", {"parametrisation": "free"}),
                number("rows", 100),
                number("steps", 40),
                number("learning_rate", 0.1),
                number("batch_size", 8),
                number("seed", 0),
            ],
            [words()],
            **model,
        )
        endpoint(learn_status, [job()], [out()], queue=False)
        endpoint(learn_stop, [job()], [words()], queue=False)
        endpoint(learn_use, [job()], [words()], **IN_LINE)
        endpoint(learn_column, [job()], [words()], **model)
        endpoint(delta_nll, [data("columns", []), number("rows", 100), number("seed", 0)], [out()], **model)
        endpoint(
            export,
            [column(), text("dtype", "float32"), gr.Checkbox(False, label="folded", visible=False)],
            [gr.File(label="file", visible=False)],
            **model,
        )
        endpoint(recipe, [column()], [out()])
        endpoint(use_recipe, [data("recipe")], [words()], **IN_LINE)
        endpoint(commands, [column()], [words()])
        endpoint(methods, [], [out()])
        endpoint(results, [text("section")], [out()])
