"""The stacked layer: equal to the formula, to PEFT and to the folded model; only coefficients learn; detach
restores.
"""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from lab.errors import LabError
from lab.lora.adapter import LoraFactors
from lab.lora.peft_io import to_peft
from lab.lora.stacked import StackedLinear, attach, fold
from tests.tiny_models import adapter, gpt2, llama, logits, relative_error, three_skills, tokens, two_skills


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    conv=st.booleans(),
    per_token=st.booleans(),
)
def test_stacked_layer_is_the_formula(data, ranks, conv, per_token):
    """Rank 0 stands for a skill that does not change the layer."""
    n_in, n_out = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    scalings = data.draw(st.lists(st.floats(-3, 3, width=32), min_size=len(ranks), max_size=len(ranks)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    base = (Conv1D(n_out, n_in) if conv else nn.Linear(n_in, n_out)).requires_grad_(False)
    factors = [
        LoraFactors(torch.randn(r, n_in), torch.randn(n_out, r), s) if r else None
        for r, s in zip(ranks, scalings, strict=True)
    ]
    x = torch.randn(2, 3, n_in)
    c = torch.randn(2, 3, len(ranks)) if per_token else torch.randn(len(ranks))
    layer = StackedLinear(base, factors)
    layer.set_coefficients((lambda x: c) if per_token else c)
    expected = base(x)
    for i, f in enumerate(factors):
        if f is not None:
            expected = expected + c[..., i : i + 1] * (x @ f.delta_weight().T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    # Only the coefficients are differentiated, and no out-wide tensor is kept for it.
    assert not any(buffer.requires_grad for buffer in layer.buffers())


@pytest.mark.parametrize("skills", [two_skills, three_skills])
def test_live_equals_folded_for_fixed_coefficients(skills):
    base = llama()
    adapters = skills(base)
    plain = logits(base)
    with attach(base, adapters) as stack:
        coefficients = torch.linspace(-0.5, 1.5, len(adapters) * len(stack.modules)).view(len(adapters), -1)
        stack.set_coefficients(coefficients)
        live = logits(base)
    folded = copy.deepcopy(base)
    for row, skill in enumerate(adapters):
        for module in skill.modules:
            weight = folded.get_submodule(module).weight
            weight.data += coefficients[row, stack.modules.index(module)] * skill.delta_weight(module)
    assert relative_error(live, logits(folded)) < 1e-5
    assert relative_error(live, plain) > 1e-3


def test_one_skill_at_weight_one_is_that_skill_on_conv1d():
    base = gpt2()
    skill = adapter(base, "a", target_modules=["c_attn", "c_fc"])
    with attach(base, [skill]):
        live = logits(base)
    assert relative_error(live, logits(to_peft(gpt2(), skill))) < 1e-5
    assert relative_error(live, logits(fold(base, skill))) < 1e-5


def test_detach_restores_the_same_model_exactly():
    base = llama()
    base.lm_head.weight.requires_grad_(False)
    modules, before, plain = dict(base.named_modules()), state(base), logits(base)
    flags = {name: p.requires_grad for name, p in base.named_parameters()}
    stack = attach(base, two_skills(base))
    assert not any(p.requires_grad for p in base.parameters())
    stack.set_coefficients(lambda: torch.ones(2, len(stack.modules)))
    assert relative_error(logits(base), plain) > 1e-3
    stack.detach()
    assert dict(base.named_modules()) == modules and same(state(base), before)
    assert {name: p.requires_grad for name, p in base.named_parameters()} == flags
    assert torch.equal(logits(base), plain) and not base._forward_pre_hooks


def test_factors_are_not_in_the_state_of_the_base():
    base = llama()
    before = state(base)
    with attach(base, two_skills(base)):
        attached = {k.replace(".base.", "."): v for k, v in base.state_dict().items()}
        assert same(attached, before)


def test_only_the_coefficients_receive_gradients():
    base = llama()
    before = state(base)
    with attach(base, two_skills(base)) as stack:
        raw = nn.Parameter(torch.zeros(2, len(stack.modules)))
        stack.set_coefficients(lambda: raw.softmax(0))
        optimizer = torch.optim.AdamW([raw], lr=0.1)
        losses = []
        for _ in range(5):
            loss = base(input_ids=tokens(), labels=tokens()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert all(p.grad is None and not p.requires_grad for p in base.parameters())
    assert losses[-1] < losses[0] and raw.abs().min() > 0
    assert same(state(base), before)


def test_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    factors = [
        LoraFactors(torch.randn(2, 3), torch.randn(4, 2), 2.0),
        None,
        LoraFactors(torch.randn(1, 3), torch.randn(4, 1)),
    ]
    layer = StackedLinear(nn.Linear(3, 4), factors).double().requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)

    def run(x, c):
        layer.set_coefficients(c)
        return layer(x)

    torch.autograd.gradcheck(run, (x, torch.randn(3, dtype=torch.double, requires_grad=True)))
    torch.autograd.gradcheck(run, (x, torch.randn(2, 3, dtype=torch.double, requires_grad=True)))


def test_backward_keeps_only_rank_wide_tensors():
    skills = [LoraFactors(torch.randn(2, 64), torch.randn(48, 2)) for _ in range(3)]
    layer = StackedLinear(nn.Linear(64, 48, bias=False).requires_grad_(False), skills)
    layer.set_coefficients(torch.ones(3, requires_grad=True))
    x = torch.randn(100, 64)
    saved = []
    weights = {t.data_ptr() for t in [*layer.buffers(), layer.weight]}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    new = [t for t in saved if t.data_ptr() not in weights]
    assert new and sum(t.numel() for t in new) <= 100 * 6 + 3 + 6


    saved.clear()
    layer.set_coefficients(torch.ones(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x.requires_grad_())
    assert sum(t.numel() for t in saved if t.data_ptr() not in weights) <= 3 + 18


def plain_autograd(layer, x, c):
    v = F.linear(x, layer.A_cat) * (c @ layer.spread.to(c.dtype))
    return layer.base(x) + F.linear(v.to(x.dtype), layer.B_cat)


def mixed_layer(base, dtype=torch.float32):
    """Three skills, one of them absent."""
    torch.manual_seed(0)
    factors = [LoraFactors(torch.randn(r, 64), torch.randn(48, r), s) for r, s in ((2, 1.0), (3, -0.5))]
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    return StackedLinear(base.to(dtype).requires_grad_(False), [factors[0], None, factors[1]])


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(64, 48), lambda: nn.Linear(64, 48, bias=False), lambda: Conv1D(48, 64)]
)
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_output_and_gradients_are_those_of_plain_autograd(make, hooked, per_token, dtype, tolerance):
    layer = mixed_layer(make(), dtype)
    calls = []
    if hooked:  # a layer with anything added to it is called as it is
        layer.base.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 5, 64).to(dtype).requires_grad_()
    precise = torch.promote_types(dtype, torch.float32)
    c = torch.randn((2, 5, 3) if per_token else (3,), dtype=precise, requires_grad=True)
    layer.set_coefficients(c)
    g = torch.randn(2, 5, 48).to(dtype)
    y, expected = layer(x), plain_autograd(layer, x, c)
    assert len(calls) == 2 * hooked
    assert y.dtype == dtype and relative_error(y, expected) < tolerance
    for ours, reference in zip(
        torch.autograd.grad(y, (x, c), g), torch.autograd.grad(expected, (x, c), g), strict=True
    ):
        assert ours.dtype == reference.dtype and relative_error(ours, reference) < tolerance
    with torch.no_grad():
        assert torch.equal(layer(x), y) and not layer(x).requires_grad


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 0, 64)])
def test_any_leading_shape(shape):
    layer = mixed_layer(nn.Linear(64, 48))
    x, c = torch.ones(shape, requires_grad=True), torch.ones(3, requires_grad=True)
    layer.set_coefficients(c)
    layer(x).sum().backward()
    assert layer(x).shape == (*shape[:-1], 48) and x.grad.shape == shape and c.grad.shape == (3,)
    torch.testing.assert_close(layer(x), plain_autograd(layer, x, c))


@pytest.mark.parametrize("hooked", [False, True])
def test_under_autocast_coefficients_keep_their_precision(hooked):
    layer = mixed_layer(nn.Linear(64, 48))
    if hooked:
        layer.base.register_forward_hook(lambda *_: None)
    x, c = torch.randn(50, 64, requires_grad=True), torch.full((3,), 0.5, requires_grad=True)

    def run(c):
        layer.set_coefficients(c)
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    y = run(c)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and c.grad.dtype == x.grad.dtype == torch.float32
    assert relative_error(y.float(), plain_autograd(layer, x, c)) < 2e-2
    # A step of 1e-3 is below the resolution of bf16 at 0.5: rounded, the coefficient would not move.
    assert not torch.equal(run(c.detach() + 1e-3), y)


def test_autocast_keeps_no_second_copy_of_a_frozen_weight():
    layer = mixed_layer(nn.Linear(64, 48))
    layer.set_coefficients(torch.ones(3, requires_grad=True))
    saved = []
    own = {t.data_ptr() for t in [*layer.buffers(), layer.weight]}
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        layer(torch.randn(7, 64, requires_grad=True))
    assert max(t.numel() for t in saved if t.data_ptr() not in own) == 7 * 5


def test_a_trainable_base_layer_gets_its_gradient():
    layer = mixed_layer(nn.Linear(64, 48))
    layer.base.requires_grad_(True)
    layer(torch.randn(7, 64)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and layer.bias.grad.abs().sum() > 0


def test_routers_give_coefficients_per_token():
    base = llama()
    adapters = two_skills(base)
    with attach(base, adapters) as stack:
        stack.set_routers({module: lambda x: torch.ones(*x.shape[:-1], 2) for module in stack.modules})
        routed = logits(base)
        stack.set_coefficients(torch.ones(2, len(stack.modules)))
        assert relative_error(routed, logits(base)) < 1e-6
        with pytest.raises(LabError, match="'nowhere' has no skill"):
            stack.set_routers({"nowhere": lambda x: x})


def test_absent_modules_are_missing_blocks():
    base = llama()
    stack = attach(base, two_skills(base))
    up = stack.modules.index("model.layers.0.mlp.up_proj")
    assert stack.present[:, up].tolist() == [False, True]
    assert stack.layers[stack.modules[up]].A_cat.shape[0] == 2
    stack.detach()


def test_attach_and_coefficients_refuse_what_does_not_fit():
    base = llama()
    adapters = two_skills(base)
    with attach(base, adapters) as stack:
        with pytest.raises(LabError, match="attached already"):
            attach(base, adapters)
        with pytest.raises(LabError, match=r"shape \(2, 1\)"):
            stack.set_coefficients(torch.ones(2, 1))
        with pytest.raises(LabError, match="NaN"):
            stack.set_coefficients(torch.full((2, len(stack.modules)), torch.nan))
    other = gpt2()
    before = state(other)
    with pytest.raises(LabError, match="another base"):
        attach(other, adapters)
    with pytest.raises(LabError, match="another base"):
        fold(other, adapters[0])
    assert same(state(other), before)


def test_fold_refuses_a_tied_weight_and_keeps_the_dtype():
    base = llama()
    skill = adapter(base, "a", target_modules=["lm_head", "q_proj"])
    base.lm_head.weight = base.model.embed_tokens.weight
    with pytest.raises(LabError, match="lm_head.*shared"):
        fold(base, skill)
    half = llama().bfloat16()
    assert {p.dtype for p in fold(half, adapter(llama(), "a")).parameters()} == {torch.bfloat16}


def test_generation_is_that_of_the_folded_model():
    base = llama()
    adapters = two_skills(base)
    with attach(base, adapters) as stack:
        stack.set_coefficients(lambda: torch.ones(2, len(stack.modules)))
        live = base.generate(tokens(), max_new_tokens=8, do_sample=False, pad_token_id=0)
    for skill in adapters:
        fold(base, skill)
    assert torch.equal(live, base.generate(tokens(), max_new_tokens=8, do_sample=False, pad_token_id=0))


def test_a_stack_holds_the_factors_once_and_they_are_the_same():
    base = llama()
    adapters = [
        dataclasses.replace(a, modules={m: LoraFactors(f.A, f.B, scaling) for m, f in a.modules.items()})
        for a, scaling in zip(three_skills(base), (1.0, 3.0, 1.0), strict=True)
    ]
    with attach(base, adapters) as stack:
        assert [a.digest() for a in stack.adapters] == [a.digest() for a in adapters]
        for adapter in stack.adapters:
            for module, f in adapter.modules.items():
                layer = stack.layers[module]
                shared = [
                    f.A.untyped_storage().data_ptr() == layer.A_cat.untyped_storage().data_ptr(),
                    f.B.untyped_storage().data_ptr() == layer.B_cat.untyped_storage().data_ptr(),
                ]
                assert shared == [True, f.scaling == 1]
