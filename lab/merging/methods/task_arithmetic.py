"""Task arithmetic and the truncated SVD of a weighted sum."""

from collections.abc import Sequence

from torch import Tensor

from lab.merging.methods.concatenation import cat_static
from lab.merging.registry import merge_method


@merge_method(label="Task arithmetic", paper="https://arxiv.org/abs/2212.04089", formula="Σ w_i ΔW_i, w = 1", weights="one")
def task_arithmetic(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the updates: `cat_static` with weights 1 instead of 1/k ("Editing Models with Task Arithmetic").

    For LoRAs the sum is exact at rank Σr. A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B
    (out, Σr).
    """
    return cat_static(A, B, weights)


@merge_method(
    label="SVD",
    paper="https://huggingface.co/docs/peft/developer_guides/model_merging",
    formula="best approximation of Σ w_i ΔW_i, w = 1/k, at rank max r_i",
    rank="max",
)
def svd(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum cut to the skills' largest rank, or to the rank asked for (PEFT's combination type `svd`).

    A: (r_i, in) and B: (out, r_i) per skill. Returns the exact sum; it is cut as the others are, by QR and
    the SVD of a Σr × Σr core, with the discarded energy on the record.
    """
    return cat_static(A, B, weights)
