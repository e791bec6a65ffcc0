"""Coefficients of a concatenation: what learned methods learn, and the concatenation that they turn into."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.module_names import parse
from lab.merging.registry import seeded_generator

Parametrisation = Literal["softmax", "sigmoid", "free"]
Granularity = Literal["module", "layer", "model"]

# From raw values (skills, units) to coefficients.
_PARAMETRISATIONS = {
    "softmax": lambda raw: raw.softmax(dim=0),
    "sigmoid": torch.sigmoid,
    "free": lambda raw: raw,
    "clamp": lambda raw: raw.clamp(0, 1),
    "leaky_relu": F.leaky_relu,
}


class Coefficients(nn.Module):
    """One coefficient per skill and unit; calling it gives (skills, modules), differentiable, fp32.

    parametrisation: "softmax" over the skills; or each for itself: "sigmoid", "free" (the raw number), "clamp"
    to [0, 1], or "leaky_relu" (slope 0.01 below zero).
    granularity: a unit is a module, a layer (all modules whose names agree up to the first number) or the
    whole model.
    start: the value that every coefficient starts from; None: softmax 1/k, sigmoid 0.5, the others 1/k.
    seed: a number starts instead with raw values from N(0, 1), drawn per skill name, so that the order of
    skills does not matter.

    A skill that lacks a module counts there as a zero update, so the softmax is over all skills in every
    module and equal coefficients are exactly `cat_static`.

    raw: the only parameter, (skills, units). skills, module_names, units: names. adapters: what the
    coefficients multiply. recipe: how the values were made (JSON-able). A method may set `objective`, which
    `lab.merging.learn.learn` then minimises in place of the loss on the labels.

    Raises LabError for a start that the parametrisation cannot give.
    """

    def __init__(
        self,
        adapters: Sequence[LoraAdapter],
        *,
        parametrisation: str = "softmax",
        granularity: Granularity = "module",
        start: float | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.adapters = tuple(adapters)
        self.skills = tuple(adapter.name for adapter in adapters)
        self.module_names = tuple(module_names(adapters))
        self.parametrisation = parametrisation
        unit_of = [_unit(module, granularity) for module in self.module_names]
        self.units = tuple(dict.fromkeys(unit_of))
        self.recipe: Mapping[str, object] = {}
        if seed is None:
            value = _raw_start(parametrisation, start, len(self.skills))
            raw = torch.full((len(self.skills), len(self.units)), value)
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
            values = _PARAMETRISATIONS[self.parametrisation](self.raw)
            # A product with one-hot columns instead of an index: its backward pass is deterministic on GPUs too.
            return values @ self.selector


class TunedCoefficients(Coefficients):
    """Softmax coefficients beside which one of the adapters goes on learning.

    tuned: its name. pace: its factors move so many times as fast as the coefficients; AdamW's steps have the size of the rate,
    whatever the gradient. Its A and B start as they are, so that without a step this is `cat_softmax`.
    """

    def __init__(self, adapters: Sequence[LoraAdapter], tuned: str, *, granularity: Granularity = "module", pace: float = 0.1):
        super().__init__(adapters, granularity=granularity)
        self.tuned, self.pace = tuned, pace
        self.row = self.skills.index(tuned)
        start = self.adapters[self.row].modules
        self.places = {module: place for place, module in enumerate(start)}
        self.moves = nn.ParameterList(nn.Parameter(torch.zeros_like(f)) for m in start.values() for f in (m.A, m.B))
        self.starts = {module: LoraFactors(f.A.clone(), f.B.clone(), f.scaling) for module, f in start.items()}
        keep = torch.ones(len(self.skills), 1)
        keep[self.row] = 0
        self.register_buffer("keep", keep, persistent=False)
        self._shares: Tensor | None = None  # (modules,), the tuned adapter's in this forward pass

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B of the tuned adapter as they are now, differentiable; its scaling is as before."""
        place = 2 * self.places[module]
        move_A, move_B = self.moves[place], self.moves[place + 1]
        start = self.starts[module]
        return start.A.to(move_A.device) + self.pace * move_A, start.B.to(move_B.device) + self.pace * move_B

    def put_on(self, stack) -> None:
        """Make the stack compute the other adapters only, and add the tuned one beside it."""
        stack.set_coefficients(self._others)
        for column, module in enumerate(self.module_names):
            if module in self.places:
                stack.layers[module].register_forward_hook(partial(self._add, column, module))

    def tuned_adapters(self) -> list[LoraAdapter]:
        """The adapters, the tuned one with what it has learned."""
        with torch.no_grad():
            now = {m: LoraFactors(*(f.detach().cpu() for f in self.factors(m)), self.starts[m].scaling) for m in self.starts}
        return [replace(a, modules=now) if row == self.row else a for row, a in enumerate(self.adapters)]

    def _others(self) -> Tensor:
        values = self()
        self._shares = values[self.row]
        return values * self.keep

    def _add(self, column: int, module: str, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        A, B = self.factors(module)
        scale = self._shares[column] * self.starts[module].scaling
        return output + (scale * F.linear(F.linear(args[0].to(A.dtype), A), B)).to(output.dtype)


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


def _raw_start(parametrisation: str, start: float | None, k: int) -> float:
    """The raw value whose coefficient is `start`."""
    if start is None:
        return 0.0 if parametrisation in ("softmax", "sigmoid") else 1 / k
    if parametrisation == "softmax":
        raise LabError(
            f"start is {start:g}, but softmax coefficients start from 1/k and always sum to 1; leave start out, "
            f"or choose the parametrisation sigmoid or free."
        )
    if parametrisation == "sigmoid":
        if not 0 < start < 1:
            raise LabError(
                f"start is {start:g}; a sigmoid lies between 0 and 1: give a number between them, or choose "
                f"the parametrisation free."
            )
        return math.log(start / (1 - start))
    return float(start)


def _unit(module: str, granularity: str) -> str:
    if granularity == "model":
        return "model"
    return parse(module).block if granularity == "layer" else module
