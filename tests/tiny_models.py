"""Tiny random models and adapters with random factors, made by PEFT itself."""

import copy
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lab.lora.peft_io import from_peft

torch.set_num_threads(1)


def llama(seed: int = 0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def tokens(seed: int = 0):
    return torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model):
    return model(input_ids=tokens()).logits


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def peft_model(base, seed: int = 1, **settings):
    """A PEFT model on a copy of `base` whose factors are random (so not a no-op)."""
    torch.manual_seed(seed)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": False,
    } | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out for Conv1D and says so
        return get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def adapter(base, name, seed: int = 1, **settings):
    return from_peft(peft_model(base, seed, **settings), name=name)


def two_skills(base):
    """Unequal ranks and scalings, rsLoRA, patterns and partly different modules."""
    return [
        adapter(base, "math", 1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
        adapter(
            base, "code", 2, r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "up_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 3}, alpha_pattern={"up_proj": 5},
        ),
    ]  # fmt: skip


def three_skills(base):
    return [*two_skills(base), adapter(base, "style", 3, r=5, lora_alpha=1, target_modules="all-linear")]
