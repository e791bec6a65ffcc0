"""LoraHub: one weight per skill, found without gradients on a few examples of the target task."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.merging.coefficients import concatenate
from lab.merging.registry import Recipe, merge_method

BOUND = 1.5  # of each weight, either way
PENALTY = 0.05  # per mean absolute weight, in nats per token

Semantics = Literal["factors", "delta"]


@merge_method(
    label="LoRAHub, sees 5 targets",
    paper="https://arxiv.org/abs/2307.13269",
    formula="(Σ w_i B_i)(Σ w_i A_i), or Σ w_i ΔW_i, with w searched for least loss + 0.05·mean|w|",
    recipe=Recipe(learning_rate=None, batch_size=5, steps=40, data="target", rows=5),
    equal_ranks=True,
    depends_on_split=True,
)
def lorahub(
    adapters: Sequence[LoraAdapter],
    loss: Callable[[LoraAdapter], float | None],
    steps: int,
    *,
    semantics: Semantics = "factors",
    seed: int = 0,
) -> LoraAdapter:
    """One weight per skill in [-1.5, 1.5], from 0, by Nevergrad's NGOpt; sees 5 examples of the target task.

    It is the only method that sees the target, so its score stands apart from the others'. semantics
    "factors" is LoraHub's own: a weight multiplies A and B, so it has cross terms and the square of each
    weight; "delta" is the weighted sum of the updates. The released code divides the loss by the number of
    examples, which makes its penalty weigh more; here the loss is the mean over the tokens.

    Raises LabError when the skills' ranks differ and semantics is "factors".
    """
    adapters = sorted(adapters, key=lambda adapter: adapter.name)
    k = len(adapters)
    weighted(adapters, torch.zeros(k), semantics)  # refuses what does not fit before any work
    import nevergrad as ng  # takes seconds, and only this method needs it
    import numpy as np

    space = ng.p.Array(init=np.zeros(k), lower=np.full(k, -BOUND), upper=np.full(k, BOUND))
    space.random_state = np.random.RandomState(seed)
    search = ng.optimizers.NGOpt(parametrization=space, budget=steps)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="COBYLA")  # of how NGOpt itself calls scipy
            for _ in range(steps):
                candidate = search.ask()
                value = loss(weighted(adapters, torch.tensor(candidate.value), semantics))
                if value is None:
                    break
                search.tell(candidate, value + PENALTY * float(np.abs(candidate.value).mean()))
        best = torch.tensor(search.provide_recommendation().value)
    finally:
        del search  # ends its thread, for which a process that was interrupted would wait without end
    return weighted(adapters, best, semantics)


def weighted(adapters: Sequence[LoraAdapter], weights: Tensor, semantics: Semantics) -> LoraAdapter:
    """The adapters merged with weights (skills,); a skill that lacks a module adds nothing there.

    "factors": rank r, each factor carrying the root of its scaling, so that equal scalings s give
    s·(Σ w B)(Σ w A). "delta": rank Σr. Raises LabError for unequal ranks where the factors are added.
    """
    names = [adapter.name for adapter in adapters]
    recipe = {"weights": dict(zip(names, weights.tolist(), strict=True))}
    name = f"lorahub({', '.join(names)})"
    modules = module_names(adapters)
    if semantics == "delta":
        return concatenate(adapters, weights[:, None].expand(-1, len(modules)), name=name, recipe=recipe)
    merged = {}
    for module in modules:
        present = {a.name: a.modules[module] for a in adapters if module in a.modules}
        if len({f.rank for f in present.values()}) > 1:
            raise LabError(
                f"lorahub adds up A and B, which needs equal ranks, but in module {module!r} they are "
                f"{', '.join(f'{f.rank} ({skill})' for skill, f in present.items())}; choose semantics delta."
            )
        A, B = 0.0, 0.0
        for skill, f in present.items():
            root = recipe["weights"][skill] * math.sqrt(abs(f.scaling))
            A, B = A + root * f.A, B + math.copysign(1, f.scaling) * root * f.B
        merged[module] = LoraFactors(A, B)
    return LoraAdapter(name, adapters[0].base, merged, recipe)
