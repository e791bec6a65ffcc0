"""What must hold of every method in the registry, new ones included: how a skill is written does not change a merge.

Padding, another split into factors, another order, another share of an update's size between A and B; one skill, equal skills,
skills of zeros; NaN. A static method is compared by its updates, untruncated; a learned one by the adapter that its start gives,
a search by what it finds, a router by the logits of the model under it.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.stacked import attach
from lab.merging import METHODS, build, freeze, merge, merge_full_rank, schema, search, solve
from tests.tiny_models import llama, logits

MODULES = {
    "model.layers.0.self_attn.q_proj": (16, 16),
    "model.layers.1.mlp.up_proj": (24, 16),
    "model.layers.1.self_attn.o_proj": (16, 16),
}
STATIC = [name for name, method in METHODS.items() if method.recipe is None and method.kind != "router"]
SPLIT_MATTERS = {name for name, method in METHODS.items() if method.depends_on_split}
CLOSE = 2e-4  # of the norm: rounding in fp32

# One skill alone, at weight 1 and with nothing pruned, is that skill, but for:
NOT_THE_SKILL = {
    "iso_c": "flattens the spectrum of any update",
    "iso_cts": "flattens the spectrum of any update",
    "adamerging": "starts at 0.3 of each skill",
    "recycling": "starts as the base",
    "cat": "starts at 0.5 of each skill",
}
# Equal skills, by the default weights and with nothing pruned, give that skill, but for (how many times it, of k skills; None:
# another update):
EQUAL_SKILLS = {
    "task_arithmetic": lambda k: k,  # weights 1: a sum
    "linear_factors": lambda k: k,  # (Σ √(1/k) B)(Σ √(1/k) A)
    "magnitude_prune_factors": lambda k: k,
    "dare_linear_factors": lambda k: k,
    "cat": lambda k: k / 2,  # 0.5 each at the start
    "adamerging": lambda k: 0.3 * k,
    "recycling": lambda k: 0,
    "iso_c": None,  # a flat spectrum
    "iso_cts": None,
    "pico": None,  # the strongest directions are shared, and so weakened most
}


# Routers under which one skill, or equal ones, leave the base as it is:
THE_BASE = {
    "gen_know_sub": "nothing is left of a skill less the mean of all",
    "prompt_router": "sends every prompt to the base until it has learned",
}


@pytest.fixture(scope="module")
def base():
    return llama()


def skill(name, seed, ranks=(4, 4, 4), scaling=1.0):
    """Random factors in MODULES; a rank of 0 leaves the module out."""
    draw = torch.Generator().manual_seed(seed)
    modules = {
        module: LoraFactors(torch.randn(r, n_in, generator=draw) / 4, torch.randn(n_out, r, generator=draw) / 2, scaling)
        for (module, (n_out, n_in)), r in zip(MODULES.items(), ranks, strict=True)
        if r
    }
    return LoraAdapter(name, "", modules)


def skills_for(name):
    """As many and as unequal as the method takes."""
    method = METHODS[name]
    if method.equal_ranks:
        return [skill("a", 1, scaling=2.0), skill("b", 2), skill("c", 3, scaling=0.5)]
    found = [skill("a", 1, (4, 3, 4), 2.0), skill("b", 2, (2, 5, 2)), skill("c", 3, (3, 3, 0), 0.5)]
    return found[: method.max_skills]


FIRST = {m: f.delta_weight() for m, f in skill("a", 1, scaling=2.0).modules.items()}


def all_kept(name):
    return {"density": 1.0} if "density" in {p.name for p in schema(name)} else {}


def from_the_first(adapter):
    """A loss that a search can lower: the squared distance from the first skill."""
    return sum((adapter.delta_weight(m) - update).square().mean().item() for m, update in FIRST.items() if m in adapter.modules)


def outcome(name, skills, weights=None, learned=False, **options):
    """What the method makes of the skills: tensors by name. weights go to static methods, which alone take them.

    learned: let coefficients have gone some way, each another.
    """
    method = METHODS[name]
    if method.kind == "search":
        found = search(name, skills, from_the_first, 20, **options)
        return {module: found.delta_weight(module) for module in found.modules}
    if method.kind == "solve":
        prompts = {s.name: [(1, 2 + i, 3, 4), (5, 6, 7 + i)] for i, s in enumerate(sorted(skills, key=lambda s: s.name))}
        found = solve(name, skills, llama(), prompts, **options)
        return {module: found.delta_weight(module) for module in found.modules}
    if name in STATIC:
        weights = None if method.kind == "coefficients" else weights
        full = merge_full_rank(name, skills, weights, **options)
        return {module: update.delta_weight() for module, update in full.modules.items()}
    model = llama()
    with attach(model, skills) as stack, torch.no_grad():
        learner = build(name, stack, **options)
        if method.kind == "router":
            return {"logits": logits(model)}
        if learned:
            learner.raw += torch.linspace(0, 1, learner.raw.numel()).view_as(learner.raw)
        found = freeze(stack, learner)
    return {module: found.delta_weight(module) for module in found.modules}


def same(ours, theirs, tolerance=CLOSE):
    assert ours.keys() == theirs.keys()
    for module, update in theirs.items():
        distance = (ours[module] - update).norm().item()
        assert distance <= tolerance * update.norm().item() + 1e-6, (module, distance, update.norm().item())


def rewritten(adapter, change):
    """The adapter with every module's factors changed: change(A, B) -> (A, B)."""
    return replace(adapter, modules={m: LoraFactors(*change(f.A, f.B), f.scaling) for m, f in adapter.modules.items()})


def padded(A, B):
    return torch.cat([A, torch.zeros(2, A.shape[1])]), torch.cat([B, torch.zeros(B.shape[0], 2)], dim=1)


def with_a_dead_rank(A, B):
    """A rank whose row of A is anything and whose column of B is zero: the update stays."""
    return torch.cat([A, torch.randn(2, A.shape[1], generator=torch.Generator().manual_seed(5))]), padded(A, B)[1]


def resplit(A, B):
    R = torch.eye(len(A)) + 0.3 * torch.randn(len(A), len(A), generator=torch.Generator().manual_seed(len(A)))
    return torch.linalg.solve(R, A), B @ R


def split_in_two(A, B):
    """The same update at twice the rank: null directions that are no padding."""
    return torch.cat([A, A]), torch.cat([B / 2, B / 2], dim=1)


def rescaled(A, B):
    return A / 4, 4 * B


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_merge(name):
    skills = skills_for(name)
    wide = [rewritten(skills[0], padded), *skills[1:]]
    same(outcome(name, wide), outcome(name, skills))
    if name in STATIC:  # nor the rank that is kept
        cut, before = merge(name, wide), merge(name, skills)
        same({m: cut.delta_weight(m) for m in cut.modules}, {m: before.delta_weight(m) for m in before.modules})


@pytest.mark.parametrize("change", [with_a_dead_rank, resplit, split_in_two, rescaled])
@pytest.mark.parametrize("name", sorted(set(METHODS) - SPLIT_MATTERS))
def test_how_an_update_is_split_into_factors_changes_no_merge(name, change):
    skills = skills_for(name)
    same(outcome(name, [rewritten(skills[0], change), *skills[1:]]), outcome(name, skills))


@pytest.mark.parametrize("name", sorted(SPLIT_MATTERS))
def test_where_the_registry_says_that_the_split_matters_it_does(name):
    skills = skills_for(name)
    turned = outcome(name, [rewritten(skills[0], resplit), *skills[1:]], learned=True)
    before = outcome(name, skills, learned=True)
    assert any((turned[m] - before[m]).norm() > 0.01 * before[m].norm() for m in before)


@pytest.mark.parametrize("name", sorted({"core_space", "pico"} & set(METHODS)))
@pytest.mark.parametrize("change", [with_a_dead_rank, resplit, split_in_two, rescaled])
def test_bases_of_the_updates_do_not_see_the_split(name, change):
    skills = skills_for(name)
    changed = [rewritten(skills[0], change), *skills[1:]]
    same(outcome(name, changed, basis="updates"), outcome(name, skills, basis="updates"))


@pytest.mark.parametrize("name", METHODS)
def test_order_changes_no_merge(name):
    skills = skills_for(name)
    weights = [0.3, 0.9, 0.6][: len(skills)]
    same(outcome(name, skills[1:] + skills[:1], weights[1:] + weights[:1]), outcome(name, skills, weights), 1e-5)


def multiple(found, wanted):
    """The nearest multiple of each update: a search ends where its loss leads."""
    return {m: (found[m] * update).sum() / update.square().sum() * update for m, update in wanted.items()}


@pytest.mark.parametrize("name", METHODS)
def test_one_skill_is_that_skill(base, name):
    """Routers included: whatever they say, one skill has all of the weight."""
    alone = skills_for(name)[:1]
    if name == "remix":
        with pytest.raises(LabError, match="nothing to choose"):
            outcome(name, alone)
        return
    found = outcome(name, alone, [1.0], **all_kept(name))
    wanted = {m: f.delta_weight() for m, f in alone[0].modules.items()}
    if METHODS[name].kind == "router":
        model = copy.deepcopy(base)
        with attach(model, alone) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            wanted = {"logits": logits(base if name in THE_BASE else model)}
    if METHODS[name].kind == "search":
        same(found, multiple(found, wanted))
    elif name in NOT_THE_SKILL:
        assert any((found[m] - wanted[m]).norm() > 0.01 * wanted[m].norm() for m in wanted)
    else:
        same(found, wanted)


@pytest.mark.parametrize("name", METHODS)
def test_equal_skills_give_that_skill(base, name):
    first = skills_for(name)[0]
    equal = [replace(first, name=letter) for letter in "abc"[: METHODS[name].max_skills or 3]]
    found = outcome(name, equal, **all_kept(name))
    wanted = {m: f.delta_weight() for m, f in first.modules.items()}
    if METHODS[name].kind == "router":
        wanted = {"logits": logits(base)} if name in THE_BASE else outcome("moe", [first])  # which has all of the weight
    times = EQUAL_SKILLS.get(name, lambda k: 1)
    if METHODS[name].kind == "search":
        same(found, multiple(found, wanted))
    elif times is None:
        assert any((found[m] - wanted[m]).norm() > 0.01 * wanted[m].norm() for m in wanted)
    else:
        same(found, {m: times(len(equal)) * update for m, update in wanted.items()})


@pytest.mark.parametrize("name", METHODS)
def test_skills_of_zeros(name):
    """One of zeros leaves a finite merge; all of zeros are the base, whether B is zero, as training starts, or A too."""
    skills = skills_for(name)
    for change in (lambda A, B: (A, 0 * B), lambda A, B: (0 * A, 0 * B)):
        found = outcome(name, [rewritten(skills[0], change), *skills[1:]])
        assert all(tensor.isfinite().all() for tensor in found.values())
        nothing = outcome(name, [rewritten(s, change) for s in skills])
        if METHODS[name].kind == "router":
            same(nothing, {"logits": logits(llama())}, 1e-6)
        else:
            assert all(update.norm() == 0 for update in nothing.values())
        if name in STATIC:
            assert all(
                f.rank and f.delta_weight().norm() == 0
                for f in merge(name, [rewritten(s, change) for s in skills]).modules.values()
            )


@pytest.mark.parametrize("name", METHODS)
def test_nan_is_refused(name):
    skills = skills_for(name)
    with pytest.raises(LabError, match="'a' has NaN"):
        rewritten(skills[0], lambda A, B: (A * math.nan, B))
    if name in STATIC and METHODS[name].kind != "coefficients":
        with pytest.raises(LabError, match="NaN"):
            merge(name, skills, [math.nan, *[1.0] * (len(skills) - 1)])
    for parameter in METHODS[name].parameters:
        if parameter.type is float:
            with pytest.raises(LabError, match=f"^{name}: {parameter.name} is nan"):
                outcome(name, skills, **{parameter.name: math.nan})
