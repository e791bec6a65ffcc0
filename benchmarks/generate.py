"""Greedy generation, tokens per second: the base alone, the merge folded in, the live stack, PEFT's active adapters.

    python benchmarks/generate.py

A Llama of real layer shapes with random weights, one prompt, key-value cache, every skill at weight 1/k. On a CPU this
is bound by reading the weights; on a GPU, with one prompt, by the number of kernels. With --graphs base, folded and stacked are also
measured with the step of one token recorded as a CUDA graph over a static cache ("… graph").
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import common  # before lab: it makes the package importable
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.initialization import no_init_weights

from lab.errors import LabError
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


def recorded_generation(
    model: nn.Module, prompt: Tensor, new_tokens: int, record: Callable[[Callable[[], None]], Callable[[], object]]
) -> tuple[Callable[[], Tensor], Tensor]:
    """As `generation`, with a static cache, every token after the first by what `record` makes of the step of one token.

    Also gives the tensor that holds the predictions of the last token after each call, (1, 1, vocabulary).
    """
    cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + new_tokens + 4)  # recording takes a few steps
    token = torch.zeros_like(prompt[:, :1])
    logits = torch.zeros(1, 1, model.config.vocab_size, dtype=model.dtype, device=prompt.device)

    @torch.no_grad()
    def read(ids: Tensor) -> None:
        logits.copy_(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1:])
        token.copy_(logits.argmax(-1))

    read(prompt)  # the cache takes its memory
    step = record(lambda: read(token))

    def run() -> Tensor:
        cache.reset()
        read(prompt)
        tokens = [token.clone()]
        for _ in range(new_tokens - 1):
            step()
            tokens.append(token.clone())
        return torch.cat([prompt, *tokens], dim=1)

    return run, logits


def main(argv: Sequence[str] | None = None) -> Path:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--skills", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of one generation")
    parser.add_argument("--graphs", action="store_true", help="the step of one token as a CUDA graph too")
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
    unrecorded = []
    for (variant, k), model in models.items() if options.graphs else ():
        if variant == "peft":
            continue
        try:
            run, predicted = recorded_generation(model, prompt, options.tokens, lambda step: common.recorded(step, device))
        except LabError as error:
            unrecorded.append(f"No graph of {variant}, {k} skills: {error}")
            continue
        text = run()
        with torch.no_grad():
            expected = model(input_ids=text[:, :-1]).logits[:, -1:]
        checks.append(common.check(f"predictions after {variant}'s graph and without, {k} skills", predicted, expected, tolerance))
        runs[f"{variant}, graph", k] = run
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
    return common.report(
        "generate", device, options, rows, checks,
        [
            f"hidden {options.hidden}, {options.layers} layers, vocabulary {options.vocabulary}, rank {options.rank}, "
            f"{dtype}, one prompt of 16 tokens, {options.tokens} new ones; median of {options.rounds} rounds in turns.",
            *unrecorded,
        ],
    )  # fmt: skip


if __name__ == "__main__":
    common.start(main)
