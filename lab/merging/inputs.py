"""What the modules of a model read: the inputs that closed forms are solved from."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

Prompt = Sequence[int]  # token ids
ROWS = 16  # prompts that go through at once


def equal_lengths(prompts: Sequence[Prompt], device: torch.device | str) -> Iterator[tuple[list[int], Tensor]]:
    """(places, ids (rows, tokens)): prompts of one length together, so that there is no padding to leave out again."""
    lengths = sorted({len(prompt) for prompt in prompts})
    for length in lengths:
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        for start in range(0, len(places), ROWS):
            chunk = places[start : start + ROWS]
            yield chunk, torch.tensor([list(prompts[place]) for place in chunk], device=device)


@contextlib.contextmanager
def read_by(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The inputs (tokens, in), fp32, of these modules in the latest forward pass inside the block."""
    found: dict[str, Tensor] = {}

    def remember(name: str):
        def hook(module, args):
            found[name] = args[0].detach().flatten(0, -2).float()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(remember(name)) for name in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
