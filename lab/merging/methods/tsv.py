"""TSV-Merge: decorrelate the skills' singular vectors (arXiv 2412.00081, "Task Singular Vectors")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.registry import merge_method


@merge_method(
    label="TSV-M",
    paper="https://arxiv.org/abs/2412.00081",
    formula="Û diag(w_i S_i) V̂ᵀ, Û and V̂ nearest orthogonal to [U_1 … U_k] and [V_1 … V_k], w = 1",
    weights="one",
)
def tsv(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Put the top singular triples of all skills side by side and orthogonalise them (Procrustes).

    Each of the k skills that change a module gives its first min(out, in)/k triples, as in the paper; for
    a LoRA that is usually all of them. Directions of singular value zero take no part: they are arbitrary,
    yet the released code lets them shift the others. A: (r_i, in) and B: (out, r_i) per skill. Returns
    factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    kept = min(len(U), len(V)) // sum(a.shape[0] > 0 for a in A)
    left, values, right = [], [], []
    for core, weight in zip(cores, weights, strict=True):
        P, S, Qh = torch.linalg.svd(core, full_matrices=False)
        count = min(kept, int(support(S).sum()))
        left.append(P[:, :count])
        values.append(weight * S[:count])
        right.append(Qh[:count].T)
    P, Q = orthogonal(torch.cat(left, dim=1)), orthogonal(torch.cat(right, dim=1))
    return from_core(U, P * torch.cat(values) @ Q.T, V)


def orthogonal(X: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; inside the span of X where X has not full rank."""
    P, S, Qh = torch.linalg.svd(X, full_matrices=False)
    if not len(S):
        return X
    inside = support(S)
    return P[:, inside] @ Qh[inside]
