"""NSC merging: coefficients by what each skill's A cannot see of its own inputs (arXiv 2603.26317, CVPR 2026)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.stacked import StackedLinear
from lab.merging.coefficients import Coefficients, Granularity
from lab.merging.cores import support
from lab.merging.registry import Range, Recipe, merge_method
from lab.training.loop import IGNORED, Batch


@merge_method(
    label="NSC",
    paper="https://arxiv.org/abs/2603.26317",
    formula="Σ a_i^m ΔW_i, a learned for the least ‖x outside A_i‖/‖x‖ of the inputs x of skill i's own prompts",
    # The released code's defaults.
    recipe=Recipe(learning_rate=1e-3, batch_size=16, steps=500, data="prompts"),
)
def nsc(
    adapters: Sequence[LoraAdapter],
    *,
    granularity: Granularity = "module",
    start: Annotated[float | None, Range(-10, 10), "where every coefficient starts; None: 1/k"] = None,
) -> Coefficients:
    """Coefficients that keep the merged model's hidden states where each skill looks: the null-space ratio of the skill's A.

    Fine-tuning makes A's null space lose its share of the inputs, and the less is lost the better the skill; the merge is made
    so that every skill's own prompts are seen as well as they can be. No labels and no outputs are looked at. The mean runs
    over all modules of a skill (the released code for LLaVA: v_proj of the last eight layers); A's row space is that of the
    update, so that how it is split does not matter. The first layer's inputs do not depend on the coefficients, nor do those
    of the last module matter to it.
    """
    coefficients = Coefficients(adapters, parametrisation="free", granularity=granularity, start=start)
    coefficients.objective = NullSpaceRatio(adapters)
    return coefficients


class NullSpaceRatio:
    """objective(model, batch): sum over prompt tokens of the mean ratio over the modules of the row's skill; their number."""

    def __init__(self, adapters: Sequence[LoraAdapter]):
        self.bases = {a.name: {module: row_space(f) for module, f in a.modules.items()} for a in adapters}
        self.modules = sorted({module for bases in self.bases.values() for module in bases})

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        strange = sorted(set(batch.skills) - set(self.bases))
        if strange or not batch.skills:
            raise LabError(
                f"nsc needs to know of every prompt which skill it is of; some are of {', '.join(map(repr, strange)) or 'none'}: "
                f"give a file of rows per skill, called as the adapter is."
            )
        # The model may be wrapped: names are then those of a part of it.
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, StackedLinear)}
        layers = {name if name in self.modules else name.partition(".")[2]: layer for name, layer in layers.items()}
        inputs: dict[str, Tensor] = {}
        handles = [
            layers[module].register_forward_pre_hook(lambda _, args, module=module: inputs.update({module: args[0]}))
            for module in self.modules
        ]
        try:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        wanted = batch.labels[:, 1:] != IGNORED
        total = torch.zeros((), device=wanted.device)
        for skill, bases in self.bases.items():
            rows = torch.tensor([name == skill for name in batch.skills], device=wanted.device)
            if rows.any() and bases:
                tokens = wanted[rows]
                ratios = [null_space_ratio(inputs[m][rows, :-1][tokens].float(), Q.to(wanted.device)) for m, Q in bases.items()]
                total = total + torch.stack(ratios).mean(0).sum()
        return total, int(wanted.sum())


def null_space_ratio(x: Tensor, Q: Tensor) -> Tensor:
    """(tokens,): the share of ‖x‖ (tokens, in) that lies outside the span of Q (in, r), from 0 to 1."""
    seen = (x @ Q).square().sum(-1) / x.square().sum(-1).clamp(min=torch.finfo(x.dtype).tiny)
    return (1 - seen).clamp(min=1e-12).sqrt()


def row_space(factors: LoraFactors) -> Tensor:
    """(in, ρ), orthonormal: the inputs that the update of rank ρ reads."""
    Q_A, R_A = torch.linalg.qr(factors.A.T.double())
    _, R_B = torch.linalg.qr(factors.B.double())
    _, S, Qh = torch.linalg.svd(factors.scaling * R_B @ R_A.T)
    return (Q_A @ Qh[support(S)].T).float() if len(S) and S[0] > 0 else Q_A[:, :0].float()
