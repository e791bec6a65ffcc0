"""Singular value calibration: undo what skills count twice, after any merge (arXiv 2602.05536)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.adapter import LoraFactors
from lab.merging.cores import support
from lab.merging.registry import METHODS, Range, complete_parameters, get_method, merge_method
from lab.merging.truncation import factor_delta


@merge_method(
    label="SVC",
    paper="https://arxiv.org/abs/2602.05536",
    formula="Σ_j γ_j σ_j u_j v_jᵀ, M = Σ_j σ_j u_j v_jᵀ any merge, γ_j = k/Σ_i max(α, ⟨u_jᵀM, u_jᵀΔW_i⟩/‖u_jᵀΔW_i‖²)",
    weights="one",
)
def svc(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    after: Annotated[str, "the merge that is calibrated, with its default parameters and these weights"] = "task_arithmetic",
    alpha: Annotated[float, Range(1e-3, 10), "the least that a skill counts; more keeps the result smaller"] = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Scale every output direction of a merge down by how much it exaggerates the skills' own responses there.

    Twice the same skill, added up, is halved again. k counts the skills that respond to a direction at all. A merge that is
    dense is cut to rank Σr first. Directions of equal singular value (`iso_c`) are not determined, and so is not what becomes
    of them. A: (r_i, in) and B: (out, r_i) per skill. Returns factors of the rank of that merge. Raises LabError for another
    kind of method.
    """
    rank = sum(a.shape[0] for a in A)
    merged_A, merged_B = (f.double() for f in _merged(after, A, B, weights, rank, generator))
    Q_B, R_B = torch.linalg.qr(merged_B)
    Q_A, R_A = torch.linalg.qr(merged_A.T)
    P, S, Qh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    kept = support(S)
    U, S, V = Q_B @ P[:, kept], S[kept], Q_A @ Qh[kept].T
    total, responding = torch.zeros_like(S), torch.zeros_like(S)
    for a, b in zip(A, B, strict=True):
        a, b = a.double(), b.double()
        left = U.T @ b  # (directions, r_i); left @ a is what the skill writes along them
        overlap = S * ((V.T @ a.T) * left).sum(1)
        energy = ((left @ (a @ a.T)) * left).sum(1)
        responds = energy.sqrt() > energy.sum().sqrt() * len(S) * torch.finfo(torch.float32).eps
        ratio = overlap / energy.where(responds, energy.new_ones(()))
        total += ratio.clamp(min=alpha).where(responds, ratio.new_zeros(()))
        responding += responds
    gamma = torch.where(responding > 0, responding / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0)
    root = S.sqrt()
    return (root[:, None] * V.T).float(), (U * (gamma * root)).float()


def _merged(name: str, A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor, rank: int, generator: torch.Generator):
    """What another method makes of the same: A (R, in), B (out, R)."""
    method = get_method(name)
    if method.kind not in ("factors", "delta") or name == "svc":
        able = [found for found, m in METHODS.items() if m.kind in ("factors", "delta") and found != "svc"]
        raise LabError(
            f"svc: after is {name!r}, which gives no merged update by itself; choose one of {', '.join(sorted(able))}."
        )
    parameters = complete_parameters(method, {})
    parameters.pop("seed", None)
    if method.draws:
        parameters["generator"] = generator
    if method.kind == "factors":
        return method.function(A, B, weights, **parameters)
    deltas = torch.stack([LoraFactors(a, b).delta_weight() for a, b in zip(A, B, strict=True)])
    factors, _, _ = factor_delta(method.function(deltas, weights, **parameters), rank)
    return factors.A, factors.B
