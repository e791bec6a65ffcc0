"""TIES on the updates (arXiv 2306.01708, Algorithm 1; conventions of mergekit's `ties`)."""

import torch
from torch import Tensor

from lab.merging.pruning import Density, Scale, elect_and_merge, keep_largest
from lab.merging.registry import merge_method


@merge_method(
    label="TIES",
    paper="https://arxiv.org/abs/2306.01708",
    formula="λ · (Σ w_i δ_i / Σ w_i over elected signs), δ_i trimmed",
)
def ties(deltas: Tensor, weights: Tensor, *, density: Density = 0.2, scale: Scale = 1.0) -> Tensor:
    """Trim each update to its largest entries, elect a sign per entry, average the skills that agree with it.

    Weights count before the election and only relative to each other; `scale` sets the size. Trimmed per
    module (the paper: over the whole model). PEFT's form, on A and B separately, is `ties_factors`.
    deltas: (skills, out, in). Returns (out, in).
    """
    trimmed = torch.stack([keep_largest(delta, density) for delta in deltas])
    return elect_and_merge(trimmed, weights, normalize=True).mul_(scale)
