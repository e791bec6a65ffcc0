"""Learned methods: AdaMerging, recycling, one coefficient per rank, LoraHub, and how `learn` treats them all."""

import copy
import dataclasses
import functools
import math
import threading
import time

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.distributions import Categorical

from lab.errors import LabError
from lab.lora.peft_io import from_peft, load, save
from lab.lora.stacked import attach, fold
from lab.merging import METHODS, Recipe, build, freeze, merge, merge_method, search
from lab.merging import learn as learning
from lab.merging.learn import held_out_loss, learn, prompts_only
from lab.merging.methods.adamerging import entropy
from lab.merging.methods.lorahub import BOUND, PENALTY, weighted
from lab.merging.methods.rank_cat import split_ranks
from lab.training.loop import IGNORED, Encoded, collate, token_loss
from tests.tiny_models import adapter, llama, logits, peft_model, relative_error, three_skills, tokens, two_skills

PAD = 0
COEFFICIENTS = ["cat", "adamerging", "recycling", "rank_cat"]  # what ends as a concatenation


@pytest.fixture(scope="module")
def base():
    return llama()


def rows(count=12, seed=0, completion_seed=1):
    """Prompts of 3 to 6 tokens with completions of 3."""
    prompts, answers = (torch.Generator().manual_seed(s) for s in (seed, completion_seed))
    out = []
    for i in range(count):
        length = 3 + i % 4
        ids = [torch.randint(1, 32, (n,), generator=g).tolist() for n, g in ((length, prompts), (3, answers))]
        out.append(Encoded((*ids[0], *ids[1]), length))
    return out


def equal_skills(base):
    """Equal ranks and scalings, as LoraHub asks for, though not equal modules."""
    return [adapter(base, "math", 1), adapter(base, "code", 2, target_modules=["q_proj", "up_proj"])]


def skills_for(method, base):
    return equal_skills(base) if method == "lorahub" else three_skills(base)


def same_update(a, b, tolerance=1e-5):
    assert list(a.modules) == list(b.modules)
    for module in a.modules:
        torch.testing.assert_close(a.delta_weight(module), b.delta_weight(module), rtol=tolerance, atol=tolerance)


def quick(method, model, adapters, data=None, **options):
    """`learn` in a few steps. LoraHub's seed is a parameter of its own."""
    options = {"steps": 3, "seed": 5} | ({} if method == "lorahub" else {"rates": (0.05,), "batch_size": 4}) | options
    return learn(method, model, adapters, data or rows(), PAD, **options)


# The methods


def test_entropy_is_that_of_the_predictions_and_ignores_what_the_labels_are(base):
    batch = collate(rows(5), PAD)
    value, count = entropy(base, batch)
    with torch.no_grad():
        out = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    predictions = Categorical(logits=out.logits[:, :-1])
    wanted = batch.labels[:, 1:] != IGNORED
    assert count == wanted.sum() == 5 * 3
    torch.testing.assert_close(value, predictions.entropy()[wanted].sum())
    batch.labels[batch.labels != IGNORED] = 7
    torch.testing.assert_close(entropy(base, batch)[0], value)


def test_prompts_only_predicts_after_every_token_of_the_prompt(base):
    data = rows(4)
    bare = prompts_only(data, PAD)
    assert [row.ids[:-1] for row in bare] == [row.ids[: row.prompt_length] for row in data]
    batch = collate(bare, PAD)
    value, count = entropy(base, batch)
    assert count == sum(row.prompt_length for row in data)
    expected = 0.0
    for row in data:
        with torch.no_grad():
            alone = base(input_ids=torch.tensor([row.ids[: row.prompt_length]])).logits
        expected += Categorical(logits=alone).entropy().sum()
    torch.testing.assert_close(value, expected)


def test_adamerging_starts_at_0_3_clamps_and_never_sees_an_answer(base):
    model = copy.deepcopy(base)
    adapters = two_skills(base)
    with attach(model, adapters) as stack:
        coefficients = build("adamerging", stack)
        torch.testing.assert_close(coefficients(), torch.full((2, len(stack.modules)), 0.3))
        with torch.no_grad():
            coefficients.raw[0], coefficients.raw[1] = 1.7, -0.4
        assert coefficients()[0].eq(1).all() and coefficients()[1].eq(0).all()
        start = merge("cat_static", adapters, [0.3, 0.3])
    one = quick("adamerging", model, adapters, rows(12, completion_seed=1), steps=20)
    other = quick("adamerging", model, adapters, rows(12, completion_seed=2), steps=20)
    assert one.adapter.digest() == other.adapter.digest() and one.sweep == other.sweep
    held = {}
    for name, merged in {"start": start, "learned": one.adapter}.items():
        with attach(model, [merged]) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            held[name] = held_out_loss(model, prompts_only(rows(), PAD), PAD, objective=entropy)
    assert held["learned"] < held["start"]


def test_recycling_starts_as_the_base_and_leaks_below_zero(base):
    model = copy.deepcopy(base)
    with attach(model, three_skills(base)) as stack:
        coefficients = build("recycling", stack)
        assert torch.equal(logits(model), logits(base))
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        present = stack.present
        assert coefficients.raw.grad[present].ne(0).all() and coefficients.raw.grad[~present].eq(0).all()
        with torch.no_grad():
            coefficients.raw[0], coefficients.raw[1] = 2.0, -3.0
        torch.testing.assert_close(coefficients()[:2, 0], torch.tensor([2.0, -0.03]))


def test_the_ranks_of_an_adapter_add_up_to_it(base):
    skill = two_skills(base)[1]  # ranks 2 and 3
    parts = split_ranks(skill)
    assert [part.name for part in parts] == ["code[0]", "code[1]", "code[2]"] and len(parts[2].modules) == 1
    for module in skill.modules:
        total = sum(part.delta_weight(module) for part in parts if module in part.modules)
        torch.testing.assert_close(total, skill.delta_weight(module))
    assert parts[0].modules[module].A.data_ptr() == skill.modules[module].A.data_ptr()  # no copy


def test_rank_cat_with_equal_coefficients_in_each_skill_is_cat_static(base):
    model = copy.deepcopy(base)
    adapters = three_skills(base)
    with attach(model, adapters) as stack:
        coefficients = build("rank_cat", stack)
        same_update(freeze(stack, coefficients), merge("cat_static", adapters))
        given = {"math": 0.3, "code": -0.9, "style": 1.4}
        with torch.no_grad():
            for row, part in enumerate(coefficients.skills):
                coefficients.raw[row] = given[part.partition("[")[0]]
        frozen = freeze(stack, coefficients)
        same_update(frozen, merge("cat_static", adapters, list(given.values())))
        assert relative_error(logits(model), logits(fold(copy.deepcopy(base), frozen))) < 1e-5
    assert frozen.rank == 4 + 3 + 5 and frozen.name == "rank_cat(math, code, style)"
    assert {i["name"]: i["digest"] for i in frozen.recipe["inputs"]} == {a.name: a.digest() for a in adapters}
    assert len(frozen.recipe["coefficients"]) == len(frozen.recipe["skills"]) == 12


def test_a_stack_in_parts_can_be_built_on_again(base):
    model = copy.deepcopy(base)
    adapters = two_skills(base)
    with attach(model, adapters) as stack:
        first = freeze(stack, build("rank_cat", stack, start=0.5))
        same_update(first, freeze(stack, build("rank_cat", stack, start=0.5)))
        coefficients = build("cat", stack)
        assert coefficients.skills == stack.skills == ("math", "code")
        same_update(freeze(stack, coefficients), merge("cat_static", adapters))
    assert torch.equal(logits(model), logits(base)) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", COEFFICIENTS)
def test_live_folded_and_reloaded_agree(tmp_path, base, method):
    model = copy.deepcopy(base)
    with attach(model, three_skills(base)) as stack:
        coefficients = build(method, stack)
        with torch.no_grad():
            coefficients.raw.normal_(generator=torch.Generator().manual_seed(0))
        live = logits(model)
        learned = freeze(stack, coefficients)
    save(tmp_path / "out", learned)
    assert relative_error(logits(fold(copy.deepcopy(base), learned)), live) < 1e-5
    reloaded = PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    assert relative_error(logits(reloaded), live) < 1e-5
    assert relative_error(logits(reloaded.merge_and_unload()), live) < 1e-5
    with attach(copy.deepcopy(base), [load(tmp_path / "out")]) as again:
        again.set_coefficients(torch.ones(1, len(again.modules)))
        assert relative_error(logits(again.model), live) < 1e-5


def test_start_of_cat(base):
    model = copy.deepcopy(base)
    adapters = three_skills(base)
    with attach(model, adapters) as stack:
        frozen = freeze(stack, build("cat", stack, parametrisation="free", start=1))
        same_update(frozen, merge("task_arithmetic", adapters))
        values = build("cat", stack, parametrisation="sigmoid", start=0.2)()
        torch.testing.assert_close(values, torch.full((3, len(stack.modules)), 0.2))
        for parametrisation, start, says in (
            ("softmax", 0.5, "start from 1/k"),
            ("sigmoid", 1.0, "between 0 and 1"),
            ("free", math.nan, "start is nan"),
        ):
            with pytest.raises(LabError, match=says):
                build("cat", stack, parametrisation=parametrisation, start=start)


# LoraHub


def test_lorahub_delta_is_the_weighted_sum(base):
    adapters = three_skills(base)
    weights = [0.7, -1.2, 0.1]
    merged = weighted(adapters, torch.tensor(weights), "delta")
    same_update(merged, merge("cat_static", adapters, weights))


def test_lorahub_factors_are_the_state_dicts_arithmetic(base):
    """What LoraHub does: each stored A and each B times its skill's weight, summed, in a model of the same config."""
    models = [peft_model(base, seed, r=3, lora_alpha=5) for seed in (1, 2)]
    weights = [0.8, -1.1]
    states = [get_peft_model_state_dict(model) for model in models]
    summed = {key: sum(w * state[key] for w, state in zip(weights, states, strict=True)) for key in states[0]}
    reference = peft_model(base, 3, r=3, lora_alpha=5)
    set_peft_model_state_dict(reference, summed)
    skills = [from_peft(model, name=name) for model, name in zip(models, ("a", "b"), strict=True)]
    merged = weighted(skills, torch.tensor(weights), "factors")
    assert merged.rank == 3
    assert relative_error(logits(fold(copy.deepcopy(base), merged)), logits(reference)) < 1e-5
    same_update(merged, merge("linear", skills, weights))


def test_lorahub_factors_refuse_unequal_ranks_and_delta_does_not(base):
    adapters = two_skills(base)
    tried = []
    with pytest.raises(LabError, match="equal ranks.*semantics delta"):
        search("lorahub", adapters, lambda a: tried.append(a) or 0.0)
    assert not tried
    search("lorahub", adapters, lambda a: tried.append(a) or 0.0, 2, semantics="delta")
    assert len(tried) == 2


def read_weights(merged):
    return torch.tensor(list(merged.recipe["weights"].values()))


@pytest.mark.parametrize("semantics", ["factors", "delta"])
def test_lorahub_finds_the_least_penalised_loss(base, semantics):
    """On (w - 0.9)² the penalty, 0.05·mean|w|, moves the optimum to 0.9 - 0.0125."""
    tried = []

    def loss(merged):
        tried.append(read_weights(merged))
        return float((tried[-1] - 0.9).square().sum())

    found = search("lorahub", equal_skills(base), loss, semantics=semantics, seed=3)
    assert len(tried) == METHODS["lorahub"].recipe.steps == 40
    assert tried[0].eq(0).all() and torch.stack(tried).abs().max() <= BOUND
    torch.testing.assert_close(read_weights(found), torch.full((2,), 0.9 - PENALTY / 2 / 2), atol=5e-3, rtol=0)
    assert found.recipe["method"] == "lorahub" and set(found.recipe["weights"]) == {"math", "code"}
    again = search("lorahub", equal_skills(base)[::-1], loss, semantics=semantics, seed=3)
    assert again.digest() == found.digest()
    calm = search("lorahub", equal_skills(base), lambda merged: 1.0, semantics=semantics)
    assert read_weights(calm).abs().max() < 0.02


def test_lorahub_ends_early_and_leaves_no_thread(base):
    threads = threading.active_count()
    values = iter([3.0, 1.0, 2.0, None])
    tried = []
    found = search("lorahub", equal_skills(base), lambda merged: tried.append(read_weights(merged)) or next(values))
    assert len(tried) == 4 and torch.equal(read_weights(found), tried[1])
    with pytest.raises(KeyboardInterrupt) as stopped:
        search("lorahub", equal_skills(base), lambda merged: (_ for _ in ()).throw(KeyboardInterrupt))
    assert stopped.traceback
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


# learn


@pytest.mark.parametrize("method", [*COEFFICIENTS, "lorahub"])
def test_only_what_learns_moves_and_the_same_seed_gives_the_same(method):
    base = llama()
    adapters = skills_for(method, base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    skills_before = [a.digest() for a in adapters]
    one, two = (quick(method, base, adapters, steps=4) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert [a.digest() for a in adapters] == skills_before and all(p.requires_grad for p in base.parameters())
    assert one.adapter.digest() == two.adapter.digest() and one.losses == two.losses and len(one.losses) == 4
    assert one.router_state is None and one.adapter.recipe["method"] == method
    start = quick(method, base, adapters, steps=0) if method in COEFFICIENTS else None
    assert start is None or start.adapter.digest() != one.adapter.digest()


@pytest.mark.parametrize("method", [*COEFFICIENTS, "lorahub"])
def test_the_order_of_skills_is_irrelevant(method):
    found = []
    for turn in (1, -1):
        base = llama()
        found.append(quick(method, base, skills_for(method, base)[::turn], steps=6).adapter)
    same_update(*found, tolerance=2e-4)
    assert {i["name"] for i in found[0].recipe["inputs"]} == {i["name"] for i in found[1].recipe["inputs"]}


def test_learning_lowers_the_loss_and_lorahub_never_ends_above_its_start(base):
    """Answers that one skill alone gives: every method should lean towards it."""
    model = copy.deepcopy(base)
    adapters = equal_skills(base)
    teacher = fold(copy.deepcopy(base), adapters[0])
    data = []
    for row in rows(24):
        ids = list(row.ids[: row.prompt_length])
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(teacher(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        data.append(Encoded(tuple(ids), row.prompt_length))
    plain = held_out_loss(model, data, PAD)
    for method in ("cat", "recycling", "rank_cat", "lorahub"):
        options = {"parameters": {"parametrisation": "free"}} if method == "cat" else {}
        found = quick(method, model, adapters, data, steps=40, **options)
        with attach(model, [found.adapter]) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            assert held_out_loss(model, data, PAD) < plain - 0.01, method


def test_learning_follows_the_methods_recipe(base, registered):
    """Rate, batch, epochs or steps and kind of data are the recipe's, unless they are given."""

    def learned(method, recipe, data, **given):
        METHODS[method] = dataclasses.replace(METHODS[method], recipe=recipe)
        found = learn(method, copy.deepcopy(base), equal_skills(base), data, PAD, on_step=lambda step, loss: True, **given)
        return found.learning_rate, found.steps, found.losses

    def told(*asked, **given):
        return learned(*asked, **given)[:2]

    assert told("recycling", Recipe(0.07, 8, steps=9), rows()) == (0.07, 9)
    assert told("cat", Recipe(2e-4, 8, epochs=2), rows(22)) == (2e-4, 6)  # 18 rows to learn on, batches of 8
    assert told("cat", Recipe(2e-4, 4, epochs=3), rows(22)) == (2e-4, 15)
    assert told("cat", Recipe(2e-4, 4, epochs=3), rows(22), rates=(0.5,), batch_size=9, epochs=1) == (0.5, 2)
    assert told("lorahub", Recipe(None, 5, steps=7, data="target", rows=5), rows(5)) == (None, 1)  # stopped after one try
    with_answers, without = (
        [learned("recycling", Recipe(0.07, 8, steps=2, data=data), rows(12, completion_seed=seed))[2] for seed in (1, 2)]
        for data in ("mix", "prompts")
    )
    assert with_answers[0] != with_answers[1] and without[0] == without[1]


def test_the_best_look_at_the_held_out_rows_is_kept_where_the_recipe_says_so(base, registered):
    model, adapters, data = copy.deepcopy(base), two_skills(base), rows(20)
    recipe = METHODS["recycling"].recipe
    assert recipe.check_every == 10

    def learned(check_every):
        METHODS["recycling"] = dataclasses.replace(METHODS["recycling"], recipe=dataclasses.replace(recipe, check_every=check_every))
        return learn("recycling", model, adapters, data, PAD, rates=(1.0,), steps=25)  # random rows: the longer, the worse

    last, best = learned(None), learned(10)
    assert last.kept_step is None and best.kept_step == 10 and best.losses == last.losses
    assert best.sweep[0][1] < last.sweep[0][1]
    _, held_out = learning.split_held_out(data, 0)
    with attach(model, [best.adapter]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        assert held_out_loss(model, held_out, PAD) == pytest.approx(best.sweep[0][1], rel=1e-5)


def test_a_run_that_keeps_its_best_goes_on_exactly_after_a_kill(base, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def die(step, loss):
        if step == 13:
            raise Killed

    def learned(**given):
        return learn("recycling", copy.deepcopy(base), two_skills(base), rows(20), PAD, rates=(0.3,), steps=25, **given)

    whole = learned()
    monkeypatch.setattr(learning, "fit", functools.partial(learning.fit, checkpoint_seconds=0))
    with pytest.raises(Killed):
        learned(checkpoint=tmp_path / "state", on_step=die)
    assert list(tmp_path.glob("*-best"))
    again = learned(checkpoint=tmp_path / "state")
    assert again.kept_step == whole.kept_step and again.adapter.digest() == whole.adapter.digest()


def make_router(with_objective: bool):
    class toy_router(nn.Module):
        """The same shares for every token."""

        def __init__(self, stack, *, start: float = 0.0):
            super().__init__()
            self.logits = nn.Parameter(torch.full((len(stack.skills),), start))
            stack.set_routers(dict.fromkeys(stack.modules, self.share))
            self.asked = 0

        def share(self, x):
            return self.logits.softmax(0).expand(*x.shape[:-1], -1)

    if with_objective:

        def objective(self, model, batch):
            assert model.training and torch.is_grad_enabled()
            self.asked += 1
            value, count = token_loss(model, batch)
            return 2 * value, count

        toy_router.objective = objective
    toy_router.__name__ = "toy_router"
    merge_method(label="x", paper="https://example.org", formula="x", recipe=Recipe(0.1, 4, steps=3))(toy_router)


@pytest.mark.parametrize("with_objective", [False, True])
def test_a_router_is_learned_and_keeps_the_state_of_the_best_rate(registered, with_objective):
    make_router(with_objective)
    base = llama()
    adapters = three_skills(base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found = learn("toy_router", base, adapters, rows(), PAD, rates=(0.1, 1e-6))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert found.adapter is None and found.router_state["logits"].abs().max() > 0 and found.steps == 3
    held = dict(found.sweep)
    assert held[found.learning_rate] == min(held.values())
    plain = learn("toy_router", base, adapters, rows(), PAD, rates=(1e-6,))
    # The objective doubles the loss; what is held out is the loss itself.
    assert (plain.losses[0] > 1.9 * held[1e-6]) == with_objective
    with attach(base, adapters) as stack:
        router = build("toy_router", stack)
        router.load_state_dict(found.router_state)
        weights = found.router_state["logits"].softmax(0)
        merged = merge("cat_static", adapters, weights.tolist())
        assert relative_error(logits(base), logits(fold(llama(), merged))) < 1e-5


def test_a_rate_whose_held_out_loss_is_nan_is_left_out(base, monkeypatch):
    values = iter([math.nan, 1.0, math.inf])
    monkeypatch.setattr(learning, "held_out_loss", lambda *_, **__: next(values))
    found = quick("cat", copy.deepcopy(base), equal_skills(base), rates=(1e-1, 1e-2))
    assert found.learning_rate == 1e-2 and found.sweep == [(1e-1, None), (1e-2, 1.0)]
    with pytest.raises(LabError, match="diverged at every"):
        quick("cat", copy.deepcopy(base), equal_skills(base), rates=(1e-1,))


def test_what_cannot_be_learned_is_refused(base):
    model = copy.deepcopy(base)
    adapters = equal_skills(base)
    cases = [
        ("cat_static", adapters, rows(), {}, "nothing to learn"),
        ("cat_random", adapters, rows(), {}, "nothing to learn"),
        ("cat", adapters[:1], rows(), {}, "at least 2, not 1"),
        ("lorahub", adapters[:1], rows(), {}, "at least 2, not 1"),
        ("cat", adapters, [], {}, "0 rows"),
        ("adamerging", adapters, [], {}, "no prompts"),
        ("adamerging", adapters, [Encoded((1, 2, 3), 0)], {}, "no prompts"),
        ("lorahub", adapters, [], {}, "no rows"),
        ("lorahub", adapters, [Encoded((1, 2, 3), 3)], {}, "No row has a completion"),
        ("cat", adapters, rows(), {"rates": ()}, "no learning rate"),
        ("cat", adapters, rows(), {"rates": (0.0,)}, "above 0"),
        ("cat", adapters, rows(), {"batch_size": 0}, "batch_size is 0"),
        ("recycling", adapters, rows(), {"parameters": {"start": 1}}, "no parameter 'start'"),
        ("lorahub", adapters, rows(), {"parameters": {"semantics": "sum"}}, "choose one of"),
    ]
    for method, skills, data, options, says in cases:
        with pytest.raises(LabError, match=says):
            learn(method, model, skills, data, PAD, **options)
    with pytest.raises(LabError, match="does not search"):
        search("cat", adapters, lambda merged: 0.0)
    with attach(model, adapters) as stack, pytest.raises(LabError, match="no parameters to train"):
        build("lorahub", stack)
    with pytest.raises(LabError, match="learns its coefficients"):
        merge("lorahub", adapters)
    assert torch.equal(logits(model), logits(base))
