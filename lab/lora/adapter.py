"""LoRA adapters as data.

Notation: module m of an adapter has A (r × in), B (out × r) and a scaling s; its update is delta_weight =
s·B·A (out × in), whatever the orientation in which the base model stores its own weight.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.module_names import natural_order, parse

LARGEST = 1e12  # of any entry: its square is still far from the largest fp32


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """One module's factors: A (r, in) and B (out, r) in fp32, and the scaling (lora_alpha/r, or lora_alpha/√r
    with rsLoRA).
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0

    def __post_init__(self):
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise LabError(
                f"LoRA factors of shapes A {tuple(self.A.shape)} and B {tuple(self.B.shape)} do not fit "
                f"together; A must be (rank, in) and B (out, rank)."
            )

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    def size(self) -> float:
        """A bound of every entry of A, B and s·B·A; NaN or infinite where an entry is."""
        a, b = (float(torch.linalg.vector_norm(f, torch.inf)) if f.numel() else 0.0 for f in (self.A, self.B))
        return max(abs(self.scaling) * a * b * self.rank, a, b)  # the product first: max keeps a NaN only there

    def trimmed(self) -> "LoraFactors":
        """Without the ranks at the end that are zero in both factors: padding, as some engines want it. Rank 0 is possible."""
        used = (self.A.abs().amax(dim=1) + self.B.abs().amax(dim=0)).nonzero()
        rank = int(used[-1]) + 1 if len(used) else 0
        return self if rank == self.rank else replace(self, A=self.A[:rank], B=self.B[:, :rank])

    def delta_weight(self) -> Tensor:
        """s·B·A, (out, in)."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """A LoRA adapter: plain factors per module of a base model.

    name: short and unique among the adapters of one merge. base: base_model_name_or_path, "" when unknown.
    modules: factors by module name (as in `base_model.named_modules()`), kept in natural order (layer 2
    before layer 10).
    recipe: how it was made (JSON-able), {} when unknown. notes: what reading it left out or took as something else, a
    sentence each. Raises LabError for NaN, infinite or absurdly large factors.
    """

    name: str
    base: str
    modules: Mapping[str, LoraFactors]
    recipe: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.modules:
            raise LabError(f"Adapter {self.name!r} changes no module; give an adapter with LoRA weights.")
        for module, factors in self.modules.items():
            size = factors.size()
            if not math.isfinite(size):
                raise LabError(
                    f"Adapter {self.name!r} has NaN or infinite values in module {module!r}; train it or "
                    f"export it again."
                )
            if size > LARGEST:
                raise LabError(
                    f"Adapter {self.name!r} has values up to {size:.3g} in module {module!r}, which no training gives "
                    f"and sums cannot hold; export it again."
                )
        ordered = {module: self.modules[module] for module in sorted(self.modules, key=natural_order)}
        object.__setattr__(self, "modules", MappingProxyType(ordered))

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(factors.rank for factors in self.modules.values())

    def delta_weight(self, module: str) -> Tensor:
        """The update of one module, (out, in), scaling included. Raises LabError for a module it lacks."""
        if module not in self.modules:
            raise LabError(
                f"Adapter {self.name!r} does not change module {module!r}; it changes {some_of(self.modules)}."
            )
        return self.modules[module].delta_weight()

    def digest(self) -> str:
        """sha256 (hex) of base, module names, factors and scalings: the same weights give the same digest."""
        digest = hashlib.sha256(self.base.encode())
        for module, factors in self.modules.items():
            digest.update(
                f"\0{module}\0{tuple(factors.A.shape)}{tuple(factors.B.shape)}{factors.scaling!r}\0".encode()
            )
            for tensor in (factors.A, factors.B):
                digest.update(memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B"))
        return digest.hexdigest()


def filled(adapter: LoraAdapter) -> LoraAdapter:
    """The adapter with updates of zero where a layer lacks a kind of module that another has: engines that serve by kind need it.

    Layers are those up to the last that the adapter changes. Raises LabError where a kind has several shapes, of which the
    lacking one cannot be known.
    """
    places: dict[tuple[str, str], dict[int, str]] = {}
    for module in adapter.modules:
        layer = parse(module).layer
        if layer is not None:
            before, _, after = module.partition(f".{layer}.")
            places.setdefault((before, after), {})[layer] = module
    modules = dict(adapter.modules)
    last = max((max(layers) for layers in places.values()), default=-1)
    for (before, after), layers in places.items():
        lacking = set(range(last + 1)) - set(layers)
        shapes = {adapter.modules[module].shape for module in layers.values()}
        if lacking and len(shapes) > 1:
            raise LabError(f"{after} has several shapes ({sorted(shapes)}), so the layers that lack it cannot be filled.")
        for layer in lacking:
            out_features, in_features = next(iter(shapes))
            modules[f"{before}.{layer}.{after}"] = LoraFactors(torch.zeros(1, in_features), torch.zeros(out_features, 1))
    return replace(adapter, modules=modules)


def module_names(adapters: Sequence[LoraAdapter]) -> list[str]:
    """The modules that any of the adapters changes, in natural order."""
    return sorted({module for adapter in adapters for module in adapter.modules}, key=natural_order)


def some_of(names, limit: int = 3) -> str:
    """The first names for a sentence, and how many more there are."""
    names = list(names)
    listed = ", ".join(repr(name) for name in names[:limit]) or "none"
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")
