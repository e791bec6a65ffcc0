"""The comparison: every candidate made through the store, asked the same questions, scored, and recorded once."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.errors import LabError
from lab.evaluation.sandbox import isolation_level
from lab.experiments.candidates import Candidate, baselines, find
from lab.experiments.context import Entry, Routed, RunContext, asked_digest, open_contexts, rows_digest
from lab.experiments.presets import Preset
from lab.experiments.section import Section
from lab.files import content_hash
from lab.lora.stacked import attach
from lab.merging.routing import load_router
from lab.records import record as records_of
from lab.records.record import RunRecord
from lab.tasks import Example, Task, prompts
from lab.training.loop import collate, encode


def check(section: Section, preset: Preset, methods: Sequence[str], needs: Sequence[str] = ()) -> None:
    """Raise LabError for what would fail after hours: an unknown method, missing rows, or a method that the page needs."""
    for name in methods:
        find(name, section)
    missing = [name for name in needs if name not in methods]
    if missing:
        raise LabError(f"The tables and figures need the method {missing[0]!r} too; add it to methods.")
    for task in (*section.skills, section.target):
        if preset.source(task.folder) != "hub" or not task.hub:  # the Hub is not asked before it must be
            task.load(preset.source(task.folder), "test", 1, 0)


def compare(
    section: Section, preset: Preset, methods: Sequence[str], seeds: Sequence[int], problems: int, *, out: Path, artifacts: Path,
    others: Mapping[str, Candidate] = {}, on_record: Callable[[RunRecord], None] = lambda record: None,
) -> list[RunRecord]:  # fmt: skip
    """Make, ask, score and record every method for every seed; what is on record already is not done again.

    problems: test problems of the target. out: folder of the records. artifacts: folder of the store. others: candidates of this
    run alone, by name (a sweep's choices). on_record: told each record when it is there.
    """
    if problems < 1:
        raise LabError(f"problems is {problems}; give 1 or more.")
    if not seeds:
        raise LabError("There are no seeds; give at least one.")
    candidates = [others.get(name) or find(name, section) for name in methods]
    found = []
    for context in open_contexts(section, preset, seeds, artifacts):
        for candidate in candidates:
            if not (candidate.seedless and context.seed != seeds[0]):
                found.append(_record(context, candidate, problems, out))
                on_record(found[-1])
    return found


@dataclass(frozen=True)
class Asked:
    """What a candidate is asked. examples: of the target. own_tests: of each skill that has some with answers. shots: worked
    examples before each question of the target."""

    examples: Sequence[Example]
    own_tests: Mapping[Task, Sequence[Example]]
    shots: Sequence[tuple[str, str]]

    def digests(self, target: Task) -> dict[str, list]:
        """By task: what decides the answers and their scores, beside model and decoding."""
        tests = {target: self.examples, **self.own_tests}
        return {task.name: [task.version, task.stop, task.max_new_tokens, asked_digest(rows)] for task, rows in tests.items()}


def asked_of(context: RunContext, entry: Entry, problems: int) -> Asked:
    section, preset, target = context.section, context.preset, context.section.target
    usual = preset.shots and target.demonstrations
    shots = entry.shots or (baselines.base_few_shot(context).shots[: preset.shots] if usual else ())
    own_tests = {}
    for task in () if entry.shots or entry.before else section.skills:  # worked examples of the target say nothing about the skills' tests
        tests = [e for e in context.examples(task, "test", preset.own_test, seed=0) if e.targets]
        if tests:  # Code Alpaca's rows have no answer that a program could be checked against
            own_tests[task] = tests
    # The same test problems for every seed and method, so that methods can be compared problem by problem.
    return Asked(context.examples(target, "test", problems, seed=0), own_tests, shots)


def record_key(context: RunContext, name: str, entry: Entry, asked: Asked) -> str:
    """What names a record: the candidate, what decides it, and what it is asked and how."""
    # What a router's effective support is measured on is cut at max_tokens.
    shown = [context.section.passed_on, context.preset.max_tokens]
    asked_of_all = asked.digests(context.section.target)
    shots = [context.section.target.template, *asked.shots] if asked.shots else []  # the template puts them into words
    return content_hash(name, context.seed, dict(entry.key), asked_of_all, shots, context.decoding_key, shown)


def data_digest(context: RunContext, asked: Asked) -> str:
    """Names rows of training and test for all seeds: records that may stand beside each other have the same."""
    section = context.section
    trained = {t.name: rows_digest(t, context.source(t), "train", context.preset.train_rows, 0) for t in section.skills}
    return content_hash(trained, asked.digests(section.target)[section.target.name])


def _record(context: RunContext, candidate: Candidate, problems: int, out: Path) -> RunRecord:
    section, preset, target = context.section, context.preset, context.section.target
    name, entry = candidate.name, candidate.make(context)
    asked = asked_of(context, entry, problems)
    key = record_key(context, name, entry, asked)
    found = records_of.find_record(out, section.name, key)
    if found is not None:
        return found
    adapter, facts = entry.load()
    examples = asked.examples
    if entry.before:
        examples = [dataclasses.replace(e, prompt=entry.before(e) + e.prompt) for e in examples]
    if asked.shots:
        shown = prompts.demonstrate(target.template, asked.shots)
        examples = [dataclasses.replace(e, prompt=shown + e.prompt) for e in examples]
    answered = context.ask(adapter, target, examples, f"{name}, seed {context.seed}")
    started = time.monotonic()
    own = {task.name: context.ask(adapter, task, tests, f"{name}, {task.name} test").accuracy for task, tests in asked.own_tests.items()}
    seconds = {"make": facts.get("seconds", 0.0), **answered.seconds, "own tests": round(time.monotonic() - started, 2)}
    recipe = facts.get("recipe", {})
    coefficients = None
    if "coefficients" in recipe:
        values = [[round(value, 5) for value in row] for row in recipe["coefficients"]]
        coefficients = {"skills": recipe["skills"], "modules": recipe["modules"], "values": values}
    parameters = {
        "preset": dataclasses.asdict(preset.change(train_missing=True)), "problems": problems,
        **{f: facts[f] for f in ("learning_rate", "steps", "sweep", "skill", "scale") if f in facts},
        **({"rank": adapter.rank} if adapter else {}),
        **({"effective_support": effective_support(context, adapter, answered.rows)} if isinstance(adapter, Routed) else {}),
    }  # fmt: skip
    rows = list(answered.rows)
    if not section.passed_on:
        rows = [{**row, "prompt": "", "metadata": {}} for row in rows]
    made = records_of.make_record(
        rows, section=section.name, preset=preset.name, method=name, seed=context.seed, task=target.name, task_version=target.version,
        own=own, parameters=parameters,
        hashes={"base": context.base, "adapter": adapter.digest() if adapter else "", "data": data_digest(context, asked)},
        coefficients=coefficients, loss=facts.get("loss"), seconds=seconds, sandbox=isolation_level().told, key=key,
    )  # fmt: skip
    return records_of.save_record(made, rows, out)


@torch.no_grad()
def effective_support(context: RunContext, routed: Routed, rows: Sequence[Mapping], count: int = 50) -> float:
    """How many skills share a token, in effect (lab.merging.routing.Support), over the first answered rows."""
    read = [encode(context.tokenizer, row["prompt"], row["completion"], context.preset.max_tokens) for row in rows[:count]]
    batch = collate(read, context.tokenizer.pad_token_id)
    device = next(context.model.parameters()).device
    with attach(context.model, routed.adapters) as stack, load_router(routed.folder, stack).effective_support() as support:
        context.model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False)
    return support.mean
