"""DELLA on the updates: random dropping that spares large entries (arXiv 2406.11617)."""

from typing import Annotated

import torch
from torch import Tensor

from lab.errors import LabError
from lab.merging.pruning import CHUNK, Density, Scale, at_once, chunks, draw, elect_and_merge
from lab.merging.registry import Range, merge_method

Epsilon = Annotated[float, Range(0, 0.5), "half the spread of the keep probabilities within a row"]


@merge_method(
    label="DELLA",
    paper="https://arxiv.org/abs/2406.11617",
    formula="λ · (Σ w_i δ_i / Σ w_i over elected signs), δ_i = m_i ⊙ ΔW_i/p_i, m ~ Bernoulli(p_i)",
)
def della(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.15,
    scale: Scale = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """As TIES, but entries are kept at random: the larger in its row, the likelier.

    MAGPRUNE with mergekit's parameters: the probability rises with the magnitude's rank in the row (one
    output) from density − ε to density + ε. Survivors are divided by their own probability, as in the paper
    (mergekit rescales to the old L1 norm), so the pruned update is unbiased. Density 0 drops everything, 1
    nothing. deltas: (skills, out, in). Returns (out, in). Raises LabError when a probability leaves (0, 1].
    """
    if 0 < density < 1:
        if not (density - epsilon > 0 and density + epsilon <= 1):
            raise LabError(
                f"della: density {density:g} ± epsilon {epsilon:g} leaves the range from 0 to 1; "
                f"choose a smaller epsilon."
            )
        deltas = torch.stack([magprune(delta, density, epsilon, generator) for delta in deltas])
    return elect_and_merge(deltas if density else 0 * deltas, weights, normalize=True).mul_(scale)


def magprune(delta: Tensor, density: float, epsilon: float, generator: torch.Generator) -> Tensor:
    pruned = torch.empty_like(delta)
    width = delta.shape[1]
    for rows in chunks(len(delta), max(1, at_once(delta) // max(width, 1))):
        keep = density - epsilon + 2 * epsilon * _ranks(delta[rows], delta.numel()) / max(width - 1, 1)
        pruned[rows] = delta[rows] * (draw(keep, generator) < keep) / keep
    return pruned


def _ranks(rows: Tensor, size: int) -> Tensor:
    """The place of each entry among its row's by magnitude, 0 for the smallest; of equal ones the first is the smaller.

    size: entries of the whole matrix. Up to CHUNK of them, where nothing is gained, argsort decides between equal ones.
    """
    magnitudes = rows.abs()
    if size <= CHUNK:
        return magnitudes.argsort(dim=1).argsort(dim=1)
    # Row and magnitude (the bits of a positive fp32 rise with it) in one whole number each, which torch sorts by radix.
    number = torch.arange(len(rows), device=rows.device)[:, None]
    order = (number << 31 | magnitudes.float().view(torch.int32)).flatten().sort(stable=True).indices
    places = torch.arange(rows.shape[1], device=rows.device).repeat(len(rows))
    return torch.empty_like(places).scatter_(0, order, places).view(rows.shape)
