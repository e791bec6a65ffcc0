"""LoRA-LEGO: cluster the ranks of all skills (arXiv 2409.16167)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.merging.registry import Range, merge_method


@merge_method(
    label="LoRA-LEGO",
    paper="https://arxiv.org/abs/2409.16167",
    formula="√(r/K) Σ_j b_j a_j, [a_j; b_j] centroids of K clusters of the skills' ranks, w = 1",
    weights="one",
)
def lora_lego(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    clusters: Annotated[int | None, Range(1), "ranks of the result; empty for the skills' largest"] = None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """k-means over the rank-one units of all skills; the centroids are the ranks of the merged LoRA.

    A unit is one rank's row of A and column of B, |w| folded in evenly, balanced to ‖a‖ = ‖b‖ (so how an
    update is split into B and A does not count, but for signs: [a; b] and [−a; −b] are far apart).
    Reweighting: a centroid gets the mean norm of its members, the output √(r/K), r being the skills' mean
    rank. There are at most as many clusters as units that are not zero. A: (r_i, in) and B: (out, r_i) per
    skill. Returns A (K, in), B (out, K).
    """
    units_A = torch.cat([w.abs().sqrt() * a for w, a in zip(weights, A, strict=True)])
    units_B = torch.cat([w.sign() * w.abs().sqrt() * b.T for w, b in zip(weights, B, strict=True)])
    norm_A, norm_B = units_A.norm(dim=1), units_B.norm(dim=1)
    alive = norm_A * norm_B > 0
    if not alive.any():
        return torch.zeros_like(units_A[:1]), torch.zeros_like(units_B[:1]).T
    balance = (norm_B / norm_A)[alive, None].sqrt()
    units = torch.cat([balance * units_A[alive], units_B[alive] / balance], dim=1)  # (Σr, in + out)
    ranks = [a.shape[0] for a, w in zip(A, weights, strict=True) if a.shape[0] and w]
    centroids = _centroids(units, min(clusters or max(ranks), len(units)), generator)
    gain = (sum(ranks) / len(ranks) / len(centroids)) ** 0.25
    merged_A, merged_B = (gain * centroids).split([units_A.shape[1], units_B.shape[1]], dim=1)
    return merged_A, merged_B.T


def _centroids(units: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Means of at most `count` k-means clusters, each scaled to the mean norm of its members: (K, width)."""
    if count == len(units):
        return units
    from sklearn.cluster import KMeans  # takes long to import, and only this method needs it

    # k-means sees distances only: coordinates in the units' own span (Σr) do, instead of in + out.
    coordinates = torch.linalg.qr(units.T.double()).R.T
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(coordinates.numpy())
    means = []
    for label in sorted(set(labels.tolist())):  # fewer than `count` when units coincide
        members = units[torch.from_numpy(labels == label)]
        mean = members.mean(0)
        means.append(mean * members.norm(dim=1).mean() / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny))
    return torch.stack(means)
