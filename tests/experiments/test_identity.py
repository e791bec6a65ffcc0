"""Identity: a key names everything that decides an artifact, and nothing else."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest

from lab.evaluation import evaluate
from lab.experiments import context as context_of
from lab.experiments import sections
from lab.experiments.candidates import baselines, find
from lab.experiments.comparison import asked_of, compare, record_key
from lab.experiments.context import SHIPPED, RunContext
from lab.experiments.presets import get_preset
from lab.experiments.sections import MATH_CODE
from lab.experiments.store import Store
from lab.files import PROJECT, content_hash
from lab.lora.base import load_base
from lab.merging import METHODS, learn
from lab.records.record import load_records
from lab.runner.plan import asked_of as committed_run
from lab.tasks import prompts

MATHS, CODE = MATH_CODE.skills
TARGET = MATH_CODE.target
ALL = {"skill", "static", "learned", "record"}
MERGES = ALL - {"skill"}


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return load_base(str(tiny_base))


@pytest.fixture(autouse=True)
def rows_are_read_anew():
    """Rows are read once a process; a test that changes them under the same name must not leave its own."""
    yield
    for cache in (context_of.load_rows, context_of.rows_digest):
        cache.cache_clear()


@pytest.fixture
def preset(tiny_base):
    return get_preset("embedded", base=str(tiny_base), rank=2, lora_alpha=4, train_rows=8, batch_size=4, coefficient_share=0.5,
                      coefficient_rates=(1e-2,), own_test=2, max_new_tokens=4)  # fmt: skip


@pytest.fixture
def context(loaded, preset):
    return RunContext(MATH_CODE, preset, 0, Store("never made"), *loaded)


def keys(context: RunContext) -> dict[str, str]:
    """Of the first skill, a static and a learned merge, and the static merge's record."""
    made = {name: find(method, context.section).make(context) for name, method in (("static", "ties"), ("learned", "cat"))}
    found = {name: entry.key for name, entry in {"skill": context.skill(context.section.skills[0]), **made}.items()}
    record = record_key(context, "ties", made["static"], asked_of(context, made["static"], 2))
    return {**{name: content_hash(dict(key)) for name, key in found.items()}, "record": record}


def differing(one: dict, other: dict) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def other(context: RunContext, *, seed: int | None = None, section=None, model=None, **changes) -> RunContext:
    """The same context but for this."""
    return RunContext(
        section or context.section, context.preset.change(**changes), context.seed if seed is None else seed, context.store,
        model or context.model, context.tokenizer,
    )  # fmt: skip


def with_row(task, split: str, **changes):
    """The task with other facts of the last row of a split."""

    def load(source, asked, count, seed):
        rows = task.load(source, asked, count, seed)
        return [*rows[:-1], dataclasses.replace(rows[-1], **changes)] if asked == split else rows

    return dataclasses.replace(task, load=load)


def section_of(maths=MATHS, code=CODE, target=TARGET, **changes):
    return dataclasses.replace(MATH_CODE, skills=(maths, code), target=target, **changes)


def put(function, **changes):
    return lambda context: other(context, section=section_of(**{function: dataclasses.replace(globals()[function.upper()], **changes)}))


CHANGES = {
    # what decides a skill decides all that is made of it
    "the seed": (lambda c: other(c, seed=1), ALL),
    "a training setting": (lambda c: other(c, learning_rate=1e-3), ALL),
    "a default that training takes": (lambda c: other(c, warmup=3), ALL),
    "the base's precision": (lambda c: other(c, dtype="bfloat16"), ALL),
    "fewer rows": (lambda c: other(c, train_rows=7), ALL),
    "one prompt of the training data": (lambda c: other(c, section=section_of(maths=with_row(MATHS, "train", prompt="x"))), ALL),
    "one answer of the training data": (lambda c: other(c, section=section_of(maths=with_row(MATHS, "train", completion="x"))), ALL),
    # what decides merges alone
    "the other skill's data": (lambda c: other(c, section=section_of(code=with_row(CODE, "train", completion="x"))), MERGES),
    "the learning of coefficients": (lambda c: other(c, coefficient_epochs=2), {"learned"}),
    "the rates tried": (lambda c: other(c, coefficient_rates=(1e-2, 1e-1)), {"learned"}),
    "one row that coefficients learn on": (lambda c: other(c, section=section_of(maths=with_row(MATHS, "calibration", completion="x"))), {"learned"}),
    "the order of the skills": (lambda c: other(c, section=section_of(maths=CODE, code=MATHS)), ALL),  # the first skill is another
    # what decides answers and scores alone
    "one question": (lambda c: other(c, section=section_of(target=with_row(TARGET, "test", prompt="x"))), {"record"}),
    "one right answer": (lambda c: other(c, section=section_of(target=with_row(TARGET, "test", targets=("7",)))), {"record"}),
    "a fact that the scorer reads": (lambda c: other(c, section=section_of(target=with_row(TARGET, "test", metadata={"a": 1}))), {"record"}),
    "one question of a skill's own test": (lambda c: other(c, section=section_of(maths=with_row(MATHS, "test", prompt="x"))), {"record"}),
    "the target's scorer": (put("target", version=2), {"record"}),
    "a skill's scorer": (put("maths", version=2), {"record"}),
    "a stop string": (put("target", stop=("\n",)), {"record"}),
    "the length of answers": (put("target", max_new_tokens=7), {"record"}),
    "the preset's length of answers": (lambda c: other(c, max_new_tokens=5), {"record"}),
    "temperature": (lambda c: other(c, temperature=0.5), {"record"}),
    "top_p": (lambda c: other(c, top_p=0.5), {"record"}),
    "worked examples": (lambda c: other(c, shots=1), {"record"}),
    "whether prompts are kept": (lambda c: other(c, section=section_of(passed_on=False)), {"record"}),
    # and what decides nothing
    "the section's name": (lambda c: other(c, section=section_of(name="another")), set()),
    "a task's title": (put("maths", title="Sums"), set()),
    "the batch of greedy answers": (lambda c: other(c, generation_batch=3), set()),
    "whether training is allowed": (lambda c: other(c, train_missing=False), set()),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_in_the_keys_that_it_decides_and_in_no_other(context, what):
    change, decided = CHANGES[what]
    assert differing(keys(context), keys(change(context))) == decided


def test_sampled_answers_depend_on_their_batch(context):
    sampled = other(context, temperature=0.5)
    assert differing(keys(sampled), keys(other(sampled, generation_batch=3))) == {"record"}


def test_an_end_token_of_the_bases_settings_is_in_the_record(context):
    settings = context.model.generation_config
    assert settings.eos_token_id == context.tokenizer.eos_token_id

    def told(ends):
        return keys(other(context, model=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))))

    assert differing(keys(context), told([settings.eos_token_id, 5])) == {"record"}
    assert keys(context) == told([settings.eos_token_id]) == told(None)  # the tokenizer's own is the base's


def test_another_base_is_in_every_key(context, tmp_path):
    shutil.copytree(context.preset.base, tmp_path / "base")
    assert keys(other(context, base=str(tmp_path / "base"))) == keys(context)  # the same by another name
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert differing(keys(context), keys(other(context, base=str(tmp_path / "base")))) == ALL


@pytest.mark.parametrize(("name", "decided"), [("MATHS", ALL), ("HARD_MATH_CODE", {"record"})])
def test_a_template_is_in_the_keys(context, monkeypatch, name, decided):
    before = keys(context)
    monkeypatch.setattr(prompts, name, "In other words: {text}\n")
    for cache in (context_of.load_rows, context_of.rows_digest):
        cache.cache_clear()
    assert differing(before, keys(other(context))) == decided


@pytest.mark.parametrize(("method", "decided"), [("ties", {"static", "record"}), ("cat", {"learned"})])
def test_a_methods_version_and_its_defaults_are_in_its_key(context, registered, method, decided):
    before, found = keys(context), METHODS[method]
    METHODS[method] = dataclasses.replace(found, version=found.version + 1)
    assert differing(before, keys(context)) == decided
    first, *rest = found.parameters
    default = next(choice for choice in first.choices if choice != first.default) if first.choices else first.default / 2
    METHODS[method] = dataclasses.replace(found, parameters=(dataclasses.replace(first, default=default), *rest))
    assert differing(before, keys(context)) == decided


def test_what_decides_a_control_a_search_and_worked_examples_is_in_their_keys(context, registered, monkeypatch):
    def key(name: str) -> str:
        return content_hash(dict(find(name, MATH_CODE).make(context).key))

    before = {name: key(name) for name in ("new_lora", "lorahub")}
    monkeypatch.setattr(baselines, "VERSION", baselines.VERSION + 1)
    METHODS["lorahub"] = dataclasses.replace(METHODS["lorahub"], recipe=dataclasses.replace(METHODS["lorahub"].recipe, steps=7))
    assert all(key(name) != before[name] for name in before)
    entry = find("few_shot", MATH_CODE).make(context)
    asked = asked_of(context, entry, 2)
    in_other_words = other(context, section=section_of(target=dataclasses.replace(TARGET, template="Now: {text}\n")))
    assert record_key(context, "few_shot", entry, asked) != record_key(in_other_words, "few_shot", entry, asked)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_passed_is_in_the_key_as_what_is(context, method):
    key, schema = context.method_key(method, {}), METHODS[method].parameters
    assert key["parameters"] == {parameter.name: parameter.default for parameter in schema}
    assert all(context.method_key(method, {parameter.name: parameter.default}) == key for parameter in schema)


def test_the_order_of_skills_is_in_a_merges_key_and_not_in_the_skills(context):
    turned = other(context, section=section_of(maths=CODE, code=MATHS))
    assert turned.skill(MATHS).key == context.skill(MATHS).key and turned.inputs == context.inputs[::-1]
    assert differing(keys(context), keys(turned)) >= {"static", "learned"}


def test_an_unrelated_skill_changes_no_skill(context):
    several = other(context, section=dataclasses.replace(MATH_CODE, skills=(MATHS, *sections.READING.skills)))
    changed = other(context, section=section_of(code=with_row(CODE, "train", prompt="x", completion="y")))
    assert several.skill(MATHS).key == changed.skill(MATHS).key == context.skill(MATHS).key
    assert changed.skill(changed.section.skills[1]).key != context.skill(CODE).key


def test_equal_things_of_two_sections_are_made_and_asked_once(preset, tmp_path, monkeypatch):
    calls = []

    def counted(place, name):
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))

    counted(context_of, "train_lora")
    counted(learn, "learn")
    counted(context_of, "evaluate")
    counted(evaluate, "generate")
    found = []
    for section in (MATH_CODE, section_of(name="s9_again")):
        found.append(compare(section, preset, ["cat"], [0], 2, out=tmp_path / "records", artifacts=tmp_path / "store"))
    assert {name: calls.count(name) for name in calls} == {"train_lora": 2, "learn": 1, "evaluate": 6, "generate": 3}
    ((one,), (again,)) = found
    assert (one.key, one.hashes, one.completions) == (again.key, again.hashes, again.completions) and one.section != again.section
    compare(MATH_CODE, preset.change(max_new_tokens=3), ["cat"], [0], 2, out=tmp_path / "records", artifacts=tmp_path / "store")
    assert calls.count("train_lora") == 2 and calls.count("learn") == 1 and calls.count("generate") == 6


def test_the_committed_records_are_found_under_todays_keys(tmp_path):
    """Change what decides them, and the records must be made anew."""
    methods, _, problems, settings = committed_run(MATH_CODE, full=True)
    preset = MATH_CODE.preset("embedded", settings=settings)
    context = RunContext(MATH_CODE, preset, 0, Store(tmp_path, shipped=SHIPPED), *load_base(preset.base))
    on_record = {r.key: r.method for r in load_records(PROJECT / "results" / "records", MATH_CODE.name)}
    there = [name for name in methods if name in on_record.values()]
    assert len(there) > 10
    for name in there:
        entry = find(name, MATH_CODE).make(context)
        assert on_record.get(record_key(context, name, entry, asked_of(context, entry, problems))) == name, name
