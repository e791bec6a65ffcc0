"""Updates in a common subspace: ΔW_i = U C_i Vᵀ with small cores, so that no (out, in) matrix is formed."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

Basis = Annotated[Literal["factors", "updates"], "singular vectors of the stacked factors (the paper) or of the stacked updates"]


def to_cores(A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal U (out, p) and V (in, q), and cores C (skills, p, q) with B_i A_i = U C_i Vᵀ exactly.

    A: (r_i, in) and B: (out, r_i). p = min(out, Σr), q = min(in, Σr). By QR, in double precision.
    """
    ranks = [a.shape[0] for a in A]
    U, R_B = torch.linalg.qr(torch.cat(list(B), dim=1).double())
    V, R_A = torch.linalg.qr(torch.cat(list(A)).T.double())
    cores = [b @ a.T for b, a in zip(R_B.split(ranks, dim=1), R_A.split(ranks, dim=1), strict=True)]
    return U, torch.stack(cores), V


def from_core(U: Tensor, core: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """A (min(p, q), in) and B (out, min(p, q)) in fp32, of equal norms per rank, with B A = U·core·Vᵀ."""
    P, S, Qh = torch.linalg.svd(core, full_matrices=False)
    root = S.sqrt()
    return (root[:, None] * (Qh @ V.T)).float(), (U @ P * root).float()


def support(S: Tensor) -> Tensor:
    """Which of the singular values S (descending) are more than rounding errors of fp32 factors."""
    return S > S[0] * len(S) * torch.finfo(torch.float32).eps


def shared_directions(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Left singular vectors (p, d) and singular values (d,) of [X_1 … X_k], those inside the support, at least one.

    blocks: X_i (p, n_i), for example the cores C_i, which give those of [ΔW_1 … ΔW_k] in U's basis, or Uᵀ B_i.
    """
    P, S, _ = torch.linalg.svd(torch.cat(list(blocks), dim=1), full_matrices=False)
    inside = support(S)
    inside[:1] = True
    return P[:, inside], S[inside]


def common_directions(
    A: Sequence[Tensor], B: Sequence[Tensor], U: Tensor, cores: Tensor, V: Tensor, basis: Basis
) -> list[tuple[Tensor, Tensor]]:
    """`shared_directions` of the output and of the input space, in the bases U and V of `to_cores`.

    basis "updates": of [ΔW_1 … ΔW_k] and [ΔW_1; …; ΔW_k]; "factors": of [B_1 … B_k] and [A_1; …; A_k], which depend on how each
    update is split into B and A.
    """
    if basis == "updates":
        return [shared_directions(cores), shared_directions(cores.mT)]
    return [shared_directions([U.T @ b.double() for b in B]), shared_directions([V.T @ a.T.double() for a in A])]
