"""CART: the mean of the skills, and of each only the strongest part of what sets it apart (arXiv 2412.12153)."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.pruning import Scale
from lab.merging.registry import Range, merge_method


@merge_method(
    label="CART",
    paper="https://arxiv.org/abs/2412.12153",
    formula="M + λ Σ [ΔW_i − M]_r, M = Σ w_i ΔW_i, [·]_r the best approximation of rank r, w = 1/k",
)
def cart(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    share: Annotated[float, Range(0, 1), "of the directions, kept of each difference to the mean"] = 0.25,
    of: Annotated[
        Literal["ranks", "sides"], "share of the skills' own directions (Core Space), or of min(out, in) (paper)"
    ] = "ranks",
    scale: Scale = 0.5,
) -> tuple[Tensor, Tensor]:
    """Centre the skills on their mean and add back the top singular directions of every difference.

    All differences together add up to zero, so keeping all is the mean again, and so are two skills of equal weight, whose
    differences are opposite: there is something to gain from three skills on. The paper's share is of min(out, in); for LoRAs
    that is often more than they have. A: (r_i, in) and B: (out, r_i) per skill. Returns factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    mean = torch.einsum("k,kpq->pq", weights.double(), cores)
    if of == "sides":
        directions = min(U.shape[0], V.shape[0])
    else:
        stacked = (torch.cat(list(cores), dim=1), torch.cat(list(cores)))
        directions = min(int(support(torch.linalg.svdvals(wide)).sum()) for wide in stacked)
    kept = math.ceil(share * directions - 1e-9)
    P, S, Qh = torch.linalg.svd(cores - mean, full_matrices=False)
    parts = (P[..., :kept] * S[:, None, :kept]) @ Qh[:, :kept]
    return from_core(U, mean + scale * parts.sum(0), V)
