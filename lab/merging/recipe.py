"""What a merge's recipe tells of it: its inputs, the base, the coefficients."""

from collections.abc import Sequence

import torch

from lab.lora.adapter import LoraAdapter, module_names
from lab.merging.coefficients import Coefficients


def base_of(adapters: Sequence[LoraAdapter]) -> str:
    return next((adapter.base for adapter in adapters if adapter.base), "")


def inputs_of(adapters: Sequence[LoraAdapter]) -> list[dict]:
    """What each adapter is, and which of the modules that another changes it "lacks", where there are any."""
    modules = module_names(adapters)
    lacking = [[module for module in modules if module not in a.modules] for a in adapters]
    return [
        {"name": a.name, "base": a.base, "rank": a.rank, "digest": a.digest()} | ({"lacks": lacks} if lacks else {})
        for a, lacks in zip(adapters, lacking, strict=True)
    ]


def coefficient_record(coefficients: Coefficients) -> dict:
    with torch.no_grad():
        values = coefficients().cpu()
    return {
        "skills": list(coefficients.skills),
        "modules": list(coefficients.module_names),
        "coefficients": values.tolist(),
    }
