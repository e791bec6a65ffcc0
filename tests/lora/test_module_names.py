"""The parser of module names, on the names that real architectures have."""

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from lab.lora.module_names import ATTENTION, EMBEDDING, MIXER, MLP, grid, parse, usual_order

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FAMILIES = {
    "Llama": (transformers.LlamaConfig(**SMALL, num_key_value_heads=1), LLAMA),
    "Qwen2": (transformers.Qwen2Config(**SMALL, num_key_value_heads=1), LLAMA),
    "Gemma2": (transformers.Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8), LLAMA),
    "GPT2": (
        transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=32), {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}
    ),
    "GPTNeoX": (transformers.GPTNeoXConfig(**SMALL), {"query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "Phi3": (
        transformers.Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    ),
    "Mamba": (
        transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, state_size=4),
        {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"},
    ),
    "Mixtral": (transformers.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2), None),
}  # fmt: skip


def linear_names(config) -> list[str]:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_modules_of_a_model_share_a_place(family):
    config, projections = FAMILIES[family]
    names = linear_names(config)
    places = [parse(name) for name in names]
    assert len({(p.stack, p.layer, p.projection) for p in places}) == len(names)
    inside = [p for p in places if p.layer is not None]
    assert {p.layer for p in inside} == {0, 1, 2}
    if projections is not None:
        assert {p.projection for p in inside} == projections
    assert all(p.group in (ATTENTION, MLP, MIXER) for p in inside)
    assert parse("lm_head").layer is None and parse("lm_head").block == "lm_head"
    assert parse("model.embed_tokens").group == EMBEDDING and parse("classifier.0").layer is None
    _, columns, found = grid(names)
    assert len(set(found.values())) == len(found) and set(columns) >= {p.projection for p in inside}


@pytest.mark.parametrize(
    ("module", "layer", "group", "projection"),
    [
        ("model.language_model.layers.11.self_attn.q_proj", 11, ATTENTION, "q_proj"),
        ("model.layers.2.block_sparse_moe.experts.7.w1", 2, MLP, "experts.7.w1"),
        ("model.layers.2.block_sparse_moe.gate", 2, MLP, "block_sparse_moe.gate"),
        ("model.layers.2.mlp.experts.gate_up_proj", 2, MLP, "experts.gate_up_proj"),
        ("model.layers.2.mlp.shared_expert.up_proj", 2, MLP, "shared_expert.up_proj"),
        ("model.decoder.layers.4.self_attn.out_proj", 4, ATTENTION, "self_attn.out_proj"),
        ("model.decoder.layers.4.encoder_attn.q_proj", 4, ATTENTION, "encoder_attn.q_proj"),
        ("model.decoder.layers.4.fc1", 4, MLP, "fc1"),
    ],
)
def test_names_of_other_architectures(module, layer, group, projection):
    place = parse(module)
    assert (place.layer, place.group, place.projection) == (layer, group, projection)


def test_two_stacks_do_not_share_rows():
    names = ["vision.encoder.layers.0.self_attn.q_proj", "language.layers.0.self_attn.q_proj"]
    layers, projections, places = grid(names)
    assert layers == [0] and len(projections) == 2 and len(set(places.values())) == 2


def test_usual_order_is_the_readers():
    assert sorted(["down_proj", "v_proj", "experts.10.w1", "q_proj", "experts.9.w1"], key=usual_order) == [
        "q_proj", "v_proj", "down_proj", "experts.9.w1", "experts.10.w1",
    ]  # fmt: skip
