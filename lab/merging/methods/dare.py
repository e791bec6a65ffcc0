"""DARE on the updates: drop at random and rescale (arXiv 2311.03099)."""

import torch
from torch import Tensor

from lab.merging.pruning import Density, drop_randomly, elect_and_merge
from lab.merging.registry import merge_method

DARE = "https://arxiv.org/abs/2311.03099"


@merge_method(label="DARE + linear", paper=DARE, formula="Σ w_i (m_i ⊙ ΔW_i)/density, m ~ Bernoulli(density), w = 1/k")
def dare_linear(
    deltas: Tensor, weights: Tensor, *, density: Density = 0.5, generator: torch.Generator
) -> Tensor:
    """Weighted sum of randomly dropped updates; its expectation is the weighted sum itself.

    Survivors are divided by `density`, as in the paper (mergekit rescales to the old L1 norm instead, which
    is unbiased only on average over entries). deltas: (skills, out, in). Returns (out, in).
    """
    return torch.einsum("k,koi->oi", weights, drop_randomly(deltas, density, generator))


@merge_method(label="DARE + TIES", paper=DARE, formula="Σ w_i (m_i ⊙ ΔW_i)/density over elected signs, w = 1/k")
def dare_ties(
    deltas: Tensor, weights: Tensor, *, density: Density = 0.5, generator: torch.Generator
) -> Tensor:
    """As `dare_linear`, but per entry only the skills with the elected sign are summed.

    As in mergekit the signs are elected after weighting, and the sum is not divided by the weights that
    took part. deltas: (skills, out, in). Returns (out, in).
    """
    return elect_and_merge(drop_randomly(deltas, density, generator), weights, normalize=False)
