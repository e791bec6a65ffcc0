"""Data-mix where the skills' data cannot be mixed: a text without prompts, and questions with answers (paper, Section 4)."""

from pathlib import Path

import torch

from lab.experiments.candidates.baselines import PAPER
from lab.experiments.candidates.registry import candidate
from lab.experiments.context import Entry, RunContext
from lab.lora.adapter import LoraAdapter, module_names
from lab.lora.stacked import folded
from lab.merging import concatenate


@candidate(
    "data_mix_continual", "Data mix (continual)", "data", cost="continual", sees="all of the skills' rows", source=PAPER, special=True
)
def continual(context: RunContext) -> Entry:
    """The text is learned first and folded into the weights, then the answering for one epoch (paper, Section 4: DATA-MIX).

    The first of the section's skills is the text. The result is one adapter of rank 2r on the base as it was: what was
    folded in and what was learned after it, added up exactly by concatenation.
    """
    _, answering = context.section.skills
    key = {"after": context.inputs[0], **context.training_key(answering)}

    def build(_: Path) -> tuple[LoraAdapter, dict]:
        first = context.skills[0]
        rows = context.rows(answering)
        steps = context.preset.change(epochs=1).training.steps(len(rows))
        after = context.trained(f"skill-{answering.name}-after-{first.name}", key, lambda: rows, steps=steps)
        with folded(context.model, first):
            second, facts = after.load()
        ones = torch.ones(2, len(module_names([first, second])))
        merged = concatenate([first, second], ones, name="data_mix_continual", recipe={})
        return merged, {"loss": facts["loss"], "steps": steps}

    return context.made("data_mix_continual", {**key, "continual": True}, build)
