"""Model Stock: the mean, pulled towards the base by the angle between the skills (arXiv 2403.19522)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.merging.inner import gram, row_gram
from lab.merging.methods.concatenation import cat_static
from lab.merging.registry import merge_method


@merge_method(
    label="Model Stock",
    paper="https://arxiv.org/abs/2403.19522",
    formula="t Σ w_i ΔW_i, t = k c/(1 + (k−1) c), c = mean cosine between the updates, w = 1/k",
)
def model_stock(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    per_row: Annotated[
        bool, "an angle of its own for every output (mergekit's filter_wise), instead of one per module"
    ] = False,
) -> tuple[Tensor, Tensor]:
    """Static CAT scaled by how far the skills agree: skills at right angles give the base, equal ones themselves.

    k counts the skills that change the module (or row); for a single one t is 1. For k > 2, c is the mean over the pairs, as in
    mergekit (the paper does not say). Nothing keeps t from 0 to 1: where the skills point apart (c < 0) it is negative, as there;
    where they are all but opposite t has no value, and the base is given.
    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr).
    """
    products = row_gram(A, B) if per_row else gram(A, B)[..., None]  # (skills, skills, rows)
    norms = products.diagonal().T.clamp(min=0).sqrt()  # (skills, rows)
    present = norms > 0
    both = (present[:, None] & present).double()
    cosines = (products / (norms[:, None] * norms).clamp(min=torch.finfo(products.dtype).tiny)).clamp(-1, 1) * both
    k = present.sum(0).double()
    pairs = k * (k - 1)
    c = (cosines.sum((0, 1)) - k) / pairs.clamp(min=1)
    below = 1 + (k - 1) * c
    t = torch.where(pairs > 0, torch.where(below > 1e-3, k * c / below.clamp(min=1e-3), 0.0), 1.0)
    merged_A, merged_B = cat_static(A, B, weights)
    return merged_A, (merged_B * t[:, None]).float()
