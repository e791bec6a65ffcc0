"""GenKnowSub: Arrow between skills from which general knowledge has been subtracted (arXiv 2505.10939; PEFT's option of Arrow)."""

from typing import Annotated

import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.adapter import LoraFactors
from lab.lora.stacked import Stack
from lab.merging.methods.arrow import arrow, prototype
from lab.merging.registry import Range, merge_method
from lab.merging.routing import token_scores


@merge_method(
    label="GenKnowSub",
    paper="https://arxiv.org/abs/2505.10939",
    formula="Arrow over ΔW_i − ΔW_g, ΔW_g the update of a general LoRA, or the mean of the skills",
)
class gen_know_sub(arrow):
    """Arrow's shares and prototypes of what a skill adds to general knowledge; only that is added to the base.

    general: an attached LoRA of general text, which then is no skill itself. Without one, what all skills share stands for it:
    their mean. The difference is taken of the updates, as in the paper; PEFT subtracts A and B apart, which has cross terms
    and depends on how an update is split.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        general: Annotated[str | None, "the attached LoRA of general knowledge; empty for the skills' mean"] = None,
        top_k: Annotated[int, Range(1), "skills per token, at most"] = 3,
        temperature: Annotated[float, Range(1e-6), "of the softmax"] = 1.0,
    ):
        if general is not None and (general not in stack.skills or len(stack.skills) < 2):
            raise LabError(
                f"gen_know_sub: general is {general!r}; attach it beside the skills ({', '.join(stack.skills)}), and name it so."
            )
        super().__init__(stack, top_k=top_k, temperature=temperature)
        self.recipe["parameters"] = {"general": general, **self.recipe["parameters"]}
        self.general = None if general is None else self.sorted_skills.index(general)
        skills = sorted(stack.adapters, key=lambda adapter: adapter.name)
        for index, module in enumerate(stack.modules):
            factors = [s.modules.get(module) for s in skills]
            subtracted = {self.general: 1.0} if general is not None else {row: 1 / len(skills) for row in range(len(skills))}
            parts = [(factors[row], share) for row, share in subtracted.items() if factors[row] is not None]
            rows = self.get_buffer(f"prototypes_{index}")
            for row, f in enumerate(factors):
                if f is not None and row != self.general:
                    A = torch.cat([f.A, *(part.A for part, _ in parts)])
                    B = torch.cat([f.scaling * f.B, *(-share * part.scaling * part.B for part, share in parts)], dim=1)
                    rows[row] = prototype(LoraFactors(A, B)).to(rows)

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        scores = token_scores(x, self.get_buffer(f"prototypes_{index}")).abs() / self.temperature
        present = self.present[index]
        if self.general is None:
            c = self.softmax(index, scores, self.top_k)
            return (c - 1 / len(self.skills)) * present
        candidates = present.clone()
        candidates[self.general] = False
        if not candidates.any():
            return torch.zeros_like(scores)
        scores = scores.masked_fill(~candidates, -torch.inf)
        c = self.softmax(index, scores, min(self.top_k, int(candidates.sum())))
        c[..., self.general] = -1.0 if present[self.general] else 0.0
        return c
