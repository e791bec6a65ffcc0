"""WUDI in closed form: no skill's update is disturbed on its own inputs (arXiv 2503.08099)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.inner import shares
from lab.merging.registry import merge_method


@merge_method(
    label="WUDI",
    paper="https://arxiv.org/abs/2503.08099",
    formula="Σ c_i ΔW_i ΔW_iᵀ ΔW_i (Σ c_i ΔW_iᵀ ΔW_i)⁺, c_i = w_i/‖ΔW_i‖², w = 1",
    weights="one",
)
def wudi(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    balance: Annotated[bool, "divide c_i by ‖ΔW_i‖², as WUDI; without it c_i = w_i, as ActMerge"] = True,
) -> tuple[Tensor, Tensor]:
    """The update M that least disturbs every skill on the inputs it reads: min Σ c_i ‖(M − ΔW_i) ΔW_iᵀ‖².

    The paper descends to it by gradient; this is the minimum itself, of least norm. Where the rows of all A_i are independent
    M is every skill exactly on its own rows, whatever the weights: the answer to w = 1 against 1/k. Only the weights' ratio
    counts. Directions below the rounding of fp32 factors take no part: they would decide, and for equal skills arbitrarily.
    A: (r_i, in) and B: (out, r_i) per skill. Returns factors of rank at most Σr. Raises LabError for a negative weight.
    """
    U, cores, V = to_cores(A, B)
    norms = torch.linalg.matrix_norm(cores)
    present = norms > 0
    cores, norms, c = cores[present], norms[present], shares("wudi", weights)[present]
    if not len(cores):
        return from_core(U, U.new_zeros(U.shape[1], V.shape[1]), V)
    roots = c.sqrt() / (norms if balance else 1)
    P, S, Qh = torch.linalg.svd(torch.cat(list(roots[:, None, None] * cores)), full_matrices=False)  # [√c_i C_i] = P S Qh
    inside = support(S)
    parts = P[:, inside].unflatten(0, (len(cores), -1))  # √c_i C_i Q S⁻¹ = P_i
    merged = torch.einsum("k,kpq,krq,krs->ps", roots, cores, cores, parts) / S[inside] @ Qh[inside]
    return from_core(U, merged, V)
