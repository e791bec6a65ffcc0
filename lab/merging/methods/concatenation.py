"""Concatenation of LoRAs, Σ_i a_i^m ΔW_i: exact at rank Σr ("LoRA Soups", arXiv 2410.13025, Section 3)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.lora.adapter import LoraAdapter
from lab.merging.coefficients import Coefficients, Granularity, Parametrisation
from lab.merging.registry import Range, Recipe, merge_method

LORA_SOUPS = "https://arxiv.org/abs/2410.13025"


@merge_method(paper=LORA_SOUPS, formula="Σ w_i ΔW_i, w = 1/k")
def cat_static(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenation with given weights: the weighted sum of the updates, without cross terms.

    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr).
    """
    return torch.cat(list(A)), torch.cat([w * b for w, b in zip(weights, B, strict=True)], dim=1)


@merge_method(
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a learned",
    # The paper's; it states a batch size for the skills only (4 or 8, Appendix B.1).
    recipe=Recipe(learning_rate=1e-4, batch_size=8),
)
def cat(
    adapters: Sequence[LoraAdapter],
    *,
    parametrisation: Parametrisation = "softmax",
    granularity: Granularity = "module",
    start: Annotated[
        float | None, Range(-10, 10), "where every coefficient starts; None: 1/k, or 0.5 for sigmoid"
    ] = None,
) -> Coefficients:
    """Learnable concatenation (CAT): one learned coefficient per skill and module, from equal ones.

    Its start is fixed, so a seed matters only for the order of the training data.
    """
    return Coefficients(adapters, parametrisation=parametrisation, granularity=granularity, start=start)


@merge_method(
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a = softmax of logits learned from N(0, 1)",
    recipe=Recipe(learning_rate=1e-4, batch_size=6),
)
def cat_released(adapters: Sequence[LoraAdapter], *, seed: int = 0) -> Coefficients:
    """CAT as in the paper's released code: logits per module and skill from N(0, 1), learning rate 1e-4.

    The released code leaves the draw unseeded.
    """
    return Coefficients(adapters, seed=seed)


@merge_method(paper=LORA_SOUPS, formula="Σ a_i^m ΔW_i, a = softmax of N(0, 1)")
def cat_random(adapters: Sequence[LoraAdapter], *, seed: int = 0) -> Coefficients:
    """Control for `cat_released`: its random start, and not one step of learning."""
    return Coefficients(adapters, seed=seed)
