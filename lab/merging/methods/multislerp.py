"""Spherical interpolation of any number of updates (mergekit's `multislerp`)."""

from collections.abc import Sequence

from torch import Tensor

from lab.merging.methods.karcher import on_sphere
from lab.merging.registry import merge_method


@merge_method(
    label="Multi-SLERP",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    formula="Σ w_i ‖ΔW_i‖ · exp_m(Σ w_i (u_i − ⟨u_i, m⟩ m)), u_i = ΔW_i/‖ΔW_i‖, m = Σ w_i u_i/‖·‖, w = 1/k",
)
def multislerp(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """One step on the sphere from the mean direction of the skills, at their mean norm, per module; exact at rank Σr.

    For two skills of equal weight it is their arc's middle. `karcher` goes on until the angles are balanced. Only the weights'
    ratio counts. Where directions cancel, the weighted sum is given (mergekit: for two skills; it refuses more).
    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr). Raises LabError for a negative weight.
    """
    return on_sphere("multislerp", A, B, weights, steps=1)
