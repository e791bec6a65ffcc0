"""Linear merging of the factors ("LoRA Soups", arXiv 2410.13025, Section 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.merging.registry import merge_method


@merge_method(
    label="Linear",
    paper="https://arxiv.org/abs/2410.13025",
    formula="(Σ w_i √s_i B_i)(Σ w_i √s_i A_i), w = 1/k",
    depends_on_split=True,
)
def linear(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Product of the weighted sums of the factors: has cross terms B_i A_j, and w_i² on each skill's own.

    The paper does not say where the scaling goes. Here each factor carries its root, as in PEFT: then equal
    scalings s give s·(Σ w B)(Σ w A), the paper's formula times the common scaling, and one skill at weight 1
    is that skill.
    A: (r_i, in) and B: (out, r_i) per skill. Lower ranks are padded with zeros. Returns A (max r, in), B
    (out, max r).
    """
    rank = max(a.shape[0] for a in A)
    merged_A = sum(w * F.pad(a, (0, 0, 0, rank - a.shape[0])) for w, a in zip(weights, A, strict=True))
    merged_B = sum(w * F.pad(b, (0, rank - b.shape[1])) for w, b in zip(weights, B, strict=True))
    return torch.as_tensor(merged_A), torch.as_tensor(merged_B)
