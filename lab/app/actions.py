"""What people and programs can do: plain functions of (context, session, plain values). Tabs and endpoints only wire them.

An action of `lab.app.endpoints` is a program's endpoint as it stands: its parameters with their types and defaults are the
endpoint's, what comes after `*` is for the page alone, and its docstring is what programs read.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lab.app import charts, comparisons, takehome
from lab.app.compare import QUESTIONS, Comparison, Question, compare, of_example, task_questions, wrap
from lab.app.context import Context
from lab.app.jobs import Job
from lab.app.learning import (
    Material,
    Outcome,
    layers_job,
    learn_job,
    own_material,
    skills_material,
    target_material,
    weigh,
)  # fmt: skip
from lab.app.session import Session
from lab.app.sources import check_hub, open_adapter, open_uploads, read_pairs, read_prompts
from lab.app.streaming import Decoding
from lab.app.votes import Vote
from lab.errors import LabError
from lab.evaluation import statistics
from lab.evaluation.sandbox import run_programs
from lab.evaluation.scorers import Verdict, extract_program, score_final_number, score_program
from lab.experiments.candidates import describe
from lab.experiments.presets import preset_for
from lab.experiments.section import title_of
from lab.export.report import SetReport, on_one_base
from lab.export.report import report as report_on
from lab.lora.adapter import LoraAdapter
from lab.lora.base import same_base
from lab.lora.compatibility import compatibility_problems
from lab.merging import METHODS, get_method
from lab.pages.figures import Chart, method_bars
from lab.records import tables
from lab.records.record import read_records, skill_names
from lab.tasks import Example, prompts

OWN_ROWS = 20_000  # read of a file
ALL = "all that are loaded"
# Free alphas solve far more in the embedded world than the released code's softmax.
FIRST = "cat_free"


# Adapters


def read_source(context: Context, session: Session, source: str, place: str = "") -> list[LoraAdapter]:
    """The adapter of a folder or Hub id; it may take the name of the one in whose place it comes. Raises LabError."""
    adapter = open_adapter(source, context.access, taken=_staying(session, place))
    session.sources[adapter.name] = source.strip()
    return [adapter]


def _staying(session: Session, place: str) -> list[str]:
    """The names that are taken when an adapter comes in that place."""
    return [] if place == ALL else [a.name for a in session.adapters if a.name != place]


def read_uploads(
    session: Session, files: Sequence[str | Path] | None, place: str = "", alone: bool = False
) -> list[LoraAdapter]:
    """The adapters of uploaded files, named unlike those that stay: all but the one in whose place they come. Raises LabError."""
    found = open_uploads(files or [], taken=[] if alone else _staying(session, place))
    for adapter in found:
        session.sources.pop(adapter.name, None)  # of another that was called so
    return found


def put(
    context: Context, session: Session, new: Sequence[LoraAdapter], place: str = "", trusted: bool = False
) -> list[LoraAdapter]:
    """The loaded adapters with these among them, in place of the one named (or of ALL). trusted: they are for this base, whatever
    name they give it. Raises LabError where it can be seen that they are not."""
    base = context.engine.source
    if trusted:
        new = [replace(adapter, base=base) for adapter in on_one_base(new, base)]
    elif context.access.roots is None:  # the place of a base that a visitor's adapter names is not looked at
        new = [replace(a, base=base) if a.base not in ("", base) and same_base(a.base, base) else a for a in new]
    names = [a.name for a in session.adapters]
    at = names.index(place) if place in names else len(names)
    return [*new] if place == ALL else [*session.adapters[:at], *new, *session.adapters[at + 1 :]]


def use(context: Context, session: Session, adapters: Sequence[LoraAdapter]) -> None:
    """Work with these. Raises LabError, and changes nothing, when they do not fit together."""
    session.take(adapters, context.engine.model, context.engine.source)
    context.tidy()


def stage(context: Context, session: Session, adapters: Sequence[LoraAdapter]) -> SetReport:
    """Work with these when they fit, else go on with those before; what fits and what does not."""
    facts = report_on(adapters, context.engine.model)
    session.refused = ()
    if facts.ok and adapters:
        use(context, session, adapters)
    return facts


def refuse(context: Context, session: Session, new: Sequence[LoraAdapter], place: str) -> bool:
    """Hold adapters that did not fit, when they would if they were for this base (`mend`); whether they would."""
    try:
        would = bool(new) and not compatibility_problems(put(context, session, new, place, trusted=True), context.engine.model)
    except LabError:
        would = False
    session.refused = (tuple(new), place) if would else ()
    return would


def mend(context: Context, session: Session) -> list[LoraAdapter]:
    """The loaded adapters with those that were refused among them, as ones for this base. Raises LabError."""
    if not session.refused:
        raise LabError("Nothing waits to be used; load an adapter.")
    return put(context, session, *session.refused, trusted=True)


def take_out(session: Session, name: str) -> list[LoraAdapter]:
    """The loaded adapters without this one. Raises LabError for an unknown or the last one."""
    left = [a for a in session.adapters if a.name != name]
    if len(left) == len(session.adapters):
        raise LabError("Choose an adapter to take out.")
    if not left:
        raise LabError("That is the last adapter; load another first.")
    return left


def exchange_base(context: Context, session: Session, source: str) -> str:
    """Another base for everybody; what is there now. Raises LabError where it cannot be read, or while a run goes on."""
    if context.access.roots is not None:
        raise LabError("This page is shared; only its owner chooses the base.")
    source = source.strip() or "embedded"
    if not Path(source).expanduser().exists() and source.count("/") == 1:
        check_hub(source, "config.json")
    if context.jobs.busy:
        raise LabError("A run is going on in Learn; stop it, or wait until it ends, before the base is exchanged.")
    context.engine.load(source)
    context.preset = preset_for(source, dtype=context.engine.dtype, chat=context.engine.chat)
    fresh, line = context.arrive(session.key)
    session.__dict__.update(fresh.__dict__)
    return line or f"The base is {source} now."


def start_fresh(context: Context, session: Session) -> None:
    """Begin anew as a first visitor; what was kept can be brought back."""
    context.workspaces.put_away(session)
    session.__dict__.update(replace(context.session(), key=session.key).__dict__)
    context.tidy()


def bring_back(context: Context, session: Session) -> str:
    """Undo `start_fresh`; a line that says what is here again. Raises LabError where there is nothing."""
    context.workspaces.bring_back(session)
    fresh, line = context.arrive(session.key)
    session.__dict__.update(fresh.__dict__)
    context.tidy()
    return line


def state(context: Context, session: Session) -> dict:
    """What is loaded and set."""
    skills = list(session.need().skills)
    return {"base": context.base_name, "skills": skills, "columns": session.columns, "alphas": session.text}


def load_adapter(context: Context, session: Session, source: str = "", replace: str = "") -> dict:
    """Read an adapter (folder or Hub id) and use it with the others, or in place of the one named in `replace`."""
    use(context, session, put(context, session, read_source(context, session, source, replace), replace))
    return state(context, session)


def upload_adapters(context: Context, session: Session, files: list[Path], alone: bool = False) -> dict:
    """Use uploaded adapters (a zip each, or the two files of one): with the others, or (alone) instead of them."""
    new = read_uploads(session, files, alone=alone)
    use(context, session, new if alone else put(context, session, new))
    return state(context, session)


def report(context: Context, session: Session) -> dict:
    """What fits among the loaded adapters, and which methods are open to them."""
    facts = report_on(session.adapters, context.engine.model)
    return {
        "ok": facts.ok,
        "fits": list(facts.fits),
        "problems": list(facts.problems),
        "text": facts.text(),
        "methods": [m.name for m in facts.methods if m.open],
    }


# Alphas and other methods

PRESETS = {  # rules for the first skill, and for each of the others
    "everything at 1 (task arithmetic)": ("{}: 1", "{}: 1"),
    "everything at 0.8": ("{}: 0.8", "{}: 0.8"),
    "equal share": ("{}: {share:.4f}", "{}: {share:.4f}"),
    "first skill early, others late": ("{}: early 0.2 1", "{}: late 0.2 1"),
    "first skill attention, others MLP": ("{0}: 0.2; {0} attn: 1", "{0}: 0.2; {0} mlp: 1"),
    "everything off": ("{}: 0", "{}: 0"),
}


def set_alphas(context: Context, session: Session, rules: str = "") -> str:
    """Apply rules such as `maths layers 0-2 q,v: 0.3`; gives all alphas as text."""
    session.set_text(rules)
    return session.text


def undo(context: Context, session: Session) -> str:
    """Take the last change of the alphas back."""
    session.undo()
    return session.text


def use_preset(context: Context, session: Session, name: str) -> None:
    """Set the alphas of PRESETS[name]."""
    skills, (first, other) = session.need().skills, PRESETS[name]
    session.set_text("\n".join((other if i else first).format(skill, share=1 / len(skills)) for i, skill in enumerate(skills)))


def curve_rules(skills: Sequence[str], skill: str, curve: str, low: float | None, high: float | None, seed: int) -> list[str]:
    """Rules that draw a curve over depth for one skill, or for all where `skill` is none of them."""
    chosen = [skill] if skill in skills else list(skills)
    low, high = (0 if low is None else low), (1 if high is None else high)
    if curve == "complement":
        first = next((s for s in skills if s != skill), skills[0])
        return [f"{s}: complement {first}" for s in chosen if s != first]
    values = {"flat": f"{low}", "random": f"{low} {high} seed {int(seed or 0)}"}.get(curve, f"{low} {high}")
    return [f"{s}: {curve} {values}" for s in chosen]


def add_method(
    context: Context, session: Session, method: str = "ties", parameters: dict = {}, weights: list = [],
    *, rank: int | None = None, label: str = "",
) -> str:  # fmt: skip
    """Merge by any method that learns nothing (or route by it); gives the name of its column."""
    if not isinstance(parameters or {}, dict):
        raise LabError('parameters is a JSON object, such as {"density": 0.3}.')
    if isinstance(weights, str) or not all(isinstance(weight, int | float) for weight in weights or []):
        raise LabError("weights is a list of numbers, one for each adapter.")
    return session.add(label or method, session.make(method, parameters or {}, weights or None, rank))


def add_methods(context: Context, session: Session, methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """Merge by several methods as they are; (columns, a sentence for each method that refused). Raises LabError for none."""
    if not methods:
        raise LabError("Choose the methods first.")
    added, refused = [], []
    for method in methods:
        try:
            added.append(add_method(context, session, method, label=get_method(method).label))
        except LabError as error:
            refused.append(f"{method}: {error}")
    return added, refused


def remove_columns(context: Context, session: Session) -> None:
    """Let the columns of other methods go."""
    session.others = {}
    context.tidy()


def pictures(context: Context, session: Session) -> dict[str, Chart]:
    """The alphas as charts, and how they moved in the last run."""
    grid, values = session.need(), session.alphas
    found = {
        "heatmap": charts.heatmap(values, grid),
        "by-layer": charts.by_layer(values, grid),
        "by-module": charts.by_module(values, grid),
    }
    view = context.jobs.find(session.job).view if session.job in context.jobs else {}
    if len(view.get("drift", ())) > 1:
        found["drift"] = charts.drift(list(view["drift"]), view["grid"])
    return found


# Asking


def question(context: Context, prompt: str, template: str = "", gold: str = "") -> Question:
    """A text as the model reads it, in the prompt that `template` names (default the showcase's first). Raises LabError."""
    showcase = context.showcase
    template = template or next(iter(showcase.shapes))
    text = wrap(showcase, prompt, template, context.engine.tokenizer, context.preset.chat)
    if template not in showcase.shapes:
        return Question(text, gold.strip())
    task = showcase.tasks[showcase.shapes[template]]
    known = known_example(context, prompt, template)
    if known is not None and gold.strip() in known.targets:
        return replace(of_example(task, known), prompt=text)
    return Question(text, gold.strip(), task.template == prompts.CODE, stop=task.stop)


def known_example(context: Context, prompt: str, template: str) -> Example | None:
    """The example to choose from that this text, put to the model so, is."""
    showcase = context.showcase
    if showcase.examples is None or template not in showcase.shapes:
        return None
    name = showcase.shapes[template]
    asked = showcase.tasks[name].template.replace("{text}", prompt.strip())
    return next((example for example in showcase.examples(name) if example.prompt == asked), None)


def known_answer(context: Context, prompt: str, template: str) -> str:
    """The right answer of an example to choose from; "" for anything else."""
    found = known_example(context, prompt, template)
    return " or ".join(found.targets) if found else ""


def seen_prompt(context: Context, prompt: str, template: str) -> str:
    """What the model reads of a text; "" for none."""
    return question(context, prompt, template).prompt if prompt.strip() else ""


def problems(context: Context, task: str, count: int, first: int) -> list[Question]:
    """Test problems of a task as the model reads them. Raises LabError."""
    found = task_questions(context.showcase, task, context.preset, count, first)
    if not context.preset.chat:
        return found
    return [replace(one, prompt=prompts.chat(context.engine.tokenizer, one.prompt)) for one in found]


def file_length(session: Session, file: str) -> str:
    """How many prompts a file holds, and how long the last answers took. Raises LabError."""
    count = len(read_prompts(file))
    told = f"{Path(file).name} holds {count:,} prompts; at most {QUESTIONS} are asked at once."
    done = [a for row in session.run.answers for a in row if a.seconds] if session.run is not None else []
    if done:
        told += f" The last answers to a prompt took {max(a.seconds for a in done):.1f} s."
    return told


def file_questions(context: Context, file: str, template: str, count: int) -> list[Question]:
    """The first `count` prompts of a file as the model reads them. Raises LabError."""
    if not 1 <= count <= QUESTIONS:
        raise LabError(f"Ask the first 1 to {QUESTIONS} prompts of the file, not {count}.")
    return [question(context, text, template, gold) for text, gold in read_prompts(file)[:count]]


def example(context: Context, task: str, number: int | None = None) -> tuple[str, str, str]:
    """(text, template, gold) of an example to choose from, else of a test problem; by default any."""
    showcase = context.showcase
    if showcase.examples is not None:
        examples = showcase.examples(task)
        found = of_example(showcase.tasks[task], random.choice(examples) if number is None else examples[number])
    else:
        found = task_questions(showcase, task, context.preset, 1, random.randrange(200) if number is None else number)[0]
    head, _, tail = showcase.tasks[task].template.partition("{text}")
    return found.prompt.removeprefix(head).removesuffix(tail), showcase.shape(task), found.gold


def present_prompt(context: Context, session: Session) -> str:
    """What stands in Compare, as the model reads it."""
    try:
        return question(context, str(session.form.get("prompt", "")), str(session.form.get("shape", ""))).prompt
    except LabError:
        return "Hello"


def edited(
    context: Context, session: Session, prompt: str, template: str, gold: str, example: Sequence[str]
) -> tuple[str, bool]:
    """The gold answer that an edited prompt still has, and whether it is news that the answers are to another question.

    example: (text, gold) of the example that stood there; its gold goes when its text is changed.
    """
    text, known = example
    if gold == known and prompt != text:
        gold = ""
    state = session.run
    if state is None or not state.done or len(state.questions) > 1:
        return gold, False
    try:
        stale = question(context, prompt, template, gold) != state.questions[0]
    except LabError:
        stale = True
    news, state.stale = stale != state.stale, stale
    return gold, news


def judge(answers: Sequence[tuple[Question, str]]) -> list[tuple[Verdict | None, str]]:
    """(verdict, value to show) of (question, text) pairs: programs are run in the sandbox; judged is what has a gold answer."""
    programs = [extract_program(text) for _, text in answers]
    outcomes = iter(run_programs([program for program in programs if program]))
    return [_judged(*pair, next(outcomes) if program else None) for pair, program in zip(answers, programs, strict=True)]


def _judged(question: Question, text: str, outcome) -> tuple[Verdict | None, str]:
    if outcome is not None:
        value = outcome.value if outcome.status == "ok" else outcome.message
        if question.gold:
            return score_program(text, question.gold, outcome), value
        return Verdict("ran" if outcome.status == "ok" else outcome.status, None, outcome.value), value
    if not question.gold:
        return None, ""
    if question.task and not question.program:
        (verdict,) = question.task.score([text], [question.example])
        return verdict, verdict.extracted if verdict.extracted != text.strip() else ""  # no need to show an answer twice
    if question.program:
        return Verdict("no code", 0.0, ""), ""
    try:
        verdict = score_final_number(text, question.gold)
    except LabError:  # gold in words: the text must hold it
        right = question.gold.strip().lower() in text.lower()
        verdict = Verdict("right" if right else "wrong", float(right), "")
    return verdict, verdict.extracted


def answers(
    context: Context, session: Session, questions: Sequence[Question], columns: Sequence[str], max_new_tokens: int,
    temperature: float, top_p: float, seed: int, *, run: bool = True, blind: bool = False,
) -> Iterator[Comparison]:  # fmt: skip
    """The comparison as it grows. run: programs are run and answers judged."""
    if blind and len(columns) < 2:
        raise LabError("A blind comparison needs at least two columns.")
    if blind and len(questions) > 1:
        raise LabError("A blind vote is on one prompt at a time; choose One prompt, or untick Blind.")
    stop = questions[0].stop if questions else ()
    decoding = Decoding(int(max_new_tokens or 0), float(temperature), float(top_p), int(seed or 0), stop)
    return compare(context.engine, session, questions, columns, decoding, judge=judge if run else None, blind=blind)


def ask(
    context: Context, session: Session, prompt: str = "", columns: list = [], template: str = "",
    gold: str = "", max_new_tokens: int = 110, temperature: float = 0, top_p: float = 1, seed: int = 0,
) -> Iterator[dict]:  # fmt: skip
    """Answers side by side, streamed: column -> text, tokens, tokens_per_second, done, verdict, value."""
    columns = columns.split(",") if isinstance(columns, str) else list(columns or [])
    columns = [c.strip() for c in columns if c.strip()] or ["base", *session.need().skills, "merge"]
    asked = [question(context, prompt, template, gold)]
    for now in answers(context, session, asked, columns, max_new_tokens, temperature, top_p, seed):
        yield {
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
        }


def vote(context: Context, session: Session, choice: str | None) -> Comparison:
    """Count a vote for a blind answer (a label of its ballot, or anything else for none); the comparison, revealed. Raises LabError."""
    state = session.run
    if state is None or not state.blind or not state.done:
        raise LabError("There is nothing to vote on; ask a blind question first.")
    if state.voted is not None:
        raise LabError("You have voted on these answers already; ask again.")
    if not choice:
        raise LabError("Choose an answer first.")
    prompt, winners = state.questions[0].prompt, [state.players[c] for c in state.ballot.get(choice, ())]
    if not winners:
        context.ballot.cast(Vote(prompt, state.players, ""))
    for winner in winners:  # who gave the same answer beat the others, and not each other
        others = tuple(player for player in state.players if player not in winners)
        context.ballot.cast(Vote(prompt, (winner, *others), winner))
    state.voted = winners[0] if winners else "none"
    return state


# Learning


def material(
    context: Context, session: Session, rows: int, seed: int, files: Sequence[str] | None = None, method: str = "",
    mixed: bool = False,
) -> Material:  # fmt: skip
    """What to learn or measure on: one's own files (one per skill; mixed: one may hold all), or what the preset has for the skills
    or the target."""
    if files is not None:
        if not files:
            raise LabError("Choose your JSONL files first, one per skill.")
        skills = session.need().skills
        if len(files) not in (len(skills), 1) or (len(files) == 1 and len(skills) > 1 and not mixed):
            count = f"{len(files)} file{'s' if len(files) > 1 else ''} for {len(skills)} skills ({', '.join(skills)})"
            raise LabError(f"There are {count}; give one per skill, or one that mixes them and say so.")
        labels = [Path(file).stem for file in files]
        if len(set(labels)) < len(labels):
            raise LabError(f"Two files are called {max(labels, key=labels.count)}; name each after its skill.")
        pairs = {label: read_pairs(file).pairs[:OWN_ROWS] for label, file in zip(labels, files, strict=True)}
        return own_material(context.engine, context.preset, pairs, int(seed or 0))
    recipe = get_method(method).recipe if method else None
    if recipe is not None and recipe.data == "target":
        return target_material(context.engine, context.preset, context.showcase, recipe.rows)
    skills = session.need().skills
    return skills_material(context.engine, context.preset, context.showcase, skills, int(rows or 0), int(seed or 0))


def has_data(context: Context, session: Session) -> bool:
    """Whether calibration data is known for the skills, and made for this base."""
    return context.showcase.base == context.engine.source and any(a.name in context.showcase.tasks for a in session.adapters)


def describe_rows(files: Sequence[str] | None) -> list[tuple[str, str]]:
    """(class, sentence) about each file of rows: what is taken of it, or what is wrong with it."""
    told = []
    for file in files or ():
        try:
            rows = read_pairs(file)
            cut = f" Only the first {OWN_ROWS:,} are read." if len(rows.pairs) > OWN_ROWS else ""
            told.append(("dim", rows.told + cut))
        except LabError as error:
            told.append(("bad", str(error)))
    return told


def learn(
    context: Context, session: Session, method: str = FIRST, parameters: dict = {},
    rows: int = 100, steps: int = 40, learning_rate: float = 0.1, batch_size: int = 8, seed: int = 0,
    *, files: Sequence[str] | None = None, mixed: bool = False, checked: int = 0,
) -> str:  # fmt: skip
    """Start learning on the skills' calibration data (a search: on examples of the target); gives the job's id."""
    found = material(context, session, rows, seed, files, method, mixed)
    adapters, key, base, before = session.adapters, session.key, session.base, session.alphas
    asked = problems(context, context.showcase.target, int(checked), 0) if checked and has_data(context, session) else []
    learned = learn_job(
        context.engine, adapters, found, method=method, parameters=parameters or {}, steps=int(steps or 0),
        learning_rate=float(learning_rate or 0), batch_size=int(batch_size or 0), seed=int(seed or 0),
    )  # fmt: skip

    def work(job: Job) -> Outcome:
        outcome = learned(job)
        if not job.wanted_stop.is_set():
            job.view["phase"] = "comparing it with the mixer as it was"
            job.view["verdict"] = verdict_of(context, outcome, adapters, before, found, asked, job)
        try:
            context.workspaces.keep_learned(key, base, job, outcome, adapters)
        except LabError as error:  # a full disk; the result is there all the same
            job.message = str(error)
        return outcome

    session.job = context.jobs.submit("learn", work).id
    return session.job


def verdict_of(
    context: Context, outcome: Outcome, adapters: Sequence[LoraAdapter], before: np.ndarray, found: Material,
    asked: Sequence[Question], job: Job,
) -> dict:  # fmt: skip
    """What a run was good for, JSON-able: "losses", column -> skill -> held-out loss (nats per token) before and after; "right", where
    problems were asked: of how many, before and after with intervals, their difference and the paired test. None: there is nothing."""
    aside = Session()
    aside.take(adapters, context.engine.model, adapters[0].base)
    aside.alphas = before
    aside.add("after", outcome.result(adapters))
    told: dict = {"losses": None, "right": None}
    if found.held:
        losses = weigh(context.engine, aside, ["merge", "after"], found.held)
        told["losses"] = {"before": losses["merge"], "after": losses["after"]}
    if asked:
        state = None
        for state in compare(context.engine, aside, asked, ["merge", "after"], Decoding(context.showcase.new_tokens, stop=asked[0].stop), judge=judge):
            if job.wanted_stop.is_set():
                return told
        scores = [[None if row[c] is None else row[c].score for row in state.verdicts] for c in (0, 1)]
        test = statistics.paired_test(scores[1], scores[0])
        spans = {name: _span(statistics.mean_interval(own)) for name, own in zip(("before", "after"), scores, strict=True)}
        told["right"] = {"n": test.difference.n, **spans, "difference": _span(test.difference), "p": test.p_value, "test": test.test}
    context.tidy()
    return told


def _span(estimate: statistics.Estimate) -> list[float]:
    return [estimate.mean, estimate.low, estimate.high]


def going_on(context: Context, job: str) -> Job | None:
    """The job when it waits or runs."""
    found = context.jobs.find(job) if job in context.jobs else None
    return None if found is None or found.over else found


def learn_status(context: Context, session: Session, job: str = "") -> dict:
    """State, progress, losses and seconds left of a job."""
    found = context.jobs.find(job)
    return {
        "state": found.state,
        "progress": found.progress,
        "place": context.jobs.place(found),
        "losses": [round(x, 5) for x in found.view.get("losses", ())],
        "seconds_left": found.seconds_left,
        "message": found.message,
        "held_out": found.result.held_out if found.result is not None else None,
    }


def learn_stop(context: Context, session: Session, job: str = "") -> str:
    """End a job after its present step, keeping what it has."""
    found = context.jobs.find(job)
    context.jobs.stop(found)
    return found.state


def _learned(context: Context, session: Session, job: str) -> Outcome:
    if not job:
        raise LabError("Nothing has been learned yet; start a run.")
    if session.key and job not in context.jobs:  # the server has forgotten it, or was started anew
        context.workspaces.find_learned(session, context.jobs)
    found = context.jobs.find(job)
    if found.result is None:
        raise LabError("That run has no result (yet); wait until it ends.")
    session.job = job
    return found.result


def learn_use(context: Context, session: Session, job: str = "") -> str:
    """Set the alphas that a job has learned; gives them as text."""
    outcome = _learned(context, session, job)
    if not outcome.grid.equals(session.need()):
        raise LabError("That run was for other adapters; load those again.")
    if outcome.alphas is None:
        raise LabError("This method's result is no table of alphas; add it as a column instead.")
    session.set(outcome.alphas)
    return session.text


def use_learned(context: Context, session: Session, job: str = "") -> str:
    """Work with what a job has learned: its alphas in the mixer, or what is no table of alphas as a column; what was done."""
    if _learned(context, session, job).alphas is not None:
        learn_use(context, session, job)
        return "The learned alphas are in the mixer; edit them by hand, or undo."
    return f"{learn_column(context, session, job, titled=True)} is a column of Compare now: it is no table of alphas for the mixer."


def learn_column(context: Context, session: Session, job: str = "", *, titled: bool = False) -> str:
    """Add what a job has learned, an adapter or a router, as a column; gives its name."""
    outcome = _learned(context, session, job)
    method = outcome.recipe["method"]
    return session.add(f"learned {METHODS[method].label if titled else method}", outcome.result(session.adapters))


def delta_nll(
    context: Context, session: Session, columns: list = [], rows: int = 100, seed: int = 0,
    *, files: Sequence[str] | None = None, mixed: bool = False, job: str = "",
) -> dict:  # fmt: skip
    """Loss of columns on each skill's held-out rows, nats per token: column -> skill -> loss."""
    held = material(context, session, rows, seed, files, mixed=mixed).held
    found = weigh(context.engine, session, columns or ["base", *session.grid.skills, "merge"], held)
    outcome = context.jobs.find(job).result if job in context.jobs else None
    if outcome is not None and outcome.grid.equals(session.grid):
        aside = Session()
        aside.take(session.adapters, context.engine.model, session.base)
        aside.add("learned", outcome.result(session.adapters))
        found |= weigh(context.engine, aside, ["learned"], held)
        context.tidy()
    return found


def weigh_layers(
    context: Context, session: Session, factor: float, rows: int, seed: int, *, files: Sequence[str] | None = None,
    mixed: bool = False,
) -> str:  # fmt: skip
    """Start to lower one layer after the other; gives the job's id."""
    held = material(context, session, rows, seed, files, mixed=mixed).held
    session.layers = context.jobs.submit("layers", layers_job(context.engine, session, held, float(factor))).id
    return session.layers


# Taking home


def export(
    context: Context, session: Session, column: str = "merge", dtype: str = "float32", folded: bool = False,
    *, pad: bool = False,
) -> Path:  # fmt: skip
    """A column as the zip of a PEFT folder, or (folded) of the whole model."""
    return takehome.as_zip(context.engine, session, column, dtype=dtype, pad=pad, folded=folded)


def recipe(context: Context, session: Session, column: str = "merge") -> dict:
    """The recipe of a column."""
    return json.loads(takehome.recipe_text(session, column))


def use_recipe(context: Context, session: Session, recipe: dict) -> str:
    """Set what a recipe says, on its own adapters where a workspace holds them; gives what was done."""
    recipe = takehome.read_recipe(json.dumps(recipe))
    inputs = takehome.inputs_of_recipe(recipe)
    if inputs and set(inputs.items()) != {(a.name, a.digest()) for a in session.adapters}:
        found = [context.workspaces.adapter(digest, name, session.adapters) for name, digest in inputs.items()]
        if None not in found:
            use(context, session, found)
    return takehome.apply_recipe(session, recipe)


def commands(context: Context, session: Session, column: str = "merge") -> str:
    """Shell commands that make a column again."""
    return takehome.commands(session, column, context.base_name)


# What there is


def methods(context: Context, session: Session) -> list:
    """Every method: kind, source, formula, parameters."""
    return [
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


def sections(context: Context, session: Session | None = None) -> tuple[dict[str, list], list[str]]:
    """Records by section, preset and number of problems, a visitor's own after them; and the files that are damaged or no records."""
    records, damaged = read_records(context.results)
    if session is not None:
        own, broken = comparisons.saved(context.comparisons, session.key)
        records, damaged = [*records, *own], [*damaged, *broken]
    found: dict[str, list] = {}
    for record in records:
        name = f"{title_of(record.section)} · {record.preset} · {record.n + record.unscored} problems"
        found.setdefault(name, []).append(record)
    return found, damaged


_BOARDS: dict[tuple, tuple] = {}  # records are never edited, so their keys say whether a board is still right


def reference_of(records: list) -> str:
    """What the others of a table are compared with: the paper's method, else the mixer's merge, else the first."""
    methods = [r.method for r in records]
    return next((name for name in ("cat", "merge") if name in methods), methods[0])


def save_comparison(context: Context, session: Session, name: str) -> tuple[list[str], str]:
    """Keep the last comparison under a name, for Results; (files of it, what was done). Of one that gives no table, only the
    answers are handed out. Raises LabError where there is none, or the name is taken."""
    state = session.run
    if state is None:
        raise LabError("There is no comparison yet; ask first.")
    if state.blind and state.voted is None:
        raise LabError("Vote first: the names of the columns would be in the files.")
    if comparisons.judged(state) < 2:
        told = "Only the answers are saved, as a file: a table needs two questions or more that are judged."
        return [comparisons.answers_file(state)], told
    hashes = {"base": context.base_name, **{a.name: a.digest() for a in session.adapters}}
    records = comparisons.save(state, name, context.comparisons, session.key, hashes)
    return comparisons.files(records, reference_of(records)), f"{records[0].section} is saved; Results lists it."


def section_files(context: Context, session: Session, section: str) -> list[str]:
    """A section of Results as files. Raises LabError."""
    records = records_in(context, session, section)
    return comparisons.files(records, reference_of(records))


def remove_comparison(context: Context, session: Session, section: str) -> str:
    """Remove one of one's own comparisons; its name. Raises LabError for another section."""
    record = records_in(context, session, section)[0]
    if record.preset != comparisons.SAVED:
        raise LabError("This section is of the project, and is not removed from here; choose a comparison that you saved.")
    comparisons.remove(context.comparisons, session.key, record.section)
    return record.section


def board(records: list, part: str = "") -> tuple:
    """(chart, table as people read it) of the methods whose names hold `part`; no chart where none does."""
    key = tuple(record.key for record in records)
    if key not in _BOARDS:
        table = tables.result_table(records, reference_of(records))
        _BOARDS[key] = table, tables.format_table(table)
    table, shown = _BOARDS[key]
    kept = [part.strip().lower() in label.lower() for label in table["label"]]
    return method_bars(table[kept]) if any(kept) else None, shown[kept]


def method_names(records: list) -> dict[str, str]:
    """What each method of the records is called, by its id."""
    skills = skill_names(records)
    return {r.method: describe(r.method, skills).label for r in records}


def results(context: Context, session: Session, section: str = "") -> dict:
    """The leaderboards: section -> rows; with a name only that one."""
    found = {name: board(records)[1] for name, records in sections(context, session)[0].items() if section in ("", name)}
    return {name: table.reset_index(names="method").to_dict("records") for name, table in found.items()}


def records_in(context: Context, session: Session | None, section: str) -> list:
    """The records of a section. Raises LabError when there are none."""
    found, _ = sections(context, session)
    if section not in found:
        raise LabError("There are no such records; run the section first (make results).")
    return found[section]


def find_record(records: list, method: str, seed: str):
    """Raises LabError when there is none."""
    found = [r for r in records if r.method == method and str(r.seed) == str(seed)]
    if not found:
        raise LabError(f"There is no record of {method} with seed {seed}.")
    return found[0]


def open_run(context: Context, session: Session, section: str, method: str, seed: str) -> tuple[list[str], str]:
    """Set the mixer or add the column that a record is of; (columns to compare, what was done). Raises LabError."""
    record = find_record(records_in(context, session, section), method, seed)
    skills = session.need().skills
    columns = ["base", *skills[:3], "merge"]
    own = record.preset == comparisons.SAVED
    note = "" if own or str(record.seed) == "0" else " (The records of other seeds are of other skills than the shipped ones.)"
    if record.coefficients:
        c: Mapping = record.coefficients
        takehome.apply_recipe(session, {"skills": c["skills"], "modules": c["modules"], "coefficients": c["values"]})
        return columns, f"The mixer holds the coefficients of {describe(method, skills).label}, seed {seed}.{note}"
    if own and "method" in record.parameters:
        told = takehome.apply_recipe(session, {**record.parameters, "inputs": []})
        return [*columns, *list(session.others)[-1:]], told
    if method in skills or method == "base":
        return list(dict.fromkeys(["base", method])), f"Compare asks {method}.{note}"
    name = describe(method, skills).label
    if method not in METHODS or METHODS[method].recipe is not None:
        raise LabError(f"{name} was trained and its weights are not among the records; Compare cannot open it.")
    return [*columns, add_method(context, session, method, label=name)], f"{name} is a column of Compare.{note}"
