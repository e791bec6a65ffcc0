"""SCE: select what varies, calculate the weights, erase minorities (FuseChat, arXiv 2408.07990; as mergekit's `sce`)."""

import torch
from torch import Tensor

from lab.merging.inner import shares
from lab.merging.pruning import Density, at_once, chunks, keep_count
from lab.merging.registry import merge_method


@merge_method(
    label="SCE",
    paper="https://arxiv.org/abs/2408.07990",
    formula="Σ c_i δ_i / Σ c_i over elected signs, δ_i = ΔW_i where the skills vary most, c_i = w_i ‖δ_i‖²",
)
def sce(deltas: Tensor, weights: Tensor, *, density: Density = 0.1) -> Tensor:
    """Keep the entries that differ most between the skills, weigh each skill by its energy there, drop the minority sign.

    One mask for all skills: the density·n entries of largest variance among the n that vary at all (mergekit keeps all by
    default, FuseChat a tenth). The sign of an entry is that of the unweighted sum. Only the weights' ratio counts. Where
    nothing varies, as with one skill or equal ones, there is nothing to select by and all is kept (mergekit keeps nothing).
    deltas: (skills, out, in). Returns (out, in). Raises LabError for a negative weight.
    """
    given = shares("sce", weights).to(deltas)
    entries = deltas.reshape(len(deltas), -1)
    merged = torch.zeros_like(entries[0])
    if not density:
        return merged.view(deltas.shape[1:])
    variance = torch.empty_like(merged)
    for part in chunks(len(merged), at_once(merged)):
        around = entries[:, part] - entries[:, part].mean(0)
        variance[part] = around.square_().mean(0)  # much faster than var for a few rows
    # Below the rounding of the updates themselves nothing varies.
    floor = (8 * torch.finfo(entries.dtype).eps * entries.abs().max()).square()
    variance[variance <= floor] = 0
    varying = int(variance.count_nonzero())
    if density < 1 and varying:
        selected = keep_count(variance, int(density * varying)) > 0
    else:
        selected = None
    energies = entries.new_zeros(len(entries), dtype=torch.float64)
    for part in chunks(len(merged), at_once(merged)):
        chosen = entries[:, part] if selected is None else entries[:, part] * selected[part]
        energies += torch.linalg.vector_norm(chosen, dim=1).double().square()
    c = (given.double() * energies).to(entries)
    c = c / c.sum().clamp(min=torch.finfo(c.dtype).tiny)
    for part in chunks(len(merged), at_once(merged)):
        chosen = entries[:, part] if selected is None else entries[:, part] * selected[part]
        sign = torch.where(chosen.sum(0) >= 0, 1.0, -1.0)
        agreeing = (chosen * sign > 0).to(chosen) * c[:, None]
        total = (agreeing * chosen).sum(0)
        merged[part] = total / agreeing.sum(0).clamp(min=torch.finfo(c.dtype).tiny)
    return merged.view(deltas.shape[1:])
