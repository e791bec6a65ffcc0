"""Iso-C: give every direction of the merged update the same strength (arXiv 2502.04959)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.registry import merge_method


@merge_method(
    label="Iso-C",
    paper="https://arxiv.org/abs/2502.04959",
    formula="mean(S) · U Vᵀ, where Σ w_i ΔW_i = U S Vᵀ, w = 1",
    weights="one",
)
def iso_c(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten the spectrum of the sum of the updates to its mean, inside its support.

    The paper's mean runs over min(out, in) singular values and its U Vᵀ over all directions; those of a
    LoRA sum are zero beyond Σr, so here both stay within the nonzero ones, as in the Core Space code. All
    singular values being equal, a cut to a lower rank would drop arbitrary directions. A: (r_i, in) and B:
    (out, r_i) per skill. Returns factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    P, S, Qh = torch.linalg.svd(torch.einsum("k,kpq->pq", weights.double(), cores), full_matrices=False)
    inside = support(S)
    mean = S[inside].sum() / inside.sum().clamp(min=1)
    return from_core(U, mean * P[:, inside] @ Qh[inside], V)
