"""Karcher mean of the updates' directions on the sphere (mergekit's `karcher`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.merging.inner import gram, shares
from lab.merging.methods.concatenation import cat_static
from lab.merging.registry import merge_method

TOLERANCE = 1e-12  # radians
ITERATIONS = 200
SAME = 1e-7  # an angle (radians) or a length below which nothing is left of a direction


@merge_method(
    label="Karcher mean",
    paper="https://en.wikipedia.org/wiki/Karcher_mean",
    formula="Σ w_i ‖ΔW_i‖ · argmin_u Σ w_i ∠(u, ΔW_i)² over unit updates u, w = 1/k",
)
def karcher(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """The direction with the least squared angles to all skills, at their mean norm, per module; exact at rank Σr.

    `multislerp` takes the first step of what is iterated here to the end. Everything lies in the span of the updates, so only
    their inner products are looked at. Only the weights' ratio counts; an update that is zero has no direction and adds nothing
    to the norm. Where directions cancel there is no mean on the sphere, and the weighted sum is given.
    A: (r_i, in) and B: (out, r_i) per skill. Returns A (Σr, in), B (out, Σr). Raises LabError for a negative weight.
    """
    return on_sphere("karcher", A, B, weights, ITERATIONS)


def on_sphere(method: str, A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`steps` tangent steps from the weighted mean of the unit updates towards their Karcher mean, times the mean norm.

    One step uses the projections onto the tangent plane (multislerp's), several the logarithms.
    """
    w = shares(method, weights)
    products = gram(A, B)
    norms = products.diagonal().clamp(min=0).sqrt()
    lengths = norms.clamp(min=torch.finfo(norms.dtype).tiny)
    cosines = products / lengths[:, None] / lengths  # of unit updates; zeros for a zero update
    w_present = torch.where(norms > 0, w, 0.0)
    mean = w_present.clone()  # coordinates in the unit updates
    length = (mean @ cosines @ mean).clamp(min=0).sqrt()
    if length <= SAME:
        return cat_static(A, B, w.float())
    mean = mean / length
    for _ in range(steps):
        dots = (cosines @ mean).clamp(-1, 1)
        theta = dots.arccos()
        stretch = torch.where(theta > SAME, theta / theta.sin().clamp(min=SAME), 1.0) if steps > 1 else torch.ones_like(theta)
        tangent = w_present * stretch
        tangent = tangent - (tangent @ dots) * mean
        size = (tangent @ cosines @ tangent).clamp(min=0).sqrt()
        if size < TOLERANCE:
            break
        mean = size.cos() * mean + size.sin() / size * tangent
        if steps > 1:
            mean = mean / (mean @ cosines @ mean).sqrt()
    return cat_static(A, B, ((w @ norms) * mean / lengths).where(norms > 0, norms.new_zeros(())).float())
