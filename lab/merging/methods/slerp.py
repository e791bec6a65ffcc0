"""Spherical linear interpolation of two updates (mergekit's `slerp`; on updates its `nuslerp`)."""

import math
from collections.abc import Sequence

from torch import Tensor

from lab.errors import LabError
from lab.merging.methods.concatenation import cat_static
from lab.merging.registry import merge_method

COLINEAR = 0.9995  # mergekit's |cos| above which the interpolation is a straight line


@merge_method(
    label="SLERP",
    paper="https://en.wikipedia.org/wiki/Slerp",
    formula="(sin((1−t)θ) ΔW_1 + sin(tθ) ΔW_2)/sin θ, t = w_2/(w_1 + w_2), θ = ∠(ΔW_1, ΔW_2)",
    max_skills=2,
)
def slerp(A: Sequence[Tensor], B: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Point between two updates on the arc instead of the chord, per module; exact at rank Σr.

    Only the weights' ratio counts. A chain over more than two skills would depend on their order, so two
    it is, as in mergekit; one skill alone is returned as it is. An update that is zero (the skill lacks
    the module) counts as orthogonal, as in mergekit. A: (r_i, in) and B: (out, r_i) per skill. Returns A
    (Σr, in), B (out, Σr). Raises LabError for more than two skills, a negative weight or both weights zero.
    """
    if len(A) > 2:
        raise LabError(
            f"slerp merges exactly two skills, not {len(A)}; choose another method, such as cat_static."
        )
    if weights.min() < 0 or weights.sum() == 0:
        raise LabError(f"slerp: the weights are {weights.tolist()}; give numbers from 0 with a sum above 0.")
    if len(A) == 1:
        return A[0], B[0]
    t = (weights[1] / weights.sum()).item()
    lengths = math.sqrt(_inner(A[0], B[0], A[0], B[0]) * _inner(A[1], B[1], A[1], B[1]))
    cosine = _inner(A[0], B[0], A[1], B[1]) / lengths if lengths else 0.0
    if abs(cosine) > COLINEAR:
        return cat_static(A, B, weights / weights.sum())
    theta = math.acos(cosine)
    arc = [math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)]
    return cat_static(A, B, weights.new_tensor(arc))


def _inner(A: Tensor, B: Tensor, other_A: Tensor, other_B: Tensor) -> float:
    """⟨B A, B' A'⟩ without forming the products."""
    return ((B.T.double() @ other_B.double()) * (A.double() @ other_A.double().T)).sum().item()
