"""π-Tuning: interpolate the skills and go on training one of them, together (arXiv 2304.14381)."""

from collections.abc import Sequence
from typing import Annotated

import torch

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter
from lab.merging.coefficients import Granularity, TunedCoefficients
from lab.merging.inner import gram
from lab.merging.registry import Range, Recipe, merge_method


@merge_method(
    label="π-Tuning",
    paper="https://arxiv.org/abs/2304.14381",
    formula="Σ a_i^m ΔW_i, a = softmax over the skills, learned together with the A and B of one skill",
    # The paper's rates are for OFA's adapters. This one moves logits as CAT's sweeps do, and with `pace` factors as LoRA
    # training does.
    recipe=Recipe(learning_rate=1e-2, batch_size=8),
)
def pi_tuning(
    adapters: Sequence[LoraAdapter],
    *,
    tuned: Annotated[str | None, "the skill that goes on learning; empty for the one of the largest update"] = None,
    granularity: Granularity = "module",
    pace: Annotated[float, Range(0, 10), "learning rate of its factors, in that of the coefficients; 0 is cat_softmax"] = 0.1,
) -> TunedCoefficients:
    """Between a merge and a new LoRA: equal shares at the start, then shares and one LoRA learn on the same rows.

    In the paper the tuned one is the target task's own expert, and the others are experts of similar tasks; there is no target
    here. The result has rank Σr, and its coefficients are not alphas of the adapters as they were.
    """
    names = [adapter.name for adapter in adapters]
    if tuned is None:
        tuned = max(sorted(adapters, key=lambda a: a.name), key=_energy).name
    if tuned not in names:
        raise LabError(f"pi_tuning: tuned is {tuned!r}; choose one of {', '.join(names)}.")
    return TunedCoefficients(adapters, tuned, granularity=granularity, pace=pace)


def _energy(adapter: LoraAdapter) -> float:
    with torch.no_grad():
        return sum(f.scaling**2 * gram([f.A], [f.B]).item() for f in adapter.modules.values())
