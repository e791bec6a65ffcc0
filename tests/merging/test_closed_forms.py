"""What sees prompts: closed forms (RegMean, IterIS), NSC, π-Tuning, and general knowledge subtracted from Arrow's skills."""

import dataclasses
import math

import pytest
import torch

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.stacked import attach
from lab.merging import METHODS, build, freeze, merge, solve
from lab.merging.inputs import equal_lengths, read_by
from lab.merging.learn import learn
from lab.merging.methods.arrow import prototype
from lab.merging.methods.nsc import NullSpaceRatio, null_space_ratio, row_space
from lab.merging.methods.regmean import skill_grams
from lab.training.loop import collate
from tests.merging.test_learned import PAD, quick, rows, same_update
from tests.merging.test_routers import recorded
from tests.tiny_models import adapter, llama, logits, relative_error, three_skills, tokens, two_skills


@pytest.fixture(scope="module")
def base():
    return llama()


def labelled(adapters, count=12):
    """Rows of every skill, each skill's prompts from its own seed."""
    return [
        dataclasses.replace(row, skill=a.name)
        for seed, a in enumerate(adapters)
        for row in rows(count, seed=seed, completion_seed=50 + seed)
    ]


def prompts(adapters, count=12):
    return {
        a.name: [row.ids[: row.prompt_length] for row in labelled(adapters, count) if row.skill == a.name] for a in adapters
    }


def rewritten(skill, pad=2):
    """The same updates as other factors, with zeros at the end."""
    modules = {}
    for number, (module, f) in enumerate(skill.modules.items()):
        R = 2 * torch.linalg.qr(torch.randn(f.rank, f.rank, generator=torch.Generator().manual_seed(number))).Q
        A = torch.cat([R.inverse() @ f.A, torch.zeros(pad, f.A.shape[1])])
        modules[module] = LoraFactors(A, torch.cat([f.B @ R, torch.zeros(f.B.shape[0], pad)], dim=1), f.scaling)
    return LoraAdapter(skill.name, skill.base, modules)


# RegMean and IterIS


def test_prompts_of_one_length_go_together():
    given = [[1, 2], [3], [4, 5], [6], [7, 8, 9]]
    found = [(places, ids.tolist()) for places, ids in equal_lengths(given, "cpu")]
    assert found == [([1, 3], [[3], [6]]), ([0, 2], [[1, 2], [4, 5]]), ([4], [[7, 8, 9]])]


def test_grams_are_of_what_the_skill_itself_makes_its_modules_read(base):
    skill, module = two_skills(base)[0], "model.layers.1.mlp.up_proj"  # which that skill does not change
    own = prompts([skill])[skill.name]
    G = skill_grams(base, skill, own, [module])[module]
    seen = []
    with attach(base, [skill]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        with read_by(base, [module]) as inputs, torch.no_grad():
            for prompt in own:
                base(input_ids=torch.tensor([prompt]))
                seen.append(inputs[module])
    X = torch.cat(seen).double()
    torch.testing.assert_close(G, X.T @ X / len(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0])
def test_regmean_is_least_squares(base, off_diagonal):
    adapters = three_skills(base)
    merged = solve("regmean", adapters, base, prompts(adapters, 60), off_diagonal=off_diagonal)
    modules = module_names(adapters)
    grams = [skill_grams(base, a, prompts(adapters, 60)[a.name], modules) for a in adapters]
    assert list(merged.modules) == modules
    for module in modules:
        G = [g[module] * off_diagonal + g[module].diagonal().diag() * (1 - off_diagonal) for g in grams]
        deltas = [a.delta_weight(module).double() if module in a.modules else torch.zeros(1) for a in adapters]
        normal = merged.delta_weight(module).double() @ sum(G) - sum(
            d @ g if d.ndim == 2 else 0 for d, g in zip(deltas, G, strict=True)
        )
        assert normal.norm() < 1e-4 * merged.delta_weight(module).norm() * sum(G).norm()
        assert merged.modules[module].rank == sum(a.modules[module].rank for a in adapters if module in a.modules)
    assert merged.recipe["method"] == "regmean" and [i["name"] for i in merged.recipe["inputs"]] == ["code", "math", "style"]


@pytest.mark.parametrize("name", ["regmean", "iteris"])
def test_closed_forms_of_equal_skills_are_that_skill_and_see_no_factors(base, name):
    skill = two_skills(base)[0]
    twice = [dataclasses.replace(skill, name=n) for n in "ab"]
    same_update(solve(name, twice, base, prompts(twice)), skill, 1e-3)
    same_update(solve(name, twice[:1], base, prompts(twice)), skill, 1e-3)
    adapters = two_skills(base)
    found = solve(name, adapters, base, prompts(adapters))
    same_update(solve(name, [rewritten(a) for a in adapters], base, prompts(adapters)), found, 2e-3)
    same_update(solve(name, adapters[::-1], base, prompts(adapters)), found, 1e-4)


def test_iteris_answers_its_own_inputs_as_the_skills_would_theirs(base):
    """Below RegMean's error where both models are really run: Σ_i λ_i ‖M x̃ − ΔW_i x‖², with x̃ the merged model's inputs."""
    adapters = [adapter(base, n, s, lora_alpha=64, target_modules="all-linear") for s, n in enumerate(["a", "b"], 1)]
    given = prompts(adapters, 80)

    def error(merged):
        total, modules = 0.0, module_names(adapters)
        for skill in adapters:
            sums = dict.fromkeys(modules, 0.0)
            size = dict.fromkeys(modules, 0.0)
            with (
                attach(base, [skill, dataclasses.replace(merged, name="m")]) as stack,
                read_by(base, modules) as inputs,
                torch.no_grad(),
            ):
                for _, ids in equal_lengths(given[skill.name], "cpu"):
                    seen = []
                    for c in ([1.0, 0.0], [0.0, 1.0]):
                        stack.set_coefficients(torch.tensor(c)[:, None].expand(2, len(modules)))
                        base(input_ids=ids)
                        seen.append(dict(inputs))
                    for m in modules:
                        wanted = seen[0][m] @ skill.delta_weight(m).T
                        sums[m] += (seen[1][m] @ merged.delta_weight(m).T - wanted).square().sum().item()
                        size[m] += wanted.square().sum().item()
            total += sum(sums[m] / size[m] for m in modules)
        return total

    first = error(solve("regmean", adapters, base, given, off_diagonal=1.0))
    assert error(solve("iteris", adapters, base, given, rounds=8)) < 0.95 * first


@pytest.mark.parametrize("name", ["regmean", "iteris", "nsc", "prompt_router"])
def test_what_sees_prompts_never_sees_an_answer_and_asks_whose_they_are(base, name):
    adapters = two_skills(base)
    data = labelled(adapters)
    options = {"rates": ()} if METHODS[name].recipe.learning_rate is None else {}
    other = [dataclasses.replace(r, ids=(*r.ids[: r.prompt_length], 9, 9)) for r in data]
    one, two = (quick(name, base, adapters, d, **options) for d in (data, other))
    if name == "prompt_router":
        assert all(torch.equal(v, two.router_state[k]) for k, v in one.router_state.items())
    else:
        assert one.adapter.digest() == two.adapter.digest()
    with pytest.raises(LabError, match=f"{name} needs .*prompt.*a file of rows per skill"):
        quick(name, base, adapters, [dataclasses.replace(r, skill="") for r in data], **options)
    assert METHODS[name].sees == "the skills' prompts"


def test_solve_names_what_it_cannot_do(base):
    adapters = two_skills(base)
    for name, message in {"cat": "no closed form", "ties": "no closed form"}.items():
        with pytest.raises(LabError, match=message):
            solve(name, adapters, base, prompts(adapters))
    with pytest.raises(LabError, match="regmean needs prompts of every skill, and code has none"):
        solve("regmean", adapters, base, {"math": [[1, 2]]})
    with attach(base, adapters) as stack, pytest.raises(LabError, match="no parameters to train"):
        build("regmean", stack)
    with pytest.raises(LabError, match="learns its coefficients from data"):
        merge("regmean", adapters)


# NSC


def test_null_space_ratio_is_the_part_that_a_does_not_read():
    A = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    skill = LoraFactors(torch.cat([A, torch.zeros(2, 10)]), torch.randn(8, 5))
    Q = row_space(skill)
    assert Q.shape == (10, 3)
    x = torch.randn(6, 10)
    outside = x - x @ A.T @ torch.linalg.inv(A @ A.T) @ A
    torch.testing.assert_close(null_space_ratio(x, Q), outside.norm(dim=1) / x.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert row_space(LoraFactors(A, torch.zeros(8, 3))).shape == (10, 0)


def test_nsc_counts_each_rows_own_skill_and_no_padding(base):
    adapters = two_skills(base)
    objective = NullSpaceRatio(adapters)
    data = [dataclasses.replace(r, ids=(*r.ids[: r.prompt_length], PAD), prompt_length=0) for r in labelled(adapters, 4)]
    with attach(base, adapters), torch.no_grad():
        together, count = objective(base, collate(data, PAD))
        alone = [objective(base, collate([row], PAD)) for row in data]
    assert count == sum(c for _, c in alone) == sum(len(row.ids) - 1 for row in data)
    torch.testing.assert_close(together, sum(v for v, _ in alone), rtol=1e-4, atol=1e-4)


def test_nsc_lowers_its_ratio_from_equal_shares(base):
    adapters = two_skills(base)
    data = labelled(adapters, 20)
    still = learn("nsc", base, adapters, data, PAD, rates=(1e-9,), steps=1, batch_size=40)
    moved = learn("nsc", base, adapters, data, PAD, rates=(0.05,), steps=60, batch_size=40)
    assert moved.losses[-1] < still.losses[0] - 1e-4
    same_update(still.adapter, merge("cat_static", adapters), 1e-4)


# π-Tuning


def test_pi_tuning_is_cat_softmax_until_it_learns_and_freezes_to_what_it_computes(base):
    adapters = three_skills(base)
    with attach(base, adapters) as stack:
        build("cat_softmax", stack)
        expected = logits(base)
    with attach(base, adapters) as stack:
        learner = build("pi_tuning", stack, tuned="code")
        assert relative_error(logits(base), expected) < 1e-5
        base(input_ids=tokens(), labels=tokens()).loss.backward()
        assert learner.raw.grad.abs().max() > 0 and sum(bool(p.grad.abs().max()) for p in learner.moves) == len(learner.moves)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        live, frozen = logits(base), freeze(stack, learner)
        assert relative_error(live, expected) > 1e-3
    assert not any(p.requires_grad and p.grad is not None for p in base.parameters())
    with attach(base, [frozen]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        assert relative_error(logits(base), live) < 1e-5
    # Its coefficients are of factors that no longer are the skill's, so nobody may take them for alphas.
    assert frozen.recipe["tuned"] == "code" and "coefficients" not in frozen.recipe
    assert frozen.rank == merge("cat_static", adapters).rank


def test_pi_tuning_learns_both_and_takes_the_largest_by_default(base):
    adapters = three_skills(base)
    found = learn("pi_tuning", base, adapters, rows(16), PAD, rates=(0.05,), steps=30, batch_size=16)
    only = learn("pi_tuning", base, adapters, rows(16), PAD, rates=(0.05,), steps=30, batch_size=16, parameters={"pace": 0.0})
    assert found.losses[-1] < only.losses[-1] < only.losses[0]
    energies = {a.name: sum(a.delta_weight(m).square().sum().item() for m in a.modules) for a in adapters}
    assert found.adapter.recipe["tuned"] == max(energies, key=energies.get)
    with attach(base, adapters) as stack, pytest.raises(LabError, match="tuned is 'x'; choose one of math, code, style"):
        build("pi_tuning", stack, tuned="x")


# General knowledge subtracted


def test_gen_know_sub_adds_what_a_skill_has_beyond_general_knowledge(base):
    adapters = [adapter(base, n, s) for s, n in enumerate(["math", "code", "general"], 1)]
    with attach(base, adapters) as stack:
        router = build("gen_know_sub", stack, general="general", top_k=1)
        shares = recorded(router, base)
        live = logits(base)
    purified = []
    for skill in adapters[:2]:
        modules = {
            m: LoraFactors(torch.cat([f.A, g.A]), torch.cat([f.scaling * f.B, -g.scaling * g.B], dim=1))
            for (m, f), g in zip(skill.modules.items(), adapters[2].modules.values(), strict=True)
        }
        purified.append(LoraAdapter(skill.name, "", modules))
    with attach(base, purified) as stack:
        other = build("arrow", stack, top_k=1)
        theirs = recorded(other, base)
        assert relative_error(live, logits(base)) < 1e-5
    for index, c in shares.items():
        assert c[..., 1].eq(-1).all()  # alphabetical: code, general, math
        torch.testing.assert_close(c[..., [0, 2]], theirs[index])


def test_gen_know_sub_without_a_general_lora_subtracts_the_mean(base):
    adapters = three_skills(base)
    with attach(base, adapters) as stack:
        router = build("gen_know_sub", stack, temperature=0.5)
        for index, c in recorded(router, base).items():
            present = router.present[index]
            torch.testing.assert_close((c + present / 3).sum(-1), torch.ones(c.shape[:-1]))
            assert c[..., ~present].eq(0).all()
        index = stack.modules.index("model.layers.0.self_attn.q_proj")
        mean = sum(a.delta_weight(stack.modules[index]) for a in adapters if stack.modules[index] in a.modules) / 3
        math_ = next(a for a in adapters if a.name == "math").delta_weight(stack.modules[index])
        top = torch.linalg.svd(math_ - mean).Vh[0]
        found = router.get_buffer(f"prototypes_{index}")[router.sorted_skills.index("math")]
        assert abs(float(found @ top)) == pytest.approx(1, abs=1e-4)
        assert not math.isclose(abs(float(prototype(adapters[0].modules[stack.modules[index]]) @ top)), 1, abs_tol=1e-3)
        with pytest.raises(LabError, match="general is 'x'; attach it beside the skills"):
            build("gen_know_sub", stack, general="x")
