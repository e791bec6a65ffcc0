"""PEFT's combination types that work on A and B separately (`add_weighted_adapter` of PEFT 0.21).

They see the factors as PEFT stores them: A_i (r_i, in), B_i (out, r_i), scalings s (skills,) and weights w
(skills,) apart. Entries are pruned and signs elected before weighting; then A_i is multiplied by sign(w_i
s_i)·√|w_i s_i| and B_i by √|w_i s_i|. The product of the merged factors has cross terms, and depends on how
an update is split into factors and scaling. PEFT refuses unequal ranks; here a lower rank is padded with
zeros, which abstain from an election. All return A (max r, in), B (out, max r).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.merging.pruning import Density, drop_randomly, keep_largest
from lab.merging.registry import merge_method

PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"
Factors = Sequence[Tensor]
Majority = Literal["total", "frequency"]


@merge_method(label="Linear on factors", paper=PEFT, formula="(Σ √(w_i s_i) B_i)(Σ √(w_i s_i) A_i), w = 1/k", depends_on_split=True)
def linear_factors(A: Factors, B: Factors, scalings: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT's `linear`: product of the factors' sums, each factor with the root of its weight."""
    return _by_factor(A, B, scalings, weights, lambda factor: factor, _weighted_sum)


@merge_method(
    label="Magnitude pruning on factors",
    paper=PEFT,
    formula="linear_factors of the largest entries of A_i and of B_i",
    depends_on_split=True,
)
def magnitude_prune_factors(
    A: Factors, B: Factors, scalings: Tensor, weights: Tensor, *, density: Density = 0.5
) -> tuple[Tensor, Tensor]:
    """PEFT's `magnitude_prune`: keep the largest entries of every factor, then `linear_factors`."""
    return _by_factor(A, B, scalings, weights, partial(keep_largest, density=density), _weighted_sum)


@merge_method(
    label="DARE + linear on factors",
    paper=PEFT,
    formula="linear_factors of randomly dropped A_i/density and B_i/density",
    depends_on_split=True,
)
def dare_linear_factors(
    A: Factors,
    B: Factors,
    scalings: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.5,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """PEFT's `dare_linear`: drop entries of every factor at random and rescale, then `linear_factors`."""
    prune = partial(drop_randomly, density=density, generator=generator)
    return _by_factor(A, B, scalings, weights, prune, _weighted_sum)


@merge_method(
    label="TIES on factors",
    paper=PEFT, formula="per factor: mean of √w_i·(largest entries) over elected signs, w = 1", weights="one",
    depends_on_split=True,
)
def ties_factors(
    A: Factors,
    B: Factors,
    scalings: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.2,
    majority_sign_method: Majority = "total",
) -> tuple[Tensor, Tensor]:
    """PEFT's `ties`: trim every factor, elect signs from the unweighted entries, average who agrees.

    The average divides by the number of skills that agree, not by their weights.
    """
    prune = partial(keep_largest, density=density)
    return _by_factor(A, B, scalings, weights, prune, partial(_disjoint_mean, majority=majority_sign_method))


@merge_method(
    label="DARE + TIES on factors",
    paper=PEFT, formula="per factor: mean of √w_i·(dropped entries) over elected signs, w = 1", weights="one",
    depends_on_split=True,
)
def dare_ties_factors(
    A: Factors,
    B: Factors,
    scalings: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.5,
    majority_sign_method: Majority = "total",
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """PEFT's `dare_ties`: as `ties_factors`, with random dropping and rescaling instead of trimming."""
    prune = partial(drop_randomly, density=density, generator=generator)
    return _by_factor(A, B, scalings, weights, prune, partial(_disjoint_mean, majority=majority_sign_method))


def _by_factor(
    A: Factors, B: Factors, scalings: Tensor, weights: Tensor, prune: Callable, merge: Callable
) -> tuple[Tensor, Tensor]:
    rank = max(a.shape[0] for a in A)
    signed = weights * scalings
    root = signed.abs().sqrt()
    stacked_A = torch.stack([F.pad(prune(a), (0, 0, 0, rank - a.shape[0])) for a in A])
    stacked_B = torch.stack([F.pad(prune(b), (0, rank - b.shape[1])) for b in B])
    return merge(stacked_A, signed.sign() * root), merge(stacked_B, root)


def _weighted_sum(factors: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("k,kij->ij", weights, factors)


def _disjoint_mean(factors: Tensor, weights: Tensor, majority: Majority) -> Tensor:
    signs = factors.sign()
    votes = (factors if majority == "total" else signs).sum(0)
    agrees = signs == torch.where(votes < 0, -1.0, 1.0)
    return _weighted_sum(factors * agrees, weights) / agrees.sum(0).clamp(min=1)
