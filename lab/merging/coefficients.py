"""Coefficients of a concatenation: what learned methods learn, and the concatenation that they turn into."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lab.adapter import LoraAdapter, LoraFactors, module_names
from lab.merging.registry import seeded_generator

Parametrisation = Literal["softmax", "sigmoid", "free"]
Granularity = Literal["module", "layer", "model"]


class Coefficients(nn.Module):
    """One coefficient per skill and unit; calling it gives (skills, modules), differentiable, fp32.

    parametrisation: "softmax" over the skills, "sigmoid" each, or "free" (the raw number).
    granularity: a unit is a module, a layer (all modules whose names agree up to the first number) or the
    whole model.
    seed: None starts equal (softmax: 1/k, sigmoid: 0.5, free: 1/k); a number starts with raw values from N(0,
    1), drawn per skill name, so that the order of skills does not matter.

    A skill that lacks a module counts there as a zero update, so the softmax is over all skills in every
    module and equal coefficients are exactly `cat_static`.

    raw: the only parameter, (skills, units). skills, module_names, units: names. recipe: how the values were
    made (JSON-able).
    """

    def __init__(
        self,
        adapters: Sequence[LoraAdapter],
        *,
        parametrisation: Parametrisation = "softmax",
        granularity: Granularity = "module",
        seed: int | None = None,
    ):
        super().__init__()
        self.skills = tuple(adapter.name for adapter in adapters)
        self.module_names = tuple(module_names(adapters))
        self.parametrisation = parametrisation
        unit_of = [_unit(module, granularity) for module in self.module_names]
        self.units = tuple(dict.fromkeys(unit_of))
        self.recipe: Mapping[str, object] = {}
        if seed is None:
            start = 1 / len(self.skills) if parametrisation == "free" else 0.0
            raw = torch.full((len(self.skills), len(self.units)), start)
        else:
            raw = torch.stack(
                [torch.randn(len(self.units), generator=seeded_generator(seed, s)) for s in self.skills]
            )
        self.raw = nn.Parameter(raw)
        selector = torch.tensor([[unit == of for of in unit_of] for unit in self.units], dtype=raw.dtype)
        self.register_buffer("selector", selector, persistent=False)  # (units, modules), one-hot columns

    def forward(self) -> Tensor:
        # In fp32 also under autocast: a step of 1e-4 is below the resolution of bf16 near 0.5.
        with torch.autocast(self.raw.device.type, enabled=False):
            if self.parametrisation == "softmax":
                values = self.raw.softmax(dim=0)
            elif self.parametrisation == "sigmoid":
                values = self.raw.sigmoid()
            else:
                values = self.raw
            # A product with one-hot columns instead of an index: its backward pass is deterministic on GPUs too.
            return values @ self.selector


def concatenate(
    adapters: Sequence[LoraAdapter], values: Tensor, *, name: str, recipe: Mapping[str, object]
) -> LoraAdapter:
    """Σ_i values[i, m]·ΔW_i^m for every module m, exactly, as one adapter of rank Σr with scaling 1.

    values: (skills, modules), rows as `adapters`, columns as `module_names(adapters)`; folded into B with the
    scalings.
    """
    modules = {}
    for column, module in enumerate(module_names(adapters)):
        A, B = [], []
        for row, adapter in enumerate(adapters):
            if module in adapter.modules:
                factors = adapter.modules[module]
                A.append(factors.A)
                B.append(values[row, column].to(factors.B) * (factors.scaling * factors.B))
        modules[module] = LoraFactors(torch.cat(A), torch.cat(B, dim=1))
    return LoraAdapter(name, adapters[0].base, modules, recipe)


def _unit(module: str, granularity: str) -> str:
    if granularity == "model":
        return "model"
    layer = re.match(r"(?:.*?\.)?\d+(?=\.|$)", module)
    return layer[0] if granularity == "layer" and layer else module
