"""The comparison on a tiny random base: every candidate, exact resume, and nothing done twice."""

import dataclasses
import json

import pytest
import torch

from lab.errors import LabError
from lab.evaluation import evaluate
from lab.experiments import comparison, more_skills
from lab.experiments import context as context_of
from lab.experiments.candidates import find
from lab.experiments.candidates.merges import random_adapters
from lab.experiments.comparison import compare
from lab.experiments.context import SHIPPED, RunContext
from lab.experiments.presets import get_preset
from lab.experiments.sections import FORMATS_1_2, FORMATS_1_4, FORMATS_2_4, MATH_CODE, QABOT, READING, SECTIONS
from lab.experiments.store import Store
from lab.files import PROJECT
from lab.lora.base import load_base
from lab.lora.stacked import attach
from lab.merging import learn as learning
from lab.merging.learn import held_out_loss, learn, split_held_out
from lab.records.record import load_records
from lab.tasks import hard_math_code, maths
from lab.training import lora
from lab.training.loop import Diverged
from lab.training.lora import encode_examples, train_lora

METHODS = ["base", "few_shot", "maths", "code", "data_mix", "cat_static", "linear", "cat_random", "cat_released", "cat", "cat_softmax",
           "cat_free", "new_lora", "random_loras", "rescale_one", "lorahub", "adamerging", "rank_cat", "moe", "arrow", "wudi",
           "regmean", "nsc", "pi_tuning", "gen_know_sub", "prompt_router"]  # fmt: skip


@pytest.fixture(scope="module")
def preset(tiny_base):
    return get_preset("embedded", base=str(tiny_base), rank=2, lora_alpha=4, train_rows=24, batch_size=8, coefficient_share=0.5,
                      coefficient_rates=(1e-2, 1e-1), own_test=2, max_new_tokens=4)  # fmt: skip


def contents(records) -> list[dict]:
    """Records without what may differ between two runs: times and the machine."""
    rows = [dataclasses.asdict(r) for r in records]
    return [{k: v for k, v in row.items() if k not in ("seconds", "environment", "path")} for row in rows]


def test_every_candidate_and_nothing_twice(preset, tmp_path, monkeypatch):
    out, artifacts = tmp_path / "records", tmp_path / "artifacts"
    records = compare(MATH_CODE, preset, METHODS, [0], 3, out=out, artifacts=artifacts)
    assert [r.method for r in records] == METHODS
    assert all(r.n == 3 and set(r.own) == (set() if r.method == "few_shot" else {"maths", "code"}) for r in records)
    cat = next(r for r in records if r.method == "cat")
    values = torch.tensor(cat.coefficients["values"])
    assert values.shape == (2, len(cat.coefficients["modules"])) and ((values >= 0) & (values <= 1)).all()
    softmax = torch.tensor(next(r for r in records if r.method == "cat_softmax").coefficients["values"])
    assert torch.allclose(softmax.sum(0), torch.ones(softmax.shape[1]), atol=2e-5)

    assert all(1 <= r.parameters["effective_support"] <= 2 for r in records if r.method in ("moe", "arrow"))
    assert next(r for r in records if r.method == "lorahub").parameters["steps"] == 40

    def never(*args, **kwargs):
        raise AssertionError("finished work was done again")

    monkeypatch.setattr(evaluate, "generate", never)
    monkeypatch.setattr(context_of, "train_lora", never)
    again = compare(MATH_CODE, preset, METHODS, [0], 3, out=out, artifacts=tmp_path / "none")  # records are enough
    assert contents(again) == contents(records)
    assert len(load_records(out, "s5_1_math_code")) == len(METHODS)


def test_a_missing_skill_is_told_where_training_is_forbidden(preset, tmp_path):
    forbidden = preset.change(train_missing=False)
    with pytest.raises(LabError, match="skill-maths-[0-9a-f]+ is not in .*, and training is forbidden"):
        compare(MATH_CODE, forbidden, ["cat"], [0], 1, out=tmp_path / "records", artifacts=tmp_path / "store")
    allowed = compare(MATH_CODE, preset, ["maths"], [0], 1, out=tmp_path / "records", artifacts=tmp_path / "store")
    found = compare(MATH_CODE, forbidden, ["maths"], [0], 1, out=tmp_path / "again", artifacts=tmp_path / "store")
    assert contents(found) == contents(allowed)


def test_worked_examples_of_the_preset_stand_before_each_question(preset, tmp_path):
    """One, for every method that brings none of its own, and in the key; the skills' own tests go without."""
    where = {"out": tmp_path / "records", "artifacts": tmp_path / "store"}
    plain, many = compare(MATH_CODE, preset, ["base", "few_shot"], [0], 1, **where)
    one, same = compare(MATH_CODE, preset.change(shots=1), ["base", "few_shot"], [0], 1, **where)
    question = plain.rows()[0]["prompt"]
    assert one.rows()[0]["prompt"].endswith(question) and one.rows()[0]["prompt"].count("Question:") == 2
    assert one.key != plain.key and same.key == many.key and one.own == plain.own


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def undisturbed(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return compare(MATH_CODE, preset, ["maths", "cat"], [0], 3, out=folder, artifacts=folder / "artifacts")


@pytest.mark.parametrize("where", ["generate", "train_lora", "learn"])
def test_killed_and_resumed_gives_the_same_records(preset, undisturbed, tmp_path, monkeypatch, where):
    methods = ["maths", "cat"]
    place = {"generate": evaluate, "train_lora": context_of, "learn": learning}[where]
    original, calls = getattr(place, where), []

    def die(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2 or where == "learn":
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(place, where, die)
    with pytest.raises(Killed):
        compare(MATH_CODE, preset, methods, [0], 3, out=tmp_path / "b", artifacts=tmp_path / "artifacts-b")
    monkeypatch.setattr(place, where, original)
    resumed = compare(MATH_CODE, preset, methods, [0], 3, out=tmp_path / "b", artifacts=tmp_path / "artifacts-b")
    assert contents(resumed) == contents(undisturbed)


def test_training_a_skill_leaves_the_base_as_it_was(preset, tmp_path):
    model, tokenizer = load_base(preset.base)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    rows = encode_examples(tokenizer, maths.load("world", "train", 16, 0), 128)
    adapter = train_lora(model, tokenizer, rows, preset.training, name="maths", base=preset.base, seed=0, folder=tmp_path / "skill", checkpoint=None)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert any(f.B.abs().max() > 0 for f in adapter.modules.values())
    assert json.loads((tmp_path / "skill" / "adapter_config.json").read_text())["base_model_name_or_path"] == preset.base


def test_learning_moves_only_coefficients_and_lowers_the_loss(preset, tmp_path):
    model, tokenizer = load_base(preset.base)
    context = RunContext(MATH_CODE, preset, 0, Store(tmp_path), model, tokenizer)
    adapters = random_adapters(context.skills, 1)  # noise hurts, so free coefficients must shrink
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = learn("cat", model, adapters, context.coefficient_rows, tokenizer.pad_token_id, rates=(5e-2,), batch_size=4, steps=20,
                  parameters={"parametrisation": "free"})  # fmt: skip
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert len(found.losses) == 20 and found.sweep[0][0] == 5e-2
    moved = torch.tensor(found.adapter.recipe["coefficients"])
    assert (moved - 0.5).abs().max() > 0.01
    _, held_out = split_held_out(context.coefficient_rows, 0)
    with attach(model, adapters):  # coefficients start as 1/k
        assert found.sweep[0][1] < held_out_loss(model, held_out, tokenizer.pad_token_id)


def test_a_sweep_survives_a_rate_that_diverges(preset, tmp_path, monkeypatch):
    model, tokenizer = load_base(preset.base)
    context = RunContext(MATH_CODE, preset, 0, Store(tmp_path), model, tokenizer)
    original = learning.fit

    def diverge(model, batches, config, **options):
        if config.learning_rate > 1:
            raise Diverged("NaN")
        return original(model, batches, config, **options)

    monkeypatch.setattr(learning, "fit", diverge)
    options = {"batch_size": 4, "steps": 2}
    found = learn("cat", model, context.skills, context.coefficient_rows, tokenizer.pad_token_id, rates=(5.0, 1e-2), **options)
    assert found.learning_rate == 1e-2 and found.sweep[0] == (5.0, None)
    with pytest.raises(LabError, match="diverged at every"):
        learn("cat", model, context.skills, context.coefficient_rows, tokenizer.pad_token_id, rates=(5.0,), **options)


def test_coefficient_rows_are_the_minimum_share_of_each_skill(preset, tmp_path):
    model, tokenizer = load_base(preset.base)
    context = RunContext(MATH_CODE, preset, 0, Store(tmp_path), model, tokenizer)
    assert len(context.coefficient_rows) == 2 * 12


def test_random_adapters_match_the_spread():
    model, tokenizer = load_base("embedded")
    torch.manual_seed(0)
    from peft import LoraConfig, get_peft_model

    from lab.lora.peft_io import from_peft

    peft = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj"], init_lora_weights=False))
    adapter = from_peft(peft, name="a")
    (noise,) = random_adapters([adapter], 0)
    for module, factors in noise.modules.items():
        assert float(factors.A.std()) == pytest.approx(float(adapter.modules[module].A.std()), rel=0.1)
        assert not torch.equal(factors.A, adapter.modules[module].A)


def test_unknown_method_and_empty_input_are_named(preset, tmp_path):
    with pytest.raises(LabError, match="no method 'cat_statik'; did you mean 'cat_static'"):
        find("cat_statik", MATH_CODE)
    with pytest.raises(LabError, match="problems is 0"):
        compare(MATH_CODE, preset, ["base"], [0], 0, out=tmp_path, artifacts=tmp_path)
    with pytest.raises(LabError, match="need the method 'cat'"):
        comparison.check(MATH_CODE, preset, ["base"], needs=["base", "cat"])
    with pytest.raises(LabError, match="does not exist"):
        comparison.check(MATH_CODE, preset.change(data=str(tmp_path)), ["base"])
    with pytest.raises(LabError, match="never trained on"):
        hard_math_code.load("world", "train", 1, 0)
    with pytest.raises(LabError, match="no seeds"):
        compare(MATH_CODE, preset, ["base"], [], 1, out=tmp_path, artifacts=tmp_path)
    with pytest.raises(LabError, match="no module called 'c_attn'"):
        model, tokenizer = load_base(preset.base)
        rows = encode_examples(tokenizer, maths.load("world", "train", 4, 0), 128)
        training = preset.change(targets=("c_attn",)).training
        train_lora(model, tokenizer, rows, training, name="x", base=preset.base, seed=0, folder=tmp_path / "s", checkpoint=None)
    with pytest.raises(LabError, match="no training rows"):
        lora.encode_examples(None, [], 10)


@pytest.mark.parametrize("section", [*SECTIONS.values(), *more_skills.sections()], ids=lambda section: section.name)
def test_shipped_skills_are_those_of_the_embedded_preset(section, tmp_path, monkeypatch):
    """Change the world, the base or the preset's training, and the shipped skills must be trained anew."""
    preset = section.preset("embedded")
    model, tokenizer = load_base(preset.base)
    context = RunContext(section, preset, 0, Store(tmp_path, shipped=SHIPPED), model, tokenizer)
    monkeypatch.setattr(context_of, "train_lora", lambda *args, **kwargs: pytest.fail("a shipped skill was trained again"))
    assert [a.name for a in context.skills] == [task.name for task in section.skills]
    assert all(a.rank == preset.rank for a in context.skills)


def test_shipped_weights_are_small():
    assert sum(file.stat().st_size for file in (PROJECT / "lab").rglob("*.safetensors")) <= 52e6


COMMITTED = [
    (section, name)
    for section in (MATH_CODE, QABOT, READING, FORMATS_1_4, FORMATS_1_2, FORMATS_2_4)
    for name in (*(task.name for task in section.skills), "data_mix" if section not in (QABOT, READING) else "data_mix_continual")
]


@pytest.mark.parametrize(("section", "name"), COMMITTED, ids=lambda value: getattr(value, "name", value))
def test_what_is_shipped_is_what_the_committed_records_measured(section, name, tmp_path):
    context = RunContext(section, section.preset("embedded"), 0, Store(tmp_path / "store", shipped=SHIPPED), None, None)
    adapter, _ = find(name, section).make(context).load()
    assert not (tmp_path / "store").exists()  # nothing was trained
    committed = load_records(PROJECT / "results" / "records", section.name)
    assert [r.hashes["adapter"] for r in committed if (r.method, r.seed) == (name, 0)] == [adapter.digest()]
