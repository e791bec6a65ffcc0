"""The paper's mixture of experts: a linear router per module over frozen skills (Section 3, "MoE"; mergoo)."""

from typing import Annotated

from torch import Tensor, nn

from lab.lora.stacked import Stack
from lab.merging.registry import Range, Recipe, merge_method
from lab.merging.routing import Router, start_rows, token_scores


@merge_method(
    label="MoE router",
    paper="https://arxiv.org/abs/2410.13025",
    formula="c(x) = softmax(W_r x) per token and module",
    # mergoo's example for LoRA experts (Leroo-AI, 2024), which the paper follows (Appendix B.1).
    recipe=Recipe(learning_rate=1e-5, batch_size=4),
)
class moe(Router):
    """A linear router in every module: per token, softmax(W_r x) over the skills that have the module.

    With equal router outputs and skills of equal modules it is `cat_static`.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        top_k: Annotated[int | None, Range(1), "softmax over the best skills only (mergoo: 2); None takes all"] = None,
        seed: Annotated[int | None, Range(0), "of the start U(±1/√in), as mergoo; None starts with equal shares"] = 0,
    ):
        super().__init__(stack, top_k=top_k, seed=seed)
        self.top_k = top_k
        self.weights = nn.ParameterList(  # (skills, in) per module
            start_rows(seed, self.sorted_skills, size, module)
            for module, size in zip(stack.modules, self.in_features, strict=True)
        )
        self.put_on(stack)

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        return self.softmax(index, token_scores(x, self.weights[index]), self.top_k)
