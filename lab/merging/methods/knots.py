"""KnOTS: align the updates by a joint SVD, merge there (arXiv 2410.19735)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from lab.merging.cores import shared_directions, to_cores
from lab.merging.pruning import Density, Prune, Scale, prune_and_elect
from lab.merging.registry import merge_method


@merge_method(
    label="KnOTS",
    paper="https://arxiv.org/abs/2410.19735",
    formula="U · TIES(S V_1, …, S V_k), where [ΔW_1 … ΔW_k] = U S [V_1 … V_k]",
    version=2,
)
def knots(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    density: Density = 0.2,
    prune: Prune = "magnitude",
    scale: Scale = 1.0,
    blocks: Annotated[Literal["S V", "V"], "what is merged: S V_i, as the authors' code, or V_i, as the paper's text"] = "S V",
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """TIES (or DARE-TIES) on the updates' coordinates along their common output directions.

    As in the released code the blocks carry the singular values (S V_i = Uᵀ ΔW_i). `density` counts the entries along the
    directions that are not zero; trimmed per module. A: (r_i, in) and B: (out, r_i) per skill. Returns A (d, in), B (out, d), d
    being the number of these directions, at most min(out, Σr).
    """
    U, cores, V = to_cores(A, B)
    directions, values = shared_directions(cores)
    before = values if blocks == "V" and values[0] else torch.ones_like(values)
    coordinates = ((directions / before).T @ cores @ V.T).float()  # S V_i or V_i: (skills, d, in)
    merged = prune_and_elect(coordinates, weights, density, prune, generator)
    return scale * merged, (U @ (directions * before)).float()
