"""Compress, then merge: one small pair of bases for all skills, the merge inside them (ICML 2026)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.pruning import elect_and_merge, keep_largest
from lab.merging.registry import Range, merge_method

ITERATIONS = 1000


@merge_method(
    label="Compress then merge",
    paper="https://github.com/ZhengbaoHe/compress-then-merge",
    formula="U · merge(UᵀΔW_1V, …, UᵀΔW_kV) · Vᵀ, U and V (rank r): Tucker bases of the norm-balanced updates, w = 1/k",
)
def compress_then_merge(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    size: Annotated[int | None, Range(1), "rank of the result; empty for the skills' largest"] = None,
    norms: Annotated[float, Range(0, 1), "how far the skills' norms count for the bases; 0: all alike"] = 0.0,
    trim: Annotated[float | None, Range(0, 1), "merge inside by TIES, keeping this fraction; empty: the weighted sum"] = None,
    tolerance: Annotated[float, Range(0, 1), "change of the relative error at which the bases are done"] = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Find the bases of rank r that keep most of all skills together, and merge the small r × r matrices between them.

    A merge of rank r by construction, where others are cut afterwards. The Tucker decomposition is HOOI from the HOSVD, with
    the released code's end; a smaller tolerance moves the bases by a thousandth or so. A: (r_i, in) and B: (out, r_i) per
    skill. Returns factors of rank r.
    """
    U, cores, V = to_cores(A, B)
    lengths = torch.linalg.matrix_norm(cores)
    present = lengths > 0
    if not present.any():
        return from_core(U, cores.sum(0), V)
    own = max(int(support(torch.linalg.svdvals(core)).sum()) for core in cores[present])
    rank = min(size or own, *cores.shape[1:])
    mean = lengths[present].mean()
    balanced = cores[present] * (norms + (1 - norms) * mean / lengths[present])[:, None, None]
    left, right = tucker(balanced, rank, tolerance)
    small = left.T @ cores @ right
    if trim is None:
        merged = torch.einsum("k,kpq->pq", weights.double(), small)
    else:
        merged = elect_and_merge(torch.stack([keep_largest(core, trim) for core in small]), weights.double(), normalize=True)
    return from_core(U @ left, merged, V @ right)


def tucker(cores: Tensor, rank: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Orthonormal L (p, rank) and R (q, rank) that keep most of Σ ‖Lᵀ C_i R‖²: found in turns, from the strongest."""

    def strongest(
        blocks: Tensor,
    ) -> Tensor:  # of the left singular vectors of [X_1 … X_k]; in double precision squares do no harm
        return torch.linalg.eigh((blocks @ blocks.mT).sum(0)).eigenvectors.flip(1)[:, :rank]

    right = strongest(cores.mT)
    whole, errors = cores.square().sum(), []
    while len(errors) < ITERATIONS:
        left = strongest(cores @ right)
        right = strongest(cores.mT @ left)
        kept = (left.T @ cores @ right).square().sum()
        errors.append(((whole - kept).abs() / whole).sqrt())
        if len(errors) > 2 and abs(errors[-1] - errors[-2]) < tolerance:
            break
    return left, right
