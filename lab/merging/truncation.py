"""The best factors of a given rank for an update: dense, or given as factors of a higher rank."""

import scipy  # its parts are imported when they are asked for
import torch
from torch import Tensor

from lab.lora.adapter import LoraFactors
from lab.merging.registry import seeded_generator

EXACT = 512  # the smaller side up to which a dense update is decomposed exactly, in a tenth of a second at most
OVERSAMPLING = 16
# Of the energy discarded: what one more pass must gain to be followed by another. The rest of a geometric series stays below 1 %.
GAIN = 1e-3
PASSES = 12


def factor_delta(delta: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    """Best factors of at most `rank` for a dense update (out, in), the energy Σσ² discarded, the whole.

    Exact up to a smaller side of EXACT, else by a randomised range finder. Both are deterministic. Factors are on the CPU.
    """
    return _exact(delta.cpu(), rank) if is_exact(delta.shape) else _randomised(delta, rank)


def is_exact(shape: tuple[int, int]) -> bool:
    """Whether `factor_delta` decomposes an update of this shape exactly."""
    return min(shape) <= EXACT


def _exact(delta: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    """From the top eigenvectors of the smaller Gram matrix in double precision, where the squaring of the
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


def _randomised(delta: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    """Randomised range finder with subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061, Algorithm 4.4).

    From a seeded start, each pass multiplies by ΔW ΔWᵀ; the last is the one that gained less than GAIN of what it discards.
    """
    width = min(rank + OVERSAMPLING, *delta.shape)
    start = torch.randn(delta.shape[1], width, generator=seeded_generator(0, "range finder"))
    whole = torch.linalg.vector_norm(delta).item() ** 2
    right = start.to(delta)  # (in, width)
    kept = 0.0
    for _ in range(PASSES):
        Q_out = torch.linalg.qr(delta @ right).Q  # (out, width)
        right, R = torch.linalg.qr(delta.T @ Q_out)  # ΔWᵀ Q_out: the update within the range found, (in, width) and its core
        U, S, Vh = torch.linalg.svd(R.T)
        before, kept = kept, S[:rank].double().square().sum().item()
        if kept - before <= max(GAIN * (whole - kept), torch.finfo(torch.float32).eps * whole):
            break
    root = S[:rank].sqrt()
    factors = LoraFactors((root[:, None] * (right @ Vh[:rank].T).T).cpu(), (Q_out @ U[:, :rank] * root).cpu())
    return factors, max(whole - kept, 0.0), whole


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
