"""Changing coefficients in a live model of the shape of Llama-7B (160 modules, rank 32): milliseconds.

    python benchmarks/change.py

The base weights are zeros that take no memory; the factors are real. A change is complete when the call returns: the
next forward pass uses it (checked), and no factor has moved or changed (checked by address and by content).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import common  # before lab: it makes the package importable
import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.stacked import Stack, attach


def factors_of(stack: Stack) -> tuple[list[int], str]:
    """Addresses of all stacked factors, and the sha256 of their contents."""
    buffers = [buffer for layer in stack.layers.values() for buffer in (layer.A_cat, layer.B_cat)]
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(memoryview(buffer.cpu().contiguous().numpy()).cast("B"))
    return [buffer.data_ptr() for buffer in buffers], digest.hexdigest()


def changing(stack: Stack, number_of_modules: int) -> Callable[[], Tensor]:
    """Gives other coefficients to so many modules at every call; returns all coefficients now in force."""
    values = torch.full((len(stack.skills), len(stack.modules)), 1 / len(stack.skills))

    def change() -> Tensor:
        nonlocal values
        values = values.clone()
        values[:, :number_of_modules] += 0.001
        stack.set_coefficients(values)
        return values

    return change


def main(argv: Sequence[str] | None = None) -> Path:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--skills", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.set_defaults(rounds=50)
    options = parser.parse_args(argv)
    device = common.find_device(options.device)
    if options.quick:
        options.hidden, options.layers, options.rank, options.rounds = 32, 1, 2, 1

    model = common.skeleton(options.hidden, options.layers, device)
    adapters = common.random_adapters(common.adapted_shapes(model), options.skills, options.rank)
    peft_layers = [m for m in common.peft_of(common.sharing(model), adapters).modules() if hasattr(m, "lora_A")]
    stack = attach(model, adapters)
    addresses, content = factors_of(stack)
    count = len(stack.modules)

    def change_peft() -> None:
        for layer in peft_layers:
            for adapter in adapters:
                layer.set_scale(adapter.name, 0.3)

    # The changes of all modules come last in a round, so that the check below sees theirs.
    runs = {
        f"PEFT set_scale, {count} modules": change_peft,
        "set_coefficients, 1 module changed": changing(stack, 1),
        f"set_coefficients, {count} modules changed": changing(stack, count),
    }
    times = {name: common.timing(seconds) for name, seconds in common.interleave(runs, options.rounds, device).items()}

    checks = []
    values = runs[f"set_coefficients, {count} modules changed"]()
    for column in (0, count - 1):
        name = stack.modules[column]
        layer = stack.layers[name]
        x = torch.linspace(-1, 1, layer.A_cat.shape[1], device=device)
        updates = [c * (a.delta_weight(name) @ x.cpu()) for c, a in zip(values[:, column], adapters, strict=True)]
        checks.append(common.check(f"output of {name} and the formula, after the change", layer(x), sum(updates), 1e-4))
    if factors_of(stack) != (addresses, content):
        raise LabError("Changing a coefficient moved or changed a factor.")

    rows = [{"change": name, "median ms": 1e3 * t["median s"], "min ms": 1e3 * t["min s"]} for name, t in times.items()]
    return common.report(
        "change", device, options, rows, checks,
        [
            f"{options.skills} skills, hidden {options.hidden}, rank {options.rank}; "
            f"median of {options.rounds} rounds in turns.",
            f"All {2 * count} stacked factors have the address and the content that they had before.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    common.start(main)
