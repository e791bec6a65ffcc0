"""Data-mix where the skills' data cannot be mixed: a text without prompts, and questions with answers (paper, Section 4)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lab.experiments.comparison import Bench, Entry
from lab.lora.adapter import LoraAdapter, module_names
from lab.lora.stacked import fold
from lab.merging import concatenate
from lab.training.lora import train_steps


@contextmanager
def folded(model, adapter: LoraAdapter) -> Iterator[None]:
    """The model with the adapter folded into its weights inside the block; after it the very same weights are back."""
    kept = {module: model.get_submodule(module).weight.detach().to("cpu", copy=True) for module in adapter.modules}
    try:
        fold(model, adapter)
        yield
    finally:
        with torch.no_grad():
            for module, weight in kept.items():
                model.get_submodule(module).weight.copy_(weight)


def continual(bench: Bench) -> Entry:
    """The text is learned first and folded into the weights, then the answering for one epoch (paper, Section 4: DATA-MIX).

    The first of the section's skills is the text. The result is one adapter of rank 2r on the base as it was: what was
    folded in and what was learned after it, added up exactly by concatenation.
    """
    text, answering = bench.section.skills

    def build(_: Path) -> tuple[LoraAdapter, dict]:
        first = bench.skills[0]
        rows = bench.rows(answering)
        steps = train_steps(bench.preset.change(epochs=1), len(rows))
        key = bench.key(skill=answering.name, after=text.name)
        after = bench.trained(f"skill-{answering.name}-after-{text.name}", key, lambda: rows, steps=steps)
        with folded(bench.model, first):
            second, facts = after.load()
        ones = torch.ones(2, len(module_names([first, second])))
        merged = concatenate([first, second], ones, name="data_mix_continual", recipe={})
        return merged, {"loss": facts["loss"], "steps": steps}

    return bench.made("data_mix_continual", bench.key(continual=[text.name, answering.name]), build)
