"""What a merge is held against: the base, a skill with worked examples, training on the mixed data, and the controls that train."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from lab.errors import LabError
from lab.experiments.candidates.merges import RECYCLING
from lab.experiments.candidates.registry import candidate
from lab.experiments.context import Entry, RunContext
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.stacked import attach
from lab.merging import learn
from lab.training.lora import VERSION

PAPER = "https://arxiv.org/abs/2410.13025"
MIX = "a little of the skills' rows"


@candidate("base", "Base", "base", seedless=True, keeps="nothing")
def base(context: RunContext) -> Entry:
    """The base model alone."""
    return Entry(context.on_base, lambda: (None, {}))


@candidate("few_shot", "Few-shot base", "base", sees="a few target rows", source=PAPER, seedless=True, keeps="nothing")
def base_few_shot(context: RunContext) -> Entry:
    """The base with worked programs in its prompt (the paper's 8-shot PAL; the demonstrations are the task's)."""
    task = context.section.target
    if task.demonstrations is None:
        raise LabError(f"Task {task.name} has no demonstrations, so there is no few-shot baseline.")
    return dataclasses.replace(base(context), shots=tuple(task.demonstrations(context.source(task))))


@candidate("manual_few_shot", "manual skill, few-shot", "skill", sees="a few target rows", source=PAPER, special=True, keeps="nothing")
@candidate("terms_few_shot", "terms skill, few-shot", "skill", sees="a few target rows", source=PAPER, special=True, keeps="nothing")
def text_few_shot(context: RunContext) -> Entry:
    """The text skill with worked examples before each question, for it never saw one (Table 2's "textbook (5-shot)")."""
    skill = context.skill(context.section.skills[0])
    return dataclasses.replace(skill, load=lambda: (skill.load()[0], {}), shots=base_few_shot(context).shots)


@candidate("data_mix", "Data mix", "data", cost="mix", sees="all of the skills' rows", source=PAPER)
def data_mix(context: RunContext) -> Entry:
    """One LoRA of rank k·r on all skills' data together (paper, Section 3.1)."""
    tasks = context.section.skills
    return context.trained(
        "data_mix", context.training_key(*tasks), lambda: [row for task in tasks for row in context.rows(task)], rank_factor=len(tasks)
    )


def _new_lora(context: RunContext, sweeps: int) -> Entry:
    preset = context.preset
    training, _ = learn.split_held_out(context.coefficient_rows, context.seed)
    steps = -(-len(training) // preset.coefficient_batch) * preset.coefficient_epochs * sweeps
    key = context.coefficient_key(training=dataclasses.asdict(preset.training), sweeps=sweeps, version=VERSION)
    return context.trained(f"new_lora-{sweeps}", key, lambda: training, steps=steps, batch_size=preset.coefficient_batch)


@candidate("new_lora", "New LoRA, same data", "control", cost="new lora", sees=MIX, source=RECYCLING, keeps="one")
def new_lora(context: RunContext) -> Entry:
    """Control: a new LoRA on the coefficients' data, for the steps of one learning of CAT."""
    return _new_lora(context, 1)


@candidate("new_lora_compute", "New LoRA, same compute", "control", cost="new loras", sees=MIX, source=RECYCLING, keeps="one")
def new_lora_compute(context: RunContext) -> Entry:
    """Control: a new LoRA on the coefficients' data, for the steps of CAT's whole sweep."""
    return _new_lora(context, len(context.preset.coefficient_rates))


@candidate("rescale_one", "One skill, rescaled", "control", sees=MIX, source=RECYCLING, keeps="one")
def rescale_one(context: RunContext, scales: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)) -> Entry:
    """Control: one skill alone, rescaled; skill and scale by the loss on the coefficients' data."""

    def build(_: Path) -> tuple[LoraAdapter, dict]:
        _, held_out = learn.split_held_out(context.coefficient_rows, context.seed)
        found = []
        for adapter in context.skills:
            with attach(context.model, [adapter]) as stack:
                for scale in scales:
                    stack.set_coefficients(torch.full((1, len(stack.modules)), scale))
                    loss = learn.held_out_loss(context.model, held_out, context.tokenizer.pad_token_id)
                    found.append((loss, adapter.name, scale))
        _, name, scale = min(found)
        adapter = next(a for a in context.skills if a.name == name)
        modules = {m: LoraFactors(f.A, f.B * scale, f.scaling) for m, f in adapter.modules.items()}
        return dataclasses.replace(adapter, modules=modules), {"skill": name, "scale": scale, "tried": found}

    key = context.coefficient_key(method="rescale_one", version=1, scales=list(scales), inputs=context.inputs)
    return context.made("rescale_one", key, build)
