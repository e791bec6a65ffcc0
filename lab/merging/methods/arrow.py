"""Arrow: training-free routing by the direction each skill reads most ("Towards Modular LLMs by Building and Reusing
a Library of LoRAs", arXiv 2405.11157, Section 4.2; PEFT's temperature and top-k).
"""

from typing import Annotated

import torch
from torch import Tensor

from lab.lora.adapter import LoraFactors
from lab.lora.stacked import Stack
from lab.merging.registry import Range, merge_method
from lab.merging.routing import Router, token_scores


@merge_method(
    label="Arrow",
    paper="https://arxiv.org/abs/2405.11157",
    formula="c(x) = softmax over the top k of |x·p_i| / temperature, p_i = top right singular vector of ΔW_i",
)
class arrow(Router):
    """Training-free: a token goes to the skills whose strongest input direction it agrees with, whatever the sign.

    p_i is exact, where PEFT takes 15 steps of power iteration from a random start. A skill whose update is zero in a
    module has no direction, and scores 0 there.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        top_k: Annotated[int, Range(1), "skills per token, at most"] = 3,
        temperature: Annotated[float, Range(1e-6), "of the softmax"] = 1.0,
    ):
        super().__init__(stack, top_k=top_k, temperature=temperature)
        self.top_k, self.temperature = top_k, temperature
        skills = sorted(stack.adapters, key=lambda adapter: adapter.name)
        for index, module in enumerate(stack.modules):
            absent = torch.zeros(self.in_features[index])
            rows = [prototype(s.modules[module]) if module in s.modules else absent for s in skills]
            self.register_buffer(f"prototypes_{index}", torch.stack(rows), persistent=False)  # (skills, in)
        self.put_on(stack)

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        scores = token_scores(x, self.get_buffer(f"prototypes_{index}")).abs()
        return self.softmax(index, scores / self.temperature, self.top_k)


def prototype(factors: LoraFactors) -> Tensor:
    """(in,): the unit top right singular vector of ΔW (its sign is arbitrary), zeros for a zero update.

    From the top eigenvector of the r × r matrix R BᵀB Rᵀ, A = Rᵀ Qᵀ, in double precision.
    """
    Q, R = torch.linalg.qr(factors.A.T.double())  # (in, r), (r, r)
    B = factors.scaling * factors.B.double()
    energies, vectors = torch.linalg.eigh(R @ (B.T @ B) @ R.T)
    return (Q @ vectors[:, -1] * (energies[-1] > 0)).float()
