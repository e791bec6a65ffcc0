"""Core Space: merge small cores between common bases (arXiv 2509.17786)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.cores import Basis, common_directions, from_core, to_cores
from lab.merging.pruning import Density, Prune, Scale, prune_and_elect
from lab.merging.registry import merge_method


@merge_method(
    label="Core Space",
    paper="https://arxiv.org/abs/2509.17786",
    formula="U · TIES(C_1, …, C_k) · Vᵀ, where ΔW_i = U C_i Vᵀ with common U and V",
    version=2,
    depends_on_split=True,
)
def core_space(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    density: Density = 0.2,
    prune: Prune = "magnitude",
    scale: Scale = 1.0,
    basis: Basis = "factors",
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """TIES (or DARE-TIES) on cores of at most Σr × Σr between bases that all skills share; lossless.

    The bases are the singular vectors of the stacked factors, as in the paper, so the result depends on how an update is split
    into B and A (each carries the root of the scaling); those of the stacked updates (`basis`) do not, and are the same when each
    skill's other factor is orthogonal. Directions that are zero do not count in `density`. A: (r_i, in) and B: (out, r_i) per
    skill. Returns factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    (left, _), (right, _) = common_directions(A, B, U, cores, V, basis)
    merged = prune_and_elect(left.T @ cores @ right, weights.double(), density, prune, generator)
    return from_core(U @ left, scale * merged, V @ right)
