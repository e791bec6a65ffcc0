"""What fits together: adapters with each other, and with a base model."""

import functools
import inspect
import re
from collections.abc import Mapping, Sequence

from torch import nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, module_names, some_of
from lab.lora.module_names import natural_order


def linear_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(out, in) of an nn.Linear or a transformers Conv1D, None for any other module."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if is_conv1d(layer):
        return layer.weight.shape[1], layer.weight.shape[0]
    return None


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is a transformers Conv1D, the linear layer of GPT-2, whose weight is (in, out)."""
    if isinstance(layer, nn.Linear):
        return False
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def compatibility_problems(adapters: Sequence[LoraAdapter], base_model: nn.Module | None = None) -> list[str]:
    """What keeps the adapters from being merged (or put on `base_model`), one sentence each; [] if all fits.

    Unequal ranks and unequal sets of modules are fine. An adapter whose base is "" fits any base.
    """
    problems = []
    names = [adapter.name for adapter in adapters]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{names.count(name)} adapters are called {name!r}; give each its own name.")
    bases = {adapter.base: adapter.name for adapter in reversed(adapters) if adapter.base}
    if len(bases) > 1:
        stated = ", ".join(f"{name!r} on {base}" for base, name in reversed(bases.items()))
        problems.append(
            f"The adapters were trained on different bases ({stated}); if these are one model, name "
            f"it as the base of each."
        )
    for module in module_names(adapters):
        shapes = {a.modules[module].shape: a.name for a in reversed(adapters) if module in a.modules}
        if len(shapes) > 1:
            stated = ", ".join(f"{name!r} {shape}" for shape, name in reversed(shapes.items()))
            problems.append(
                f"Module {module!r} has different shapes (out, in): {stated}; these adapters need different "
                f"bases."
            )
    for index, adapter in enumerate(adapters):
        others = set(module_names([*adapters[:index], *adapters[index + 1 :]]))
        if others and not others & set(adapter.modules):
            problems.append(
                f"Adapter {adapter.name!r} has no module in common with the others (its first is "
                f"{next(iter(adapter.modules))!r}, "
                f"theirs {min(others, key=natural_order)!r}); check that all were trained on the same base."
            )
    if base_model is not None:
        layers = dict(base_model.named_modules())
        for adapter in adapters:
            problems += _model_problems(adapter, layers)
    return problems


def _model_problems(adapter: LoraAdapter, layers: Mapping[str, nn.Module]) -> list[str]:
    missing = [module for module in adapter.modules if module not in layers]
    if missing:
        experts = [m for m in missing if ".experts." in m and m.partition(".experts.")[0] + ".experts" in layers]
        if experts:
            return [
                f"Adapter {adapter.name!r} changes experts one by one ({some_of(experts, 1)}), which are one tensor in the base model; "
                f"plain LoRA factors cannot represent that."
            ]
        return [
            f"Adapter {adapter.name!r} changes {some_of(missing)}, which the base model does not have; it is "
            f"for another base."
        ]
    problems = []
    for module, factors in adapter.modules.items():
        shape = linear_shape(layers[module])
        if shape == factors.shape and _only_read(layers, module) and factors.A.any() and factors.B.any():
            problems.append(
                f"Adapter {adapter.name!r} changes {module!r}, whose weight a {type(layers[module.rpartition('.')[0]]).__name__} reads "
                f"without calling the layer, so that beside it the update does nothing (as in PEFT), and folded in it does; "
                f"train without it."
            )
            continue
        if shape is None:
            problems.append(
                f"Module {module!r} of the base is a {type(layers[module]).__name__}, not a linear layer."
            )
        elif shape != factors.shape:
            problems.append(
                f"Adapter {adapter.name!r} updates {module!r} with shape {factors.shape}, but the base "
                f"model's is {shape}; "
                f"it is for another base."
            )
    return problems


def _only_read(layers: Mapping[str, nn.Module], module: str) -> bool:
    """Whether the model multiplies by the layer's weight itself (Mamba's dt_proj), past whatever stands in the layer's place."""
    parent, _, child = module.rpartition(".")
    return re.search(rf"self\.{re.escape(child)}\.weight(\.T|\.t\(\))? *@", _source(type(layers[parent]))) is not None


@functools.cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made at run time
        return ""


def check_compatible(adapters: Sequence[LoraAdapter], base_model: nn.Module | None = None) -> None:
    """Raise LabError with the first of `compatibility_problems`, and the count of the others, if any."""
    if not adapters:
        raise LabError("There is no adapter to merge; give at least one.")
    problems = compatibility_problems(adapters, base_model)
    if problems:
        more = f" ({len(problems) - 1} more problems of this kind.)" if len(problems) > 1 else ""
        raise LabError(problems[0] + more)
