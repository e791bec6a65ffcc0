"""Iso-CTS: a flat spectrum over the common directions and some of each skill's own (arXiv 2502.04959)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lab.merging.cores import from_core, support, to_cores
from lab.merging.methods.tsv import orthogonal
from lab.merging.registry import Range, merge_method


@merge_method(
    label="Iso-CTS",
    paper="https://arxiv.org/abs/2502.04959",
    formula="mean(S) · polar[U_c, U_1, …, U_k] polar[V_c, V_1, …, V_k]ᵀ, U_c of Σ w_i ΔW_i, U_i of w_i ΔW_i outside U_c, w = 1",
    weights="one",
)
def iso_cts(
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    weights: Tensor,
    *,
    common: Annotated[float, Range(0, 1), "share of the directions that come from the sum; the skills share the rest"] = 0.8,
    directions: Annotated[int | None, Range(1), "how many in all; empty for as many as the sum has"] = None,
) -> tuple[Tensor, Tensor]:
    """Iso-C whose weakest common directions give way to the strongest of each skill that the common ones miss.

    Directions are counted among those that the sum has, where the paper counts all min(out, in), most of which are null for
    LoRAs and arbitrary. With too few for every skill to have one it is Iso-C. A skill whose update lies within the common
    directions gives none. All singular values being equal, a cut to a lower rank would drop arbitrary directions.
    A: (r_i, in) and B: (out, r_i) per skill. Returns factors of rank at most Σr.
    """
    U, cores, V = to_cores(A, B)
    cores = weights.double()[:, None, None] * cores
    P, S, Qh = torch.linalg.svd(cores.sum(0), full_matrices=False)
    inside = int(support(S).sum())
    total = min(directions or inside, inside)
    own = (total - int(total * common + 1e-9)) // len(cores)
    shared = total - own * len(cores)
    left, values, right = [P[:, :shared]], [S[:shared]], [Qh[:shared].T]
    rest = cores - left[0] @ (left[0].T @ cores)
    floor = torch.linalg.matrix_norm(cores).max() * U.shape[1] * torch.finfo(torch.float32).eps
    for core in rest:
        p, s, qh = torch.linalg.svd(core, full_matrices=False)
        count = min(own, int((s > floor).sum()))
        left.append(p[:, :count])
        values.append(s[:count])
        right.append(qh[:count].T)
    flat = torch.cat(values)
    mean = flat.sum() / max(len(flat), 1)
    return from_core(U, mean * orthogonal(torch.cat(left, dim=1)) @ orthogonal(torch.cat(right, dim=1)).T, V)
