"""Inner products of updates, from their factors: what the methods on the sphere and the angles between skills need."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.errors import LabError


def gram(A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
    """(skills, skills), double precision: ⟨ΔW_i, ΔW_j⟩ of ΔW_i = B_i A_i, without forming them."""
    A, B = [a.double() for a in A], [b.double() for b in B]
    return torch.stack(
        [torch.stack([((b.T @ d) * (a @ c.T)).sum() for c, d in zip(A, B, strict=True)]) for a, b in zip(A, B, strict=True)]
    )


def row_gram(A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
    """(skills, skills, out), double precision: the same for every output's row of the updates."""
    A, B = [a.double() for a in A], [b.double() for b in B]
    rows = [[((b @ (a @ c.T)) * d).sum(1) for c, d in zip(A, B, strict=True)] for a, b in zip(A, B, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


def shares(method: str, weights: Tensor) -> Tensor:
    """The weights divided by their sum, in double precision. Raises LabError for negative ones, or all zero."""
    if weights.min() < 0 or weights.sum() == 0:
        raise LabError(f"{method}: the weights are {weights.tolist()}; give numbers from 0 with a sum above 0.")
    return weights.double() / weights.double().sum()
