"""Learning the coefficients of a merge on a little of the skills' own data (paper, Section 4: CAT)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.adapter import LoraAdapter
from lab.merging import build, freeze
from lab.stacked import attach
from lab.training import Encoded, TrainConfig, bucketed_batches, collate, fit, token_loss

HELD_OUT = 0.2  # of the coefficient rows: decides the learning rate, never trained on


@dataclass(frozen=True)
class Learned:
    """adapter: the merge. losses: nats per token, per step, of the chosen rate. sweep: (learning rate, held-out loss)."""

    adapter: LoraAdapter
    losses: list[float]
    sweep: list[tuple[float, float]]
    learning_rate: float
    steps: int


def split_held_out(rows: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """(to learn on, held out), shuffled by the seed."""
    order = random.Random(seed).sample(list(rows), len(rows))
    cut = max(1, int(len(order) * HELD_OUT))
    return order[cut:], order[:cut]


@torch.no_grad()
def held_out_loss(model, rows: Sequence[Encoded], pad_id: int, batch_size: int = 32) -> float:
    """Mean cross-entropy over the completions' tokens (nats)."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for i in range(0, len(ordered), batch_size):
        batch = collate(ordered[i : i + batch_size], pad_id)
        device = next(model.parameters()).device
        value, tokens = token_loss(model, type(batch)(*(t.to(device) for t in (batch.input_ids, batch.labels, batch.attention_mask))))
        total, count = total + float(value), count + tokens
    return total / count


def learn(
    method: str,
    model,
    adapters: Sequence[LoraAdapter],
    rows: Sequence[Encoded],
    pad_id: int,
    *,
    rates: Sequence[float],
    batch_size: int,
    epochs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    precision: str = "no",
    parameters: Mapping[str, object] = {},
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], bool | None] | None = None,
) -> Learned:
    """Learn a method's coefficients once per rate, and keep those with the lowest loss on held-out rows of the same data.

    rows: a mix of the skills' own data. The target task is never seen. steps: instead of `epochs` over the rows. parameters:
    the method's own (see lab.merging.schema). checkpoint: beginning of the names of files to continue from when interrupted.
    """
    training, held_out = split_held_out(rows, seed)
    steps = -(-len(training) // batch_size) * epochs if steps is None else steps
    best: Learned | None = None
    sweep: list[tuple[float, float]] = []
    for rate in rates:
        with attach(model, adapters) as stack:
            coefficients = build(method, stack, **parameters)
            batches = bucketed_batches(training, batch_size, steps, seed, pad_id)
            config = TrainConfig(steps=steps, learning_rate=rate, precision=precision, seed=seed)
            state = checkpoint and checkpoint.with_name(f"{checkpoint.name}-{rate:g}")
            losses = fit(
                _Trainable(model, coefficients), batches, config, checkpoint=state, label=f"{method}, rate {rate:g}", on_step=on_step
            )
            sweep.append((rate, held_out_loss(model, held_out, pad_id)))
            if best is None or sweep[-1][1] < min(loss for _, loss in sweep[:-1]):
                best = Learned(freeze(stack, coefficients), losses, [], rate, steps)
    return Learned(best.adapter, best.losses, sweep, best.learning_rate, steps)


class _Trainable(torch.nn.Module):
    """The frozen model and the coefficients beside it, so that one loop sees both."""

    def __init__(self, model, coefficients):
        super().__init__()
        self.coefficients = coefficients
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)
