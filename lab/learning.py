"""Learning the coefficients of a merge on a little of the skills' own data (paper, Section 4: CAT)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.adapter import LoraAdapter
from lab.errors import LabError
from lab.merging import build, freeze
from lab.stacked import attach
from lab.training import Diverged, Encoded, TrainConfig, bucketed_batches, collate, fit, token_loss

HELD_OUT = 0.2  # of the coefficient rows: decides the learning rate, never trained on


@dataclass(frozen=True)
class Learned:
    """adapter: the merge. losses: nats per token, per step, of the chosen rate.

    sweep: (learning rate, held-out loss in nats per token), None where that rate diverged.
    """

    adapter: LoraAdapter
    losses: list[float]
    sweep: list[tuple[float, float | None]]
    learning_rate: float
    steps: int


def split_held_out(rows: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """(to learn on, held out), shuffled by the seed."""
    if len(rows) < 2:
        raise LabError(f"There are {len(rows)} rows to learn coefficients on; give at least 2, since some are held out.")
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
    if not count:
        raise LabError("No held-out row has a completion that fits into max_tokens; raise it.")
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
    found: dict[float, tuple[float, LoraAdapter, list[float]]] = {}
    failures: list[str] = []
    for rate in rates:
        with attach(model, adapters) as stack:
            coefficients = build(method, stack, **parameters)
            batches = bucketed_batches(training, batch_size, steps, seed, pad_id)
            config = TrainConfig(steps=steps, learning_rate=rate, precision=precision, seed=seed)
            state = checkpoint and checkpoint.with_name(f"{checkpoint.name}-{rate:g}")
            try:
                losses = fit(
                    _Trainable(model, coefficients), batches, config, checkpoint=state, label=f"{method}, rate {rate:g}", on_step=on_step
                )
                found[rate] = (held_out_loss(model, held_out, pad_id), freeze(stack, coefficients), losses)
            except Diverged as error:  # one rate of a sweep may be too high
                failures.append(str(error))
    if not found:
        raise LabError(f"{method} diverged at every learning rate: {' '.join(failures)}")
    best = min(found, key=lambda rate: found[rate][0])
    sweep = [(rate, found[rate][0] if rate in found else None) for rate in rates]
    _, adapter, losses = found[best]
    return Learned(adapter, losses, sweep, best, steps)


class _Trainable(torch.nn.Module):
    """The frozen model and the coefficients beside it, so that one loop sees both."""

    def __init__(self, model, coefficients):
        super().__init__()
        self.coefficients = coefficients
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)
