"""Pico: weaken the output directions that skills share, then merge (arXiv 2604.16826)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.cores import Basis, common_directions, from_core, to_cores
from lab.merging.registry import merge_method


@merge_method(
    label="Pico",
    paper="https://arxiv.org/abs/2604.16826",
    formula="c · Σ w_i U diag(α) Uᵀ ΔW_i, α_j = 1/(1 + (k−1) σ_j²/Σσ²), U, σ from [B_1 … B_k], w = 1/k",
    version=2,
    depends_on_split=True,
)
def pico(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor, *, basis: Basis = "factors") -> tuple[Tensor, Tensor]:
    """Shrink each direction of output space by its share of all skills' energy, sum, restore the size.

    Pico before task arithmetic. c makes the norm Σ |w_i| ‖ΔW_i‖, which at w = 1/k is the paper's mean norm. k
    counts the skills that change the module. U and σ are those of the stacked B_i, as in the paper, so the result depends on how
    an update is split into B and A (each carries the root of the scaling); those of the stacked updates (`basis`) do not, and are
    the same when the rows of every A_i are orthogonal and of one length, as they nearly are at LoRA's start.
    A: (r_i, in) and B: (out, r_i) per skill. Returns factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    (directions, values), _ = common_directions(A, B, U, cores, V, basis)
    k = sum(a.shape[0] > 0 for a in A)
    energy = values.square()
    shrink = 1 / (1 + (k - 1) * energy / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
    weights = weights.double()
    merged = shrink[:, None] * (directions.T @ torch.einsum("k,kpq->pq", weights, cores))
    size = weights.abs() @ torch.linalg.matrix_norm(cores)
    norm = merged.norm()
    return from_core(U @ directions, merged * (size / norm if norm > 0 else 0), V)
