"""Concatenation of LoRAs, Σ_i a_i^m ΔW_i: exact at rank Σr ("LoRA Soups", arXiv 2410.13025, Section 3)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.lora.adapter import LoraAdapter
from lab.merging.coefficients import Coefficients, Granularity, Parametrisation
from lab.merging.registry import Range, Recipe, merge_method

LORA_SOUPS = "https://arxiv.org/abs/2410.13025"


@merge_method(label="Static CAT", paper=LORA_SOUPS, formula="Σ w_i ΔW_i, w = 1/k")
def cat_static(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenation with given weights: the weighted sum of the updates, without cross terms.

    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr).
    """
    return torch.cat(list(A)), torch.cat([w * b for w, b in zip(weights, B, strict=True)], dim=1)


@merge_method(
    label="CAT",
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a_i^m in [0, 1] learned, each for itself",
    # The paper's; it states a batch size for the skills only (4 or 8, Appendix B.1).
    recipe=Recipe(learning_rate=1e-4, batch_size=8),
    version=2,
)
def cat(
    adapters: Sequence[LoraAdapter],
    *,
    parametrisation: Parametrisation = "sigmoid",
    granularity: Granularity = "module",
    start: Annotated[
        float | None, Range(-10, 10), "where every coefficient starts; None: 0.5 for sigmoid, else 1/k"
    ] = None,
) -> Coefficients:
    """Learnable concatenation (CAT): one learned coefficient between 0 and 1 per skill and module, from equal ones.

    The paper's text (Section 3.1) has them lie in [0, 1] and trains each; it asks for no sum. Only its released code puts a softmax
    over the skills: `cat_softmax`. The start is fixed, so a seed matters only for the order of the training data.
    """
    return Coefficients(adapters, parametrisation=parametrisation, granularity=granularity, start=start)


@merge_method(
    label="CAT (softmax)",
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a = softmax over the skills of learned logits",
    recipe=Recipe(learning_rate=1e-4, batch_size=8),
)
def cat_softmax(adapters: Sequence[LoraAdapter], *, granularity: Granularity = "module") -> Coefficients:
    """CAT with the released code's constraint: in each module the skills' coefficients add up to 1. From equal ones (1/k)."""
    return Coefficients(adapters, parametrisation="softmax", granularity=granularity)


@merge_method(
    label="CAT (free)",
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a learned without bounds",
    recipe=Recipe(learning_rate=1e-4, batch_size=8),
)
def cat_free(
    adapters: Sequence[LoraAdapter],
    *,
    granularity: Granularity = "module",
    start: Annotated[float | None, Range(-10, 10), "where every coefficient starts; None: 1/k"] = None,
) -> Coefficients:
    """CAT without a constraint: coefficients may pass 1 or fall below 0. From equal ones (1/k)."""
    return Coefficients(adapters, parametrisation="free", granularity=granularity, start=start)


@merge_method(
    label="Released CAT",
    paper=LORA_SOUPS,
    formula="Σ a_i^m ΔW_i, a = softmax of logits learned from N(0, 1)",
    recipe=Recipe(learning_rate=1e-4, batch_size=6),
)
def cat_released(adapters: Sequence[LoraAdapter], *, seed: int = 0) -> Coefficients:
    """CAT as in the paper's released code: logits per module and skill from N(0, 1), learning rate 1e-4.

    The released code leaves the draw unseeded.
    """
    return Coefficients(adapters, seed=seed)


@merge_method(label="Random CAT", paper=LORA_SOUPS, formula="Σ a_i^m ΔW_i, a = softmax of N(0, 1)", control=True)
def cat_random(adapters: Sequence[LoraAdapter], *, seed: int = 0) -> Coefficients:
    """Control for `cat_released`: its random start, and not one step of learning."""
    return Coefficients(adapters, seed=seed)
