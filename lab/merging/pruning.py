"""Pruning and sign election: what TIES, DARE, DELLA, KnOTS and Core Space share."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from lab.merging.registry import Range

Density = Annotated[float, Range(0, 1), "fraction of the entries kept"]
Scale = Annotated[float, Range(0, 5), "λ, multiplies the merged update"]
Prune = Annotated[Literal["magnitude", "random"], "largest entries (as TIES) or random ones (as DARE)"]


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The int(density·n) entries of largest magnitude, the others zero; any shape."""
    entries = tensor.flatten()
    kept = entries.abs().topk(int(density * entries.numel()), sorted=False).indices
    pruned = torch.zeros_like(entries)
    pruned[kept] = entries[kept]
    return pruned.view_as(tensor)


def drop_randomly(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE (arXiv 2311.03099): keep each entry with probability `density`, divided by it, so that the
    expectation is the tensor itself; density 0 gives zeros.
    """
    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density if density else torch.zeros_like(tensor)


def elect_and_merge(deltas: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sign election and disjoint merge of TIES (arXiv 2306.01708) in mergekit's order: weight, then elect.

    deltas: (skills, …). An entry's sign is that of Σ w_i δ_i (+ when that is 0); the result is Σ w_i δ_i over
    the skills of that sign, zeros abstaining. normalize: divide by their Σ|w_i|. mergekit divides by Σ w_i,
    which turns a skill of negative weight positive again.
    """
    weights = weights.view(-1, *[1] * (deltas.ndim - 1))
    weighted = weights * deltas
    elected = torch.where(weighted.sum(0) < 0, -1.0, 1.0)
    agrees = weighted.sign() == elected
    merged = (weighted * agrees).sum(0)
    if normalize:
        total = (weights.abs() * agrees).sum(0)
        merged = merged / torch.where(total > 0, total, 1)
    return merged


def prune_and_elect(
    blocks: Tensor, weights: Tensor, density: float, prune: str, generator: torch.Generator
) -> Tensor:
    """TIES for "magnitude", DARE-TIES for "random", on coordinates (skills, rows, columns)."""
    if prune == "magnitude":
        blocks = torch.stack([keep_largest(block, density) for block in blocks])
    else:
        blocks = drop_randomly(blocks, density, generator)
    return elect_and_merge(blocks, weights, normalize=True)
