"""Model Breadcrumbs on the updates (arXiv 2312.06795; conventions of mergekit's `breadcrumbs`)."""

from typing import Annotated

import torch
from torch import Tensor

from lab.merging.pruning import CHUNK, Density, keep_count
from lab.merging.registry import Range, merge_method


@merge_method(
    label="Breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    formula="Σ w_i δ_i, δ_i = ΔW_i without its largest and smallest entries, w = 1/k",
)
def breadcrumbs(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.9,
    gamma: Annotated[float, Range(0, 1), "fraction of the largest entries dropped"] = 0.01,
) -> Tensor:
    """Weighted sum of updates that lost their outliers and their small entries, per module.

    int(density·n) entries are kept: the int(gamma·n) largest go first (fewer when density leaves less room),
    then the smallest. Nothing is rescaled. deltas: (skills, out, in). Returns (out, in).
    """
    return torch.einsum("k,koi->oi", weights, torch.stack([_middle(d, density, gamma) for d in deltas]))


def _middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    count = int(density * delta.numel())
    outliers = min(int(gamma * delta.numel()), delta.numel() - count)
    if delta.numel() > CHUNK:
        return keep_count(delta, outliers + count).sub_(keep_count(delta, outliers))
    entries = delta.flatten()
    chosen = entries.abs().argsort(descending=True)[outliers : outliers + count]
    pruned = torch.zeros_like(entries)
    pruned[chosen] = entries[chosen]
    return pruned.view_as(delta)
