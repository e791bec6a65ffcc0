"""LoRA-LEGO: cluster the ranks of all skills (arXiv 2409.16167)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from lab.merging.registry import Range, merge_method

STARTS = 20  # of k-means, beside the one without chance
Units = Annotated[
    Literal["balanced", "raw", "directions"], "what is clustered: [a; b] with ‖a‖ = ‖b‖, as stored, or a and b of length 1"
]
Norm = Annotated[Literal["max", "l2"], "norm whose mean over its members a centroid gets"]
Root = Annotated[Literal["mean", "sum"], "r in √(r/K): the skills' mean rank, or the sum of their ranks"]


@merge_method(
    label="LoRA-LEGO",
    paper="https://arxiv.org/abs/2409.16167",
    formula="√(r/K) Σ_j b_j a_j, [a_j; b_j] centroids of K clusters of the skills' ranks, w = 1",
    weights="one",
    version=2,
    depends_on_split=True,
)
def lora_lego(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    clusters: Annotated[int | None, Range(1), "ranks of the result; empty for the skills' largest"] = None,
    units: Units = "balanced",
    norm: Norm = "max",
    root: Root = "mean",
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """k-means over the rank-one units of all skills; the centroids are the ranks of the merged LoRA.

    A unit is one rank's row of A and column of B, |w| folded in evenly. Balanced to ‖a‖ = ‖b‖, the lengths of A and B do not
    count; how an update is split into ranks always does. Reweighting: a centroid gets the mean norm of its members, the output
    √(r/K). Both codes that others wrote take the largest entry as the norm; they cluster raw units with r summed over the skills
    (compress-then-merge), and directions with the r of one skill (nsc_merging). The seed is of k-means' starts; the best of many
    is kept, one of them without chance (Ward's clustering), so it hardly matters. There are at most as many clusters as units that
    are not zero. A: (r_i, in) and B: (out, r_i) per skill. Returns A (K, in), B (out, K).
    """
    units_A = torch.cat([w.abs().sqrt() * a for w, a in zip(weights, A, strict=True)])
    units_B = torch.cat([w.sign() * w.abs().sqrt() * b.T for w, b in zip(weights, B, strict=True)])
    norm_A, norm_B = units_A.norm(dim=1, keepdim=True), units_B.norm(dim=1, keepdim=True)
    alive = (norm_A * norm_B > 0)[:, 0]
    if not alive.any():
        return torch.zeros_like(units_A[:1]), torch.zeros_like(units_B[:1]).T
    balance = (norm_B / norm_A).sqrt() if units == "balanced" else torch.ones_like(norm_A)
    pool = torch.cat([balance * units_A, units_B / balance], dim=1)[alive]  # (Σr, in + out)
    seen = torch.cat([units_A / norm_A, units_B / norm_B], dim=1)[alive] if units == "directions" else pool
    ranks = [n for n in (int(part.sum()) for part in alive.split([len(a) for a in A])) if n]
    means = centroids(pool, _clusters(seen, min(clusters or max(ranks), len(pool)), generator), norm)
    r = sum(ranks) / (len(ranks) if root == "mean" else 1)
    merged_A, merged_B = ((r / len(means)) ** 0.25 * means).split([units_A.shape[1], units_B.shape[1]], dim=1)
    return merged_A, merged_B.T


def _clusters(points: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """k-means of points (n, width) into at most `count` clusters: which points are in each, (n,) bool."""
    if count == len(points):
        return list(torch.eye(count, dtype=torch.bool))
    from sklearn.cluster import AgglomerativeClustering, KMeans  # take long to import, and only this method needs them

    # k-means sees distances only: coordinates in the points' own span (n) do, instead of their width.
    coordinates = torch.linalg.qr(points.T.double()).R.T.numpy()
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    ward = AgglomerativeClustering(count).fit_predict(coordinates)
    start = np.stack([coordinates[ward == label].mean(0) for label in range(count)])
    runs = [
        KMeans(count, init=start, n_init=1).fit(coordinates),
        KMeans(count, n_init=STARTS, random_state=seed).fit(coordinates),
    ]
    best = min(runs, key=lambda run: run.inertia_)
    return [torch.from_numpy(best.labels_ == label) for label in sorted(set(best.labels_.tolist()))]  # fewer where units coincide


def centroids(units: Tensor, clusters: Sequence[Tensor], norm: str) -> Tensor:
    """The mean of each cluster, scaled to the mean norm of its members: (K, width)."""
    order = torch.inf if norm == "max" else 2
    tiny = torch.finfo(units.dtype).tiny
    means = []
    for members in (units[cluster] for cluster in clusters):
        mean = members.mean(0)
        means.append(mean * members.norm(order, dim=1).mean() / mean.norm(order).clamp(min=tiny))
    return torch.stack(means)
