"""Spherical interpolation of two updates, output by output (mergekit's `nuslerp`)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from lab.errors import LabError
from lab.merging.inner import gram, row_gram, shares
from lab.merging.registry import merge_method

COLINEAR = 1e-7  # radians: below it the arc is a straight line to the precision of double cosines


@merge_method(
    label="NuSLERP",
    paper="https://github.com/arcee-ai/mergekit",
    formula="(sin((1−t)θ) ΔW_1 + sin(tθ) ΔW_2)/sin θ per output, t = w_2/(w_1 + w_2), θ = ∠ of the two rows",
    max_skills=2,
)
def nuslerp(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    per: Annotated[Literal["row", "column", "module"], "what has an angle of its own: an output, an input, the module"] = "row",
) -> tuple[Tensor, Tensor]:
    """SLERP with an angle per output (row of the update); exact at rank Σr.

    mergekit's default flattens, which is `slerp` ("module", but for nearly parallel updates); "row" and "column" are its other
    forms. A row that is zero counts as orthogonal. Only the weights' ratio counts; one skill alone is returned as it is.
    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr). Raises LabError for more than two skills, a
    negative weight or both weights zero.
    """
    if len(A) > 2:
        raise LabError(f"nuslerp merges exactly two skills, not {len(A)}; choose another method, such as multislerp.")
    w = shares("nuslerp", weights)
    if len(A) == 1:
        return A[0], B[0]
    if per == "column":
        products = row_gram([b.T for b in B], [a.T for a in A])  # of the transposed updates
    else:
        products = row_gram(A, B) if per == "row" else gram(A, B)[..., None]
    lengths = (products[0, 0] * products[1, 1]).clamp(min=torch.finfo(products.dtype).tiny).sqrt()
    theta = (products[0, 1] / lengths).clamp(-1, 1).arccos()
    sine = theta.sin()
    scales = [torch.where(sine > COLINEAR, (s * theta).sin() / sine.clamp(min=COLINEAR), s).float() for s in w]
    if per == "column":
        return torch.cat([a * s for a, s in zip(A, scales, strict=True)]), torch.cat(list(B), dim=1)
    return torch.cat(list(A)), torch.cat([b * s[:, None] for b, s in zip(B, scales, strict=True)], dim=1)
