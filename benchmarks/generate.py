"""Greedy generation, tokens per second: the base alone, the merge folded in, the live stack, PEFT's active adapters.

    python benchmarks/generate.py

A Llama of real layer shapes with random weights, one prompt, key-value cache, every skill at weight 1/k. On a CPU this
is bound by reading the weights; on a GPU, with one prompt, by the number of kernels.
"""

import copy
from collections.abc import Callable, Sequence

import common  # before lab: it makes the package importable
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from lab.lora.stacked import attach, fold
from lab.merging import merge


def make_base(hidden: int, layers: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=common.intermediate_size(hidden), num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128), vocab_size=vocabulary, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with no_init_weights(), torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
    common.fill(model)
    return model.requires_grad_(False).eval()


def generation(model: nn.Module, prompt: Tensor, new_tokens: int) -> Callable[[], Tensor]:
    mask = torch.ones_like(prompt)
    return lambda: model.generate(
        input_ids=prompt, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--skills", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of one generation")
    options = parser.parse_args(argv)
    device = common.find_device(options.device)
    if options.quick:
        options.hidden, options.layers, options.vocabulary, options.rank = 32, 1, 16, 2
        options.tokens, options.rounds, options.skills = 3, 1, [2]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    tolerance = 1e-4 if dtype == torch.float32 else 0.05

    base = make_base(options.hidden, options.layers, options.vocabulary, device, dtype)
    prompt = torch.arange(16, device=device)[None] % options.vocabulary
    models: dict[tuple[str, int], nn.Module] = {("base", 0): base}
    for k in options.skills:
        adapters = common.random_adapters(common.adapted_shapes(base), k, options.rank)
        models["folded", k] = fold(copy.deepcopy(base), merge("cat_static", adapters))
        models["stacked", k] = common.sharing(base)
        attach(models["stacked", k], adapters)  # every coefficient is 1/k
        models["peft", k] = common.peft_of(common.sharing(base), adapters)
        for layer in models["peft", k].modules():
            if hasattr(layer, "lora_A"):
                layer.scaling = {name: scaling / k for name, scaling in layer.scaling.items()}

    checks = []
    with torch.no_grad():
        logits = {cell: model(input_ids=prompt).logits for cell, model in models.items()}
    for k in options.skills:
        for variant in ("stacked", "peft"):
            what = f"logits of {variant} and folded, {k} skills"
            checks.append(common.check(what, logits[variant, k], logits["folded", k], tolerance))

    runs = {cell: generation(model, prompt, options.tokens) for cell, model in models.items()}
    times = {cell: common.timing(s) for cell, s in common.interleave(runs, options.rounds, device).items()}
    rows = []
    for (variant, k), time in times.items():
        rows.append(
            {"skills": k, "variant": variant, "tokens/s": options.tokens / time["median s"]}
            | time
            | {
                "x base": time["median s"] / times["base", 0]["median s"],
                "x peft": time["median s"] / times["peft", k]["median s"] if k else None,
            }
        )
    common.report(
        "generate", device, options, rows, checks,
        [
            f"hidden {options.hidden}, {options.layers} layers, vocabulary {options.vocabulary}, rank {options.rank}, "
            f"{dtype}, one prompt of 16 tokens, {options.tokens} new ones; median of {options.rounds} rounds in turns."
        ],
    )  # fmt: skip


if __name__ == "__main__":
    common.start(main)
