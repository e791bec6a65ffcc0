"""KnOTS: align the updates by a joint SVD, merge there (arXiv 2410.19735)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.cores import shared_directions, to_cores
from lab.merging.pruning import Density, Prune, Scale, prune_and_elect
from lab.merging.registry import merge_method


@merge_method(
    label="KnOTS",
    paper="https://arxiv.org/abs/2410.19735",
    formula="U · TIES(S V_1, …, S V_k), where [ΔW_1 … ΔW_k] = U S [V_1 … V_k]",
)
def knots(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    density: Density = 0.2,
    prune: Prune = "magnitude",
    scale: Scale = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """TIES (or DARE-TIES) on the updates' coordinates along their common output directions.

    As in the released code the blocks carry the singular values (S V_i = Uᵀ ΔW_i); trimmed per module.
    A: (r_i, in) and B: (out, r_i) per skill. Returns A (min(out, Σr), in), B (out, min(out, Σr)).
    """
    U, cores, V = to_cores(A, B)
    directions, _ = shared_directions(cores)
    blocks = (directions.T @ cores @ V.T).float()  # S V_i: (skills, p, in)
    merged = prune_and_elect(blocks, weights, density, prune, generator)
    return scale * merged, (U @ directions).float()
