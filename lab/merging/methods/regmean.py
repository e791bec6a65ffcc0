"""RegMean: the update that answers as every skill does on that skill's own inputs (arXiv 2212.09849)."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.stacked import attach
from lab.merging.inputs import Prompt, equal_lengths, read_by
from lab.merging.registry import Range, Recipe, merge_method

WEAK = 1e-5  # smallest pivot, of the largest, with which a Gram matrix is solved as it stands


@merge_method(
    label="RegMean",
    paper="https://arxiv.org/abs/2212.09849",
    formula="(Σ ΔW_i G_i)(Σ G_i)⁻¹, G_i = XᵀX of the module's inputs under skill i",
    recipe=Recipe(learning_rate=None, batch_size=16, data="prompts"),
)
def regmean(
    adapters: Sequence[LoraAdapter],
    model: nn.Module,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    off_diagonal: Annotated[float, Range(0, 1), "how much of G beside its diagonal counts; less is steadier on few rows"] = 0.9,
) -> dict[str, LoraFactors]:
    """Least squares, module by module: min Σ_i mean ‖(W − ΔW_i) x‖² over the inputs x that skill i's own prompts bring.

    One pass of every skill over its prompts, no gradient. G_i is a mean per token, so that long prompts do not count for more.
    A skill that lacks a module asks for silence on its inputs. The result has rank Σr, exactly. Memory: k matrices (in, in)
    per module.
    """
    modules = module_names(adapters)
    grams = [skill_grams(model, adapter, prompts[adapter.name], modules) for adapter in adapters]
    solved = {}
    for module in modules:
        G = [shrink(gram.pop(module), off_diagonal) for gram in grams]
        solved[module] = least_squares([adapter.modules.get(module) for adapter in adapters], G, sum(G))
    return solved


@torch.no_grad()
def skill_grams(model: nn.Module, adapter: LoraAdapter, prompts: Sequence[Prompt], modules: Sequence[str]) -> dict[str, Tensor]:
    """(in, in) per module, double precision: the mean of x xᵀ over the tokens that the module reads while the skill answers."""
    sums, tokens = {}, dict.fromkeys(modules, 0)
    with attach(model, [adapter]) as stack:
        stack.set_coefficients(torch.ones(1, len(stack.modules)))
        with read_by(model, modules) as inputs:
            for _, ids in equal_lengths(prompts, next(model.parameters()).device):
                inputs.clear()
                model(input_ids=ids, use_cache=False)
                for module, x in inputs.items():
                    sums[module] = sums.get(module, 0) + x.double().T @ x.double()
                    tokens[module] += len(x)
    return {module: total / tokens[module] for module, total in sums.items()}


def shrink(G: Tensor, off_diagonal: float) -> Tensor:
    """G with all but its diagonal multiplied."""
    return off_diagonal * G + (1 - off_diagonal) * G.diagonal().diag()


def least_squares(factors: Sequence[LoraFactors | None], crosses: Sequence[Tensor], total: Tensor) -> LoraFactors:
    """(Σ ΔW_i C_i) T⁺ for skills that may lack the module: factors of rank Σr. crosses C_i and T: (in, in), T symmetric."""
    present = [(f, C) for f, C in zip(factors, crosses, strict=True) if f is not None]
    right = torch.cat([f.A.to(C) @ C for f, C in present])
    factor, failed = torch.linalg.cholesky_ex(total)
    pivots = factor.diagonal().abs()
    if not failed and pivots.min() > WEAK * pivots.max():
        A = torch.cholesky_solve(right.T, factor).T
    else:  # inputs that never occur, or fewer tokens than dimensions
        A = right @ torch.linalg.pinv(total, rtol=len(total) * torch.finfo(torch.float32).eps, hermitian=True)
    return LoraFactors(A.float().cpu(), torch.cat([f.scaling * f.B for f, _ in present], dim=1))
