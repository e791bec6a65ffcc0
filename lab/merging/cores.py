"""Updates in a common subspace: ΔW_i = U C_i Vᵀ with small cores, so that no (out, in) matrix is formed."""

from collections.abc import Sequence

import torch
from torch import Tensor


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


def shared_directions(cores: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (p, p') and singular values (p',) of [ΔW_1 … ΔW_k], the vectors in U's basis.

    They depend on the updates only, not on how each is split into factors.
    """
    P, S, _ = torch.linalg.svd(torch.cat(list(cores), dim=1), full_matrices=False)
    return P, S
