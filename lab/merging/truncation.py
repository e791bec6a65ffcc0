"""The best factors of a given rank for an update: dense, or given as factors of a higher rank."""

import torch
from torch import Tensor

from lab.lora.adapter import LoraFactors
from lab.merging.registry import seeded_generator

EXACT = 512  # the smaller side up to which a dense update is decomposed exactly, in a tenth of a second at most
OVERSAMPLING = 16
# Of the energy discarded: what a product must gain to be followed by another. The rest of the series then stays below 1 %.
GAIN = 1e-3
PRODUCTS = 24  # at most


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
    import scipy.linalg  # here: what learns or concatenates runs without scipy too

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

    From a seeded start, ΔW and ΔWᵀ are multiplied by what the other gave, made orthonormal, until a product captures hardly
    more energy than the one before.
    """
    width = min(rank + OVERSAMPLING, *delta.shape)
    start = torch.randn(delta.shape[1], width, generator=seeded_generator(0, "range finder"))
    whole = torch.linalg.vector_norm(delta, dim=1).double().square().sum().item()
    basis, X = torch.linalg.qr(start.to(delta)).Q, delta
    kept, products = 0.0, 0
    while True:
        Q, R = torch.linalg.qr(X @ basis)  # within the basis, X is Q R basisᵀ
        U, S, Vh = torch.linalg.svd(R)
        products += 1
        before, kept = kept, S[:rank].double().square().sum().item()
        if kept - before <= max(GAIN * (whole - kept), torch.finfo(torch.float32).eps * whole) or products == PRODUCTS:
            break
        basis, X = Q, X.T
    root = S[:rank].sqrt()
    left, right = Q @ U[:, :rank] * root, root[:, None] * (Vh[:rank] @ basis.T)
    A, B = (right, left) if products % 2 else (left.T, right.T)  # X was ΔW, or ΔWᵀ
    return LoraFactors(A.cpu().contiguous(), B.cpu().contiguous()), max(whole - kept, 0.0), whole


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
