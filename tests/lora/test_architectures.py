"""Bases other than Llama: what PEFT computes with an adapter is what the lab computes beside the base and folded in, or it is refused."""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    SiglipVisionConfig,
)

from lab.app.streaming import Decoding, stream
from lab.errors import LabError
from lab.evaluation.generate import generate, room
from lab.lora.base import load_base
from lab.lora.compatibility import compatibility_problems
from lab.lora.peft_io import from_peft, load, save
from lab.lora.stacked import attach, fold
from lab.merging import METHODS, build, merge, solve
from tests.tiny_models import logits, peft_model, relative_error

SHAPE = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MAMBA = {"state_size": 4, "expand": 2}


def gemma3(vocabulary=32):
    text = Gemma3TextConfig(**{**SHAPE, "vocab_size": vocabulary}, **HEADS, head_dim=4)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=5))


MODELS = {
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**SHAPE, **MAMBA)), ["in_proj", "x_proj"]),
    "mamba2": (lambda: Mamba2ForCausalLM(Mamba2Config(**SHAPE, **MAMBA, num_heads=4, head_dim=8, n_groups=1)), ["in_proj"]),
    "jamba": (
        lambda: JambaForCausalLM(JambaConfig(
            **SHAPE, **HEADS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=2,
            num_experts_per_tok=1, mamba_d_state=4, mamba_expand=2, use_mamba_kernels=False,
        )),
        ["in_proj", "x_proj", "out_proj", "q_proj", "v_proj"],
    ),
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, **HEADS, num_local_experts=2)), ["q_proj", "o_proj"]),
    "gemma3": (gemma3, r".*language_model.*(q_proj|down_proj)"),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """(base, PEFT model on a copy of it)."""
    make, targets = MODELS[request.param]
    torch.manual_seed(0)
    base = make().eval()
    return base, peft_model(base, r=2, target_modules=targets)


def test_live_and_folded_are_pefts(family, tmp_path):
    base, peft = family
    adapter = from_peft(peft, name="a")
    save(tmp_path / "a", adapter)
    adapter = load(tmp_path / "a")
    reference = logits(peft)
    assert relative_error(logits(base), reference) > 1e-3  # the update matters
    with attach(base, [adapter]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        assert relative_error(logits(base), reference) < 1e-4
    assert relative_error(logits(fold(copy.deepcopy(base), adapter)), reference) < 1e-4


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_a_layer_whose_weight_is_read_past_it_is_refused_as_beside_it_nothing_would_happen(name):
    torch.manual_seed(0)
    base = MODELS[name][0]().eval()
    peft = peft_model(base, r=2, lora_alpha=8000, target_modules=["dt_proj"])  # large, so that such small models show it
    live, merged = logits(peft), logits(copy.deepcopy(peft).merge_and_unload())
    assert relative_error(live, logits(base)) < 1e-6 < 1e-4 < relative_error(merged, live)  # PEFT disagrees with itself
    (problem,) = set(p.replace("layers.1", "layers.0") for p in compatibility_problems([from_peft(peft, name="a")], base))
    assert "dt_proj' , whose weight".replace(" ,", ",") in problem and "train without it" in problem
    with pytest.raises(LabError, match="dt_proj"):
        fold(base, from_peft(peft, name="a"))
    # Trained by PEFT it stays zero, since no gradient reaches it: such an adapter is taken.
    zero = peft_model(base, r=2, target_modules=["dt_proj", "in_proj"], init_lora_weights=True)
    assert compatibility_problems([from_peft(zero, name="a")], base) == []


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.kind != "search"))
def test_every_method_works_on_a_base_of_several_parts(name):
    """Gemma 3 reads pictures too: its language model's configuration lies in text_config."""
    torch.manual_seed(0)
    base = gemma3().eval()
    targets = MODELS["gemma3"][1]
    adapters = [from_peft(peft_model(base, seed, r=2, target_modules=targets), name=skill) for seed, skill in ((1, "a"), (2, "b"))]
    assert room(base) == 64
    if METHODS[name].recipe is None and METHODS[name].kind != "router":
        with attach(base, [merge(name, adapters)]):
            assert logits(base).isfinite().all()
    elif METHODS[name].kind == "solve":
        with attach(base, [solve(name, adapters, base, {"a": [(1, 2, 3)], "b": [(4, 5, 6)]})]):
            assert logits(base).isfinite().all()
    else:
        with attach(base, adapters) as stack:
            build(name, stack)
            assert logits(base).isfinite().all()


def test_folding_a_base_that_reads_pictures_keeps_its_processor(tmp_path, tokenizer):
    from lab.export.folders import fold_into

    torch.manual_seed(0)
    base = gemma3(len(tokenizer)).eval()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "base" / name).write_text(json.dumps({"processor_class": "Gemma3Processor", "name": name}))
    model, _ = load_base(str(tmp_path / "base"))
    adapter = from_peft(peft_model(model, r=2, target_modules=MODELS["gemma3"][1]), name="a")
    fold_into(str(tmp_path / "base"), adapter, tmp_path / "folded")
    for name in ("processor_config.json", "preprocessor_config.json"):
        assert (tmp_path / "folded" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    folded, _ = load_base(str(tmp_path / "folded"))
    with attach(model, [adapter]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        assert relative_error(logits(folded), logits(model)) < 1e-4


def asked_by_the_app(base, tokenizer, prompts):
    """The stream's last texts, without an adapter."""
    engine = SimpleNamespace(tokenizer=tokenizer, turns=nullcontext())
    lane = SimpleNamespace(model=base, use=lambda coefficients: None, router=None)
    *_, last = stream(engine, lane, prompts, torch.ones(len(prompts), 1, 1), Decoding(max_new_tokens=8, stop=()))
    return [answer.text for answer in last]


@pytest.mark.parametrize("name", ["mamba", "jamba", "gemma3"])
def test_the_apps_stream_is_generate_or_says_that_it_is_not(name, tokenizer, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(SHAPE, "vocab_size", len(tokenizer))
    base = gemma3(len(tokenizer)).eval() if name == "gemma3" else MODELS[name][0]().eval()
    prompts = ["One", "Two and three are five. Four and"]
    answers = generate(base, tokenizer, prompts, max_new_tokens=8)
    if name == "mamba":
        with pytest.raises(LabError, match="MambaForCausalLM keeps what it has read in its own way"):
            asked_by_the_app(base, tokenizer, prompts)
    else:
        assert asked_by_the_app(base, tokenizer, prompts) == answers
