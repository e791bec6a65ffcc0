"""The prompt router: decides once per prompt, leaves the base to its bits, and does not move when a skill is added."""

import pytest
import torch

from lab.errors import LabError
from lab.lora.stacked import attach
from lab.merging import build, merge
from lab.merging.learn import learn
from lab.merging.routing import load_router, save_router
from lab.training.loop import Encoded
from tests.merging.test_routers import state
from tests.tiny_models import adapter, gpt2, llama, relative_error

PAD = 0
KINDS = {
    "code": range(1, 8),
    "math": range(8, 15),
    "style": range(15, 22),
    "other": range(22, 32),
}  # each writes its own tokens


@pytest.fixture(scope="module")
def base():
    return llama()


def skills(base, names=("math", "code"), **settings):
    return [adapter(base, name, seed, r=2 + seed, **settings) for seed, name in enumerate(names, 1)]


def prompts(kind, count=20, seed=0, length=None):
    draw = torch.Generator().manual_seed(seed)
    lengths = [length or 28 + i % 3 for i in range(count)]
    return [[KINDS[kind][i] for i in torch.randint(len(KINDS[kind]), (n,), generator=draw).tolist()] for n in lengths]


def router_on(stack, **parameters):
    router = build("prompt_router", stack, **{"layer": 0, "margin": 1.5} | parameters)
    router.learn_from({name: prompts(name) for name in stack.skills})
    return router


def padded(rows, side="left"):
    width = max(map(len, rows))
    gap = [[PAD] * (width - len(row)) for row in rows]
    ids = [g + row if side == "left" else row + g for g, row in zip(gap, rows, strict=True)]
    mask = [
        [0] * len(g) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(g)
        for g, row in zip(gap, rows, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def logits(model, rows):
    return model(**padded(rows)).logits


MIXED = [
    prompts(kind, 1, seed=9, length=30)[0] for kind in ("math", "other", "code", "math", "style", "code", "other", "style")
]


def test_prompts_go_to_their_skill_and_strange_ones_to_the_base(base):
    with attach(base, skills(base)) as stack:
        router = router_on(stack)
        for kind in KINDS:
            chosen = router.chosen(prompts(kind, seed=5))
            if kind in stack.skills:  # few prompts say how far its own may lie: one or two of twenty may be beyond
                assert chosen.count(kind) >= 18 and set(chosen) <= {kind, ""}
            else:
                assert set(chosen) == {""}


def test_prompts_of_no_skill_are_the_bases_to_the_bit_and_others_the_skills(base):
    plain = logits(base, MIXED)
    adapters = skills(base)
    alone = {}
    for skill in adapters:
        with attach(base, [skill]) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            alone[skill.name] = logits(base, MIXED)
    with attach(base, adapters) as stack:
        chosen = router_on(stack).chosen(MIXED)
        routed = logits(base, MIXED)
    assert chosen == ["math", "", "code", "math", "", "code", "", ""]
    for row, skill in enumerate(chosen):
        if skill:
            assert relative_error(routed[row], alone[skill][row]) < 1e-6 < 1e-3 < relative_error(routed[row], plain[row])
        else:
            assert torch.equal(routed[row], plain[row])


def test_before_it_has_learned_all_is_the_base(base):
    plain = logits(base, MIXED)
    with attach(base, skills(base)) as stack:
        build("prompt_router", stack)
        assert torch.equal(logits(base, MIXED), plain)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_skill_added_later_leaves_the_rest_bit_equal(base, order, top_k):
    three = skills(base, ("math", "code", "style"))
    options = {"top_k": top_k, "margin": 200.0 if top_k > 1 else 1.5, "temperature": 2.0}
    with attach(base, three[:2]) as stack:
        before = router_on(stack, **options)
        chosen, old = before.shares(before.embed(MIXED)), logits(base, MIXED)
    assert top_k == 1 or ((chosen > 0).sum(1) == 2).any()
    with attach(base, [three[i] for i in order]) as stack:
        after = build("prompt_router", stack, layer=0, **options)
        after.take(before)
        after.learn_from({"style": prompts("style")})
        again = router_on(stack, **options)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in after.state_dict().items()), (
            "each skill learns from its own"
        )
        shares, new = after.shares(after.embed(MIXED)), logits(base, MIXED)
    taken = shares[:, after.sorted_skills.index("style")] > 0
    assert taken.tolist()[4] and not taken.all()
    places = [after.sorted_skills.index(skill) for skill in before.sorted_skills]
    for row in range(len(MIXED)):
        if not taken[row]:
            assert torch.equal(shares[row, places], chosen[row])
            assert torch.equal(new[row], old[row])


def test_padding_changes_no_decision(base):
    with attach(base, skills(base)) as stack:
        router = router_on(stack)
        rows = [*prompts("math", 3), *prompts("other", 2), *prompts("code", 3, length=25)]
        expected = router.chosen(rows)
        assert len(set(expected)) == 3
        outputs = [base(**padded([row])).logits[0, -1] for row in rows]
        for side in ("left", "right"):
            batch = padded(rows, side)
            shares = router.shares(router._mean_state(base, batch))
            assert [router.sorted_skills[int(s.argmax())] if s.any() else "" for s in shares] == expected
            found = base(**batch).logits
            for row, (ids, out) in enumerate(zip(rows, outputs, strict=True)):
                assert relative_error(found[row, -1 if side == "left" else len(ids) - 1], out) < 1e-5


@pytest.mark.parametrize("make", [llama, gpt2])
def test_it_decides_once_per_prompt_and_interleaved_texts_keep_their_own(make):
    model = make()
    target = {"target_modules": ["c_attn", "c_fc"]} if make is gpt2 else {}
    with attach(model, skills(model, **target)) as stack, torch.no_grad():
        router = router_on(stack)
        read = []
        original = router._mean_state
        router._mean_state = lambda *args: (read.append(args[1]["input_ids"].shape[1]), original(*args))[1]
        first, second = (torch.tensor([prompts(kind, 1, length=29)[0]]) for kind in ("math", "code"))
        full = {}
        for name, ids in (("math", first), ("code", second)):
            stack.set_coefficients(torch.tensor([[float(s == name)] * len(stack.modules) for s in stack.skills]))
            # What the skill alone answers to the prompt and then to tokens of the other kind.
            full[name] = model(torch.cat([ids, torch.tensor([prompts("other", 1, length=4)[0]])], 1)).logits
        router.put_on(stack)
        stack.before_forward("", router._decide)
        out = {name: model(input_ids=ids, use_cache=True) for name, ids in (("math", first), ("code", second))}
        found = {name: [o.logits] for name, o in out.items()}
        caches = {name: o.past_key_values for name, o in out.items()}
        for token in prompts("other", 1, length=4)[0]:
            for name in ("math", "code"):
                found[name].append(
                    model(input_ids=torch.tensor([[token]]), past_key_values=caches[name], use_cache=True).logits
                )
        assert read == [29, 29]
        for name in full:
            torch.testing.assert_close(torch.cat(found[name], 1), full[name], rtol=1e-4, atol=1e-5)
        with stack.without_skills():
            strange = model.base_model(input_ids=first, use_cache=True).past_key_values
        with pytest.raises(LabError, match="has not seen this text's beginning"):
            model(input_ids=first[:, :1], past_key_values=strange, use_cache=True)


def test_generation_is_the_skills_own_and_the_bases_own(base):
    rows = [prompts(kind, 1, length=29)[0] for kind in ("math", "other", "code")]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    adapters = {a.name: a for a in skills(base)}
    expected = []
    for name, row in zip(("math", None, "code"), rows, strict=True):
        if name is None:
            expected.append(base.generate(**padded([row]), **options)[0])
            continue
        with attach(base, [adapters[name]]) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            expected.append(base.generate(**padded([row]), **options)[0])
    with attach(base, list(adapters.values())) as stack:
        router_on(stack)
        assert torch.equal(base.generate(**padded(rows), **options), torch.stack(expected))


def test_it_is_saved_loaded_and_detached_as_other_routers(base, tmp_path):
    before, adapters = state(base), skills(base)
    with attach(base, adapters) as stack:
        router = router_on(stack, top_k=2)
        expected = logits(base, MIXED)
        save_router(tmp_path / "router", router)
        with router.effective_support() as support:
            logits(base, prompts("math", 1))
        assert 1 <= support.mean <= 2
        with router.effective_support() as support:
            logits(base, prompts("other", 1))
        assert support.mean == 0  # no skill
    with attach(base, adapters[::-1]) as stack:
        load_router(tmp_path / "router", stack)
        assert torch.equal(logits(base, MIXED), expected)
    assert all(torch.equal(v, before[k]) for k, v in state(base).items()) and not base._forward_pre_hooks
    with pytest.raises(LabError, match="per token"):
        merge("prompt_router", adapters)
    with attach(base, adapters) as stack, pytest.raises(LabError, match="layer is 3, and the base has 2"):
        build("prompt_router", stack, layer=3)


def test_learn_fits_it_on_prompts(base):
    adapters = skills(base)
    rows = [Encoded((*prompt, 1, 2, 3), len(prompt), kind) for kind in ("math", "code") for prompt in prompts(kind)]
    found = learn("prompt_router", base, adapters, rows, PAD, rates=(), parameters={"layer": 0, "margin": 1.5})
    assert found.adapter is None and found.learning_rate is None and found.sweep == []
    with attach(base, adapters) as stack:
        router = build("prompt_router", stack, layer=0, margin=1.5)
        router.load_state_dict(found.router_state)
        assert router.chosen(prompts("code", seed=5)).count("code") >= 18
