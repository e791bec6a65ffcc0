"""Routers: equal to PEFT or to their formula, shares sum to 1, cached decoding is exact, only the router learns."""

import copy
import itertools
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import XLoraConfig, get_peft_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer, create_arrow_model
from peft.tuners.lora.config import ArrowConfig
from torch import nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.peft_io import save
from lab.lora.stacked import attach
from lab.merging import build, freeze, merge
from lab.merging.methods.remix import leave_one_out, log_probability, sample
from lab.merging.routing import load_router, save_router
from lab.training.loop import IGNORED, Batch, TrainConfig, fit, token_loss
from tests.tiny_models import adapter, gpt2, llama, logits, relative_error, three_skills, tokens, two_skills

ROUTERS = ["moe", "arrow", "xlora", "remix", "lora_flow"]
LEARNED = ["moe", "xlora", "remix", "lora_flow"]


def equal_skills(base, count=2, **settings):
    """Skills with the same modules; one of them is far stronger than the other in its first direction."""
    return [adapter(base, name, seed, **settings) for seed, name in enumerate(["math", "code", "style"][:count], 1)]


def shaken(router, size=0.5):
    """Parameters that are neither zero nor small, the same for the same router."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return router


def recorded(router, model, **inputs):
    """Coefficients by module number of one forward pass, skills in alphabetical order."""
    found, original = {}, router.coefficients

    def remember(index, x):
        found[index] = original(index, x)
        return found[index]

    router.coefficients = remember
    with torch.no_grad():
        model(**(inputs or {"input_ids": tokens()}))
    del router.coefficients
    return found


def state(model):
    return {name.replace(".base.", "."): p.clone() for name, p in model.state_dict().items()}


# Shares


@pytest.mark.parametrize("skills", [two_skills, three_skills])
@pytest.mark.parametrize("method", ROUTERS)
def test_rows_sum_to_1_over_the_skills_that_have_the_module(method, skills):
    base = llama()
    with attach(base, skills(base)) as stack:
        router = shaken(build(method, stack))
        if method == "lora_flow":  # its bias stands outside the softmax
            nn.init.zeros_(router.biases)
        found = recorded(router, base)
        assert set(found) == set(range(len(stack.modules)))
        differ = 0
        for index, c in found.items():
            assert c.shape == (2, 7, len(stack.skills)) and (c >= 0).all()
            torch.testing.assert_close(c.sum(-1), torch.ones(2, 7))
            lacking = [i for i, s in enumerate(router.sorted_skills) if stack.modules[index] not in _modules(stack, s)]
            assert (c[..., lacking] == 0).all()
            differ += (c.std(dim=(0, 1)) > 1e-4).any().item()
        assert differ, "the shares do not depend on the token"


def _modules(stack, skill):
    return next(a.modules for a in stack.adapters if a.name == skill)


@pytest.mark.parametrize("method", ROUTERS)
def test_routed_layer_is_the_formula(method):
    """Every layer's output is the base's plus the skills', each token with its own coefficients."""
    base = llama()
    with attach(base, three_skills(base)) as stack:
        router = shaken(build(method, stack))
        calls = {}
        for module, layer in stack.layers.items():
            layer.register_forward_hook(lambda _, args, out, m=module: calls.update({m: (args[0], out)}))
        found = recorded(router, base)
        for index, module in enumerate(stack.modules):
            x, out = calls[module]
            expected = stack.layers[module].base(x)
            for i, skill in enumerate(router.sorted_skills):
                if module in _modules(stack, skill):
                    delta = _modules(stack, skill)[module].delta_weight()
                    expected = expected + found[index][..., i : i + 1] * (x @ delta.T)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_moe_shares_are_mergoos(top_k):
    """mergoo: the softmax over the largest logits."""
    base = llama()
    with attach(base, equal_skills(base, 3)) as stack:
        router = shaken(build("moe", stack, top_k=top_k))
        x = torch.randn(2, 5, 16)
        ours = router.coefficients(0, x)
        logit = x @ router.weights[0].T
        value, chosen = logit.topk(top_k or 3, dim=-1)
        torch.testing.assert_close(ours, torch.zeros(2, 5, 3).scatter(-1, chosen, value.softmax(-1)))


def test_lora_flow_gate_is_the_papers():
    """softmax(W h) + b with what enters the layer, the same for all of the layer's modules."""
    base = llama()
    with attach(base, equal_skills(base)) as stack:
        router = shaken(build("lora_flow", stack))
        entering = {}
        for layer in (0, 1):
            base.model.layers[layer].register_forward_pre_hook(lambda _, args, n=layer: entering.update({n: args[0]}))
        found = recorded(router, base)
        for index, module in enumerate(stack.modules):
            layer = int(module.split(".")[2])
            expected = (entering[layer] @ router.weights[layer].T).softmax(-1) + router.biases[layer]
            torch.testing.assert_close(found[index], expected)


@pytest.mark.parametrize("method", ROUTERS)
def test_one_hot_router_is_that_skill_alone(method, monkeypatch):
    base = llama()
    skills = equal_skills(base)
    with attach(base, [skills[1]]):
        alone = logits(base)
    with attach(base, skills) as stack:
        router = build(method, stack)
        one_hot = torch.tensor([200.0, 0.0])  # alphabetical: code, math
        if method == "lora_flow":
            router.biases.data[:] = torch.tensor([0.5, -0.5])
        elif method == "xlora":
            router.weight.data.zero_()
            router.bias.data[:] = one_hot
        else:
            monkeypatch.setattr(f"lab.merging.methods.{method}.token_scores", lambda x, _: one_hot.expand(*x.shape[:-1], 2))
        assert relative_error(logits(base), alone) < 1e-6


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("moe", {"seed": None}), ("xlora", {"seed": None}), ("lora_flow", {}), ("arrow", {"temperature": 1e9})],
)
def test_uniform_router_is_cat_static(method, parameters):
    base = llama()
    skills = equal_skills(base, 3)
    with attach(base, [merge("cat_static", skills)]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        expected = logits(base)
    with attach(base, skills) as stack:
        build(method, stack, **parameters)
        assert relative_error(logits(base), expected) < 1e-5


@pytest.mark.parametrize("method", ROUTERS)
def test_order_of_skills_is_irrelevant(method):
    base = llama()
    results = []
    for shake in (False, True):
        for order in ([0, 1, 2], [2, 0, 1]):
            with attach(base, [three_skills(base)[i] for i in order]) as stack:
                router = build(method, stack)
                results.append(logits(base) if not shake else (shaken(router), logits(base))[1])
    assert relative_error(results[1], results[0]) < 1e-5 and relative_error(results[3], results[2]) < 1e-5
    assert method == "arrow" or relative_error(results[2], results[0]) > 1e-4


@pytest.mark.parametrize("method", ["moe", "arrow", "xlora", "lora_flow"])
def test_router_of_a_bf16_model_decides_in_fp32(method):
    base = llama()
    skills = equal_skills(base)
    with attach(base, skills) as stack:
        shaken(build(method, stack))
        expected = logits(base)
    base.to(torch.bfloat16)
    with attach(base, skills) as stack:
        router = shaken(build(method, stack))
        assert all(p.dtype == torch.float32 for p in router.parameters())
        assert all(c.dtype == torch.float32 for c in recorded(router, base).values())
        assert relative_error(logits(base).float(), expected) < 0.05
        if method != "arrow":
            base(input_ids=tokens(), labels=tokens()).loss.backward()
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in router.parameters())


@pytest.mark.parametrize("method", ROUTERS)
def test_detach_leaves_nothing_behind(method):
    base = llama()
    before, plain = state(base), logits(base)
    stack = attach(base, two_skills(base))
    shaken(build(method, stack))
    assert relative_error(logits(base), plain) > 1e-3
    stack.detach()
    assert torch.equal(logits(base), plain) and all(torch.equal(v, before[k]) for k, v in state(base).items())
    assert not any(module._forward_pre_hooks for module in base.modules())


# Against PEFT


def save_all(skills, folder):
    for skill in skills:
        save(folder / skill.name, skill)
    return [str(folder / skill.name) for skill in skills]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_arrow_is_pefts(top_k, tmp_path, monkeypatch):
    """PEFT's power iteration is given time to converge: it stops after 15 steps, and needs equal ranks and modules."""
    monkeypatch.setattr(ArrowLoraLinearLayer.top_right_singular_vec_from_BA, "__defaults__", (3000, 1e-30))
    base = llama()
    skills = equal_skills(base, 3)
    reference = create_arrow_model(
        copy.deepcopy(base), save_all(skills, tmp_path), ArrowConfig(top_k=top_k, router_temperature=0.3, rng_seed=0)
    ).eval()
    with attach(base, skills) as stack:
        build("arrow", stack, top_k=top_k, temperature=0.3)
        assert relative_error(logits(base), logits(reference)) < 1e-5


def test_arrow_does_not_see_how_an_update_is_factored():
    base = llama()
    skills = two_skills(base)
    with attach(base, skills) as stack:
        build("arrow", stack, top_k=1)
        expected = logits(base)
    for skill in skills:
        for factors in skill.modules.values():
            factors.A.mul_(-3)
            factors.B.div_(-3)
    with attach(base, skills) as stack:
        build("arrow", stack, top_k=1)
        assert relative_error(logits(base), expected) < 1e-5


def peft_xlora(base, skills, folder, **settings):
    model = copy.deepcopy(base)
    model.config.use_cache = False
    # PEFT loads the adapters under the names "0", "1", … whatever they are called here.
    named = {str(i): path for i, path in enumerate(save_all(skills, folder))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, adapters=named, **settings)
        return get_peft_model(model, config).eval()


def copy_classifier(router, reference, stack):
    """PEFT's weights to ours: its skills in the order given and its layers in the model's order."""
    linear = [layer for layer in reference.base_model.internal_xlora_classifier.layers if isinstance(layer, nn.Linear)]
    order = [stack.skills.index(skill) for skill in router.sorted_skills]
    with torch.no_grad():
        for ours, theirs in zip([m for m in router.hidden if isinstance(m, nn.Linear)], linear, strict=False):
            ours.load_state_dict(theirs.state_dict())
        units = [m for m, _ in stack.model.named_modules() if m in stack.modules] if router.layerwise else [None]
        weight = linear[-1].weight.view(-1 if router.layerwise else 1, len(order), linear[-1].weight.shape[1])
        bias = linear[-1].bias.view(-1 if router.layerwise else 1, len(order))
        for row, module in enumerate(units):
            index = stack.modules.index(module) if module else 0
            router.weight[index], router.bias[index] = weight[row, order], bias[row, order]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"layerwise": True, "temperature": 0.5}, {"layerwise_scalings": True, "softmax_temperature": 0.5}),
        ({"depth": 3, "size": 12}, {"xlora_depth": 3, "xlora_size": 12}),
    ],
)
def test_xlora_is_pefts_also_when_generating_with_a_cache(ours, theirs, tmp_path):
    base = llama()
    skills = equal_skills(base)
    reference = peft_xlora(base, skills, tmp_path, **theirs)
    with torch.no_grad():
        for parameter in reference.base_model.internal_xlora_classifier.parameters():
            parameter.mul_(5)  # so that the shares are far from equal
    with attach(base, skills) as stack:
        router = build("xlora", stack, **ours)
        copy_classifier(router, reference, stack)
        assert relative_error(logits(base), logits(reference)) < 1e-5
        prompt = {"input_ids": tokens()[:1], "attention_mask": torch.ones(1, 7, dtype=torch.long)}
        options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        options["eos_token_id"] = None
        cached = base.generate(**prompt, use_cache=True, **options)
        theirs = reference.generate(**prompt, **options)
        assert torch.equal(cached.sequences, theirs.sequences)
        torch.testing.assert_close(torch.cat(cached.logits), torch.cat(theirs.logits), rtol=1e-4, atol=1e-5)


def test_peft_xlora_does_not_renormalise_what_top_k_leaves(tmp_path):
    """The defect in PEFT, as documentation; our shares sum to 1 (the test of rows above covers all methods)."""
    base = llama()
    skills = equal_skills(base)
    reference = peft_xlora(base, skills, tmp_path, top_k_lora=1)
    layer = next(m.forward.__self__ for m in reference.modules() if hasattr(getattr(m, "forward", None), "__self__")
                 and hasattr(m.forward.__self__, "get_maybe_topk_scalings"))  # fmt: skip
    scalings = torch.tensor([0.6, 0.4]).expand(1, 1, 99, 2)
    assert layer.get_maybe_topk_scalings(scalings).sum().item() == pytest.approx(0.6)
    with attach(base, skills) as stack:
        for c in recorded(shaken(build("xlora", stack, top_k=1)), base).values():
            torch.testing.assert_close(c.sum(-1), torch.ones(2, 7))
            assert ((c == 0) | (c == 1)).all()


# Generation


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("method", ROUTERS)
def test_cached_decoding_is_the_full_forward_pass(method, make):
    base = make()
    target = {"target_modules": ["c_attn", "c_fc"]} if make is gpt2 else {}
    with attach(base, equal_skills(base, **target)) as stack, torch.no_grad():
        shaken(build(method, stack))
        ids = torch.randint(0, 32, (2, 12))
        full = base(input_ids=ids, use_cache=False).logits
        out = base(input_ids=ids[:, :5], use_cache=True)
        pieces = [out.logits]
        for position in range(5, 12):
            out = base(input_ids=ids[:, position : position + 1], past_key_values=out.past_key_values, use_cache=True)
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ROUTERS)
def test_left_padded_batch_answers_as_single_prompts(method):
    base = llama()
    prompts = [torch.randint(1, 32, (length,), generator=torch.Generator().manual_seed(length)) for length in (3, 9, 6)]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, 1
    with attach(base, three_skills(base)) as stack:
        shaken(build(method, stack))
        batch = base.generate(input_ids=ids, attention_mask=mask, **options)
        for row, prompt in enumerate(prompts):
            single = base.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None], **options)
            assert torch.equal(batch.sequences[row, 9:], single.sequences[0, len(prompt) :])
            found = torch.stack([step[row] for step in batch.logits])
            torch.testing.assert_close(found, torch.cat(single.logits), rtol=1e-3, atol=1e-4)


def test_xlora_refuses_what_would_be_silently_wrong():
    base = llama()
    with torch.no_grad():
        cache = base(input_ids=tokens(), use_cache=True).past_key_values
    with attach(base, equal_skills(base)) as stack:
        build("xlora", stack)
        with pytest.raises(LabError, match="empty cache"):
            base(input_ids=tokens()[:, :1], past_key_values=cache, use_cache=True)
        with pytest.raises(LabError, match="one beam"):
            base.generate(input_ids=tokens(), max_new_tokens=3, num_beams=2, pad_token_id=0)
    with attach(base, equal_skills(base)) as stack:
        build("xlora", stack)
        with pytest.raises(LabError, match="whole model"):
            base.model(input_ids=tokens())


# Learning


def what_a_skill_says(base, skill):
    """Labels that one skill alone would give, so that a router can do better than equal shares."""
    ids = torch.randint(1, 32, (6, 8), generator=torch.Generator().manual_seed(0))
    labels, mask = torch.full_like(ids, IGNORED), torch.ones_like(ids)
    with attach(base, [skill]), torch.no_grad():
        labels[:, 3:] = base(input_ids=ids).logits[:, 2:-1].argmax(-1)
    mask[0, 6:], labels[0, 6:] = 0, IGNORED
    return Batch(ids, labels, mask)


class Trainable(nn.Module):
    def __init__(self, model, router):
        super().__init__()
        self.router, self.model = router, model

    def forward(self, **inputs):
        return self.model(**inputs)


@pytest.mark.parametrize("method", LEARNED)
def test_learning_lowers_the_loss_and_moves_nothing_but_the_router(method):
    """The skills change gate_proj, which mergoo would train too, for its name."""
    base = llama()
    base.lm_head.weight.data *= 100  # a random model's logits are nearly equal, whatever the skills
    skills = equal_skills(base, 3, target_modules=["q_proj", "gate_proj"], r=8, lora_alpha=64)
    batch, before = what_a_skill_says(base, skills[2]), state(base)
    with attach(base, skills) as stack:
        router = build(method, stack)
        factors = {module: (layer.A_cat.clone(), layer.B_cat.clone()) for module, layer in stack.layers.items()}
        trainable = {n for n, p in Trainable(base, router).named_parameters() if p.requires_grad}
        assert trainable and all(name.startswith("router.") for name in trainable)
        start = token_loss(base, batch)[0].item()
        config = TrainConfig(steps=40, learning_rate=0.05)
        loss = getattr(router, "objective", token_loss)
        fit(Trainable(base, router), lambda step: [batch], config, loss=loss)
        with torch.no_grad():
            assert token_loss(base, batch)[0].item() < 0.5 * start
        assert all(torch.equal(v, before[k]) for k, v in state(base).items())
        for module, layer in stack.layers.items():
            assert torch.equal(layer.A_cat, factors[module][0]) and torch.equal(layer.B_cat, factors[module][1])


# ReMix


def test_remix_draws_as_its_probability_says():
    scores = torch.tensor([0.3, -1.0, 0.9, 0.1])
    draws = list(itertools.permutations(range(4), 2))
    chances = log_probability(scores.expand(len(draws), 4), torch.tensor(draws)).exp()
    q = scores.softmax(-1)
    torch.testing.assert_close(chances, torch.stack([q[i] * q[j] / (1 - q[i]) for i, j in draws]))
    assert chances.sum().item() == pytest.approx(1)
    torch.manual_seed(0)
    found = sample(scores.expand(40000, 4), 2)
    counted = torch.tensor([(found == torch.tensor(draw)).all(-1).float().mean() for draw in draws])
    assert (counted - chances).abs().max() < 0.01


class OneLayer(nn.Module):
    """Two adapted layers in a row over three tokens, with no attention: small enough to try every draw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.first, self.second = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.second(self.first(self.embed(input_ids)).tanh()))


def test_remix_gradient_is_unbiased(monkeypatch):
    """Its mean over all pairs of draws is the gradient of the expected loss over all draws, to rounding."""
    torch.manual_seed(1)
    skills = [
        LoraAdapter(name, "", {"first": LoraFactors(torch.randn(2, 4), torch.randn(4, 2))} | second)
        for name in "abc"
        for second in [{"second": LoraFactors(torch.randn(1, 4), torch.randn(5, 1))} if name != "c" else {}]
    ]
    model = OneLayer()
    batch = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([[IGNORED, 2, IGNORED]]), torch.tensor([[1, 1, 0]]))
    with attach(model, skills) as stack:
        router = shaken(build("remix", stack, top_k=1, samples=2))
        parameters = list(router.parameters())
        script = []
        monkeypatch.setattr("lab.merging.methods.remix.sample", lambda scores, k: script.pop(0))
        # Two tokens count (the third is padding): 3 × 3 draws in the first layer, 2 × 2 in the second.
        draws = [
            [torch.tensor(first + (0,)).view(1, 3, 1), torch.tensor(second + (0,)).view(1, 3, 1)]
            for first in itertools.product(range(3), repeat=2)
            for second in itertools.product(range(2), repeat=2)
        ]

        def chance_and_loss(draw):
            script.extend(draw)
            router._log_probability = torch.zeros(1, 3)
            out = model(batch.input_ids).logits
            chance = (router._log_probability * batch.attention_mask).sum().exp()
            router._log_probability = None
            return chance, nn.functional.cross_entropy(out[0, :1], batch.labels[0, 1:2]).detach()

        tried = [chance_and_loss(draw) for draw in draws]
        assert sum(c for c, _ in tried).item() == pytest.approx(1, abs=1e-5)
        expected_loss = sum(c * loss for c, loss in tried)
        exact = torch.autograd.grad(expected_loss, parameters)
        mean = [torch.zeros_like(p) for p in parameters]
        value = 0.0
        for (one, (p, _)), (two, (q, _)) in itertools.product(zip(draws, tried, strict=True), repeat=2):
            script.extend([*one, *two])
            loss, count = router.objective(model, batch)
            assert count == 1
            value += (p * q * loss).item()
            for total, gradient in zip(mean, torch.autograd.grad(loss, parameters), strict=True):
                total += (p * q).detach() * gradient
        assert value == pytest.approx(expected_loss.item(), abs=1e-4)
        for ours, true in zip(mean, exact, strict=True):
            assert true.norm() > 1e-4
            torch.testing.assert_close(ours, true, rtol=1e-3, atol=1e-5)


def test_remix_baseline_is_the_mean_of_the_other_samples():
    loss, chance = torch.tensor([[1.0], [4.0], [7.0]]), torch.zeros(3, 1, requires_grad=True)
    leave_one_out(loss, chance).backward()
    others = torch.tensor([[5.5], [4.0], [2.5]])
    torch.testing.assert_close(chance.grad, (loss - others) / 3)


def test_remix_needs_something_to_choose_and_uses_the_top_k():
    base = llama()
    with attach(base, two_skills(base)) as stack, pytest.raises(LabError, match="nothing to choose"):
        build("remix", stack, top_k=2)
    with attach(base, three_skills(base)) as stack:
        router = shaken(build("remix", stack, top_k=2))
        for index, c in recorded(router, base).items():
            k = min(2, int(router.present[index].sum()))
            assert ((c > 0).sum(-1) == k).all() and set(c.unique().tolist()) <= {0.0, 1 / k}
        assert torch.equal(logits(base), logits(base)), "outside learning nothing is drawn"


# Effective support


def test_effective_support_counts_the_skills_that_share_a_token():
    base = llama()
    with attach(base, equal_skills(base, 3)) as stack:
        uniform = build("moe", stack, seed=None)
        with uniform.effective_support() as support:
            logits(base)
        assert support.mean == pytest.approx(3, abs=1e-5) and set(support.modules) == set(stack.modules)
        before = support.mean
        shaken(uniform, 50)
        logits(base)
        assert support.mean == before, "outside the block nothing is counted"
        with uniform.effective_support() as sharp:
            logits(base)
        assert 1 <= sharp.mean < 1.3
        with build("remix", stack, top_k=2).effective_support() as support:
            logits(base)
        assert support.mean == pytest.approx(2, abs=1e-5)
        assert not base._forward_pre_hooks
    with pytest.raises(LabError, match="No token"), attach(base, equal_skills(base)) as stack:
        with build("moe", stack).effective_support() as support:
            pass
        _ = support.mean


def test_effective_support_is_the_mean_over_tokens_without_padding():
    base = llama()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with attach(base, two_skills(base)) as stack, torch.no_grad():
        router = shaken(build("moe", stack))
        c = recorded(router, base, input_ids=tokens(), attention_mask=mask)
        with router.effective_support() as support:  # also in two steps, with the cache
            out = base(input_ids=tokens()[:, :4], attention_mask=mask[:, :4], use_cache=True)
            base(input_ids=tokens()[:, 4:], attention_mask=mask, past_key_values=out.past_key_values)
        for index, module in enumerate(stack.modules):
            expected = (1 / c[index].square().sum(-1))[mask.bool()].mean().item()
            assert support.modules[module] == pytest.approx(expected, rel=1e-4)


# Files


@pytest.mark.parametrize("method", ROUTERS)
def test_saved_and_loaded_router_is_the_same(method, tmp_path):
    base = llama()
    skills = three_skills(base)
    parameters = {"remix": {"top_k": 2}, "xlora": {"depth": 2, "size": 6, "layerwise": True}, "moe": {"top_k": 2}}
    with attach(base, skills) as stack:
        router = shaken(build(method, stack, **parameters.get(method, {})))
        expected = logits(base)
        save_router(tmp_path / "router", router)
    with attach(base, skills[::-1]) as stack:
        loaded = load_router(tmp_path / "router", stack)
        assert relative_error(logits(base), expected) < 1e-5
        assert loaded.recipe == router.recipe
    recipe = json.loads((tmp_path / "router" / "recipe.json").read_text())
    assert recipe["method"] == method and [s["digest"] for s in recipe["inputs"]] == [s.digest() for s in skills]


def test_bad_router_folders_are_refused(tmp_path):
    base = llama()
    skills, folder = equal_skills(base), tmp_path / "router"
    with attach(base, skills) as stack:
        router = build("moe", stack)
        save_router(folder, router)
        with pytest.raises(LabError, match="exists already"):
            save_router(folder, router)
        save_router(folder, router, overwrite=True)
        with torch.no_grad():
            router.weights[0][0, 0] = torch.nan
        with pytest.raises(LabError, match="NaN"):
            save_router(tmp_path / "nan", router)
        assert [p.name for p in tmp_path.iterdir()] == ["router"]
        with pytest.raises(LabError, match="no recipe.json"):
            load_router(tmp_path / "none", stack)
        recipe, weights = (folder / "recipe.json").read_text(), (folder / "router.safetensors").read_bytes()
        for bad in ("{", "[]", "{}", json.dumps({**json.loads(recipe), "inputs": [{}]})):
            (folder / "recipe.json").write_text(bad)
            with pytest.raises(LabError, match="damaged"):
                load_router(folder, stack)
        (folder / "recipe.json").write_text(recipe)
        (folder / "router.safetensors").write_bytes(weights[:-9])
        with pytest.raises(LabError, match="damaged"):
            load_router(folder, stack)
        (folder / "router.safetensors").write_bytes(weights)
    for others in ([skills[0]], [skills[0], adapter(base, "code", 9)], three_skills(base)):
        with attach(base, others) as stack, pytest.raises(LabError, match="was learned for the skills math, code"):
            load_router(folder, stack)


def test_routers_are_no_adapters(tmp_path):
    base = llama()
    skills = equal_skills(base)
    with pytest.raises(LabError, match="per token"):
        merge("moe", skills)
    with attach(base, skills) as stack:
        with pytest.raises(LabError, match="per token"):
            freeze(stack, build("moe", stack))
        with pytest.raises(LabError, match="temperature"):
            build("arrow", stack, temperature=0.0)
        with pytest.raises(LabError, match="top_k"):
            build("moe", stack, top_k=0)
