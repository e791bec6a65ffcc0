"""The best factors of a given rank for an update: dense, or given as factors of a higher rank."""

import scipy.linalg
import torch
from torch import Tensor

from lab.lora.adapter import LoraFactors


def factor_delta(delta: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    """Best factors of at most `rank` for a dense update (out, in), the energy Σσ² discarded, the whole.

    From the top eigenvectors of the smaller Gram matrix in double precision, where the squaring of the
    singular values costs less than fp32 resolves: deterministic, and faster than an SVD of all directions.
    """
    rows = (delta if delta.shape[0] <= delta.shape[1] else delta.T).double()
    n = len(rows)
    top = (n - min(rank, n), n - 1)
    gram = (rows @ rows.T).numpy()
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=top, overwrite_a=True)
    P = torch.from_numpy(vectors).flip(1)  # (n, rank), strongest first
    projected = P.T @ rows  # σ_j times the other singular vector
    energies = projected.square().sum(dim=1)
    root = energies.sqrt().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    narrow, wide = (P * root).float(), (projected / root[:, None]).float()
    factors = LoraFactors(wide, narrow) if rows.shape == delta.shape else LoraFactors(narrow.T, wide.T)
    whole = rows.square().sum().item()
    return factors, max(whole - energies.sum().item(), 0.0), whole


def truncate(factors: LoraFactors, rank: int) -> tuple[LoraFactors, float, float]:
    """As `factor_delta` for an update given as factors, without forming it: QR of B and of Aᵀ, SVD of the
    small core.
    """
    Q_B, R_B = torch.linalg.qr(factors.scaling * factors.B)
    Q_A, R_A = torch.linalg.qr(factors.A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return _balanced(Q_B @ U, S, Vh @ Q_A.T, rank)


def _balanced(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    root = S[:rank].sqrt()
    energies = S.double().square()
    factors = LoraFactors(root[:, None] * Vh[:rank], U[:, :rank] * root)
    return factors, energies[rank:].sum().item(), energies.sum().item()
