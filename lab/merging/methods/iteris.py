"""IterIS: RegMean with the inputs that the merged model itself reads, again and again (arXiv 2411.15231)."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import nn

from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.stacked import attach
from lab.merging.inputs import Prompt, equal_lengths, read_by
from lab.merging.methods.regmean import least_squares, regmean
from lab.merging.registry import Range, Recipe, merge_method


@merge_method(
    label="IterIS",
    paper="https://arxiv.org/abs/2411.15231",
    formula="(Σ λ_i ΔW_i X_i X̃_iᵀ)(Σ λ_i X̃_i X̃_iᵀ)⁻¹, X_i inputs under skill i, X̃_i under the merge, λ_i = 1/‖ΔW_i X_i‖², repeated",
    recipe=Recipe(learning_rate=None, batch_size=16, data="prompts"),
)
def iteris(
    adapters: Sequence[LoraAdapter],
    model: nn.Module,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    rounds: Annotated[int, Range(1, 50), "how often the merged model's inputs are looked at again"] = 5,
    ridge: Annotated[float, Range(0, 1), "added to both products, as a share of their norm; needed on few rows"] = 1e-3,
) -> dict[str, LoraFactors]:
    """Least squares between what the merged model will read and what every skill would have answered to its own inputs.

    RegMean takes both inputs for the same, which is ever less true in deeper layers. Starts at `regmean`. λ_i keeps a skill of
    large updates from outweighing the others. Two passes over each skill's prompts a round. The result has rank Σr, exactly.
    """
    modules = module_names(adapters)
    merged = regmean(adapters, model, prompts)
    for _ in range(rounds):
        crosses, totals = [], {module: 0.0 for module in modules}
        for adapter in adapters:
            C, G, answers = _products(
                model, adapter, LoraAdapter("merged", adapter.base, merged), prompts[adapter.name], modules
            )
            for module in modules:
                eye = torch.eye(len(G[module]), dtype=torch.float64, device=G[module].device)
                weight = 1 / answers[module] if answers.get(module) else 1.0 / max(float(G[module].trace()), 1e-30)
                C[module] = weight * (C[module] + ridge * C[module].norm() * eye)
                totals[module] = totals[module] + weight * (G[module] + ridge * G[module].norm() * eye)
            crosses.append(C)
        merged = {
            module: least_squares([a.modules.get(module) for a in adapters], [C[module] for C in crosses], totals[module])
            for module in modules
        }
    return merged


@torch.no_grad()
def _products(model: nn.Module, adapter: LoraAdapter, merged: LoraAdapter, prompts: Sequence[Prompt], modules: Sequence[str]):
    """Means over the tokens, by module: X_iᵀ X̃_i and X̃_iᵀ X̃_i (in, in), and ‖ΔW_i x‖², in double precision."""
    C, G, answers, tokens = {}, {}, {}, 0
    with attach(model, [adapter, merged]) as stack:
        own, other = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
        with read_by(model, modules) as inputs:
            for _, ids in equal_lengths(prompts, next(model.parameters()).device):
                seen = []
                for coefficients in (own, other):
                    stack.set_coefficients(coefficients.expand(2, len(stack.modules)))
                    inputs.clear()
                    model(input_ids=ids, use_cache=False)
                    seen.append(dict(inputs))
                tokens += ids.numel()
                for module in modules:
                    x, y = seen[0][module].double(), seen[1][module].double()
                    C[module] = C.get(module, 0) + x.T @ y
                    G[module] = G.get(module, 0) + y.T @ y
                    if module in adapter.modules:
                        f = adapter.modules[module]
                        written = f.scaling * (x @ f.A.to(x).T) @ f.B.to(x).T
                        answers[module] = answers.get(module, 0.0) + written.square().sum().item()
    mean = [{module: value / tokens for module, value in found.items()} for found in (C, G, answers)]
    return mean
