"""AdaMerging: coefficients learned without labels, by making the merged model sure of itself."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from lab.lora.adapter import LoraAdapter
from lab.merging.coefficients import Coefficients, Granularity
from lab.merging.registry import Range, Recipe, merge_method
from lab.training.loop import IGNORED, Batch


@merge_method(
    label="AdaMerging",
    paper="https://arxiv.org/abs/2310.02575",
    formula="Σ clamp(a_i^m, 0, 1) ΔW_i, a learned for least entropy of the predictions",
    recipe=Recipe(learning_rate=1e-3, batch_size=16, steps=500, data="prompts"),
)
def adamerging(
    adapters: Sequence[LoraAdapter],
    *,
    granularity: Granularity = "module",
    start: Annotated[float, Range(0, 1), "where every coefficient starts"] = 0.3,
) -> Coefficients:
    """Layer-wise AdaMerging: coefficients in [0, 1] that minimise the entropy on prompts without answers.

    Granularity "model" is the paper's task-wise form. The paper has classifiers, and so one prediction per
    example; here every token of a prompt is one. Its examples are the tasks' own test inputs.
    """
    coefficients = Coefficients(adapters, parametrisation="clamp", granularity=granularity, start=start)
    coefficients.objective = entropy
    return coefficients


def entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Sum of the predictions' entropies (nats) where the batch has labels, and their number.

    What the labels are is not looked at.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    wanted = batch.labels[:, 1:] != IGNORED
    log_p = torch.log_softmax(logits[:, :-1][wanted].float(), dim=-1)
    return -(log_p.exp() * log_p).sum(), int(wanted.sum())
