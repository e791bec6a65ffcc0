"""Learning a merge from a little data: coefficients (paper, Section 4: CAT), routers, a search without gradients."""

import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab.errors import LabError
from lab.files import write_atomic
from lab.lora.adapter import LoraAdapter
from lab.lora.stacked import attach
from lab.merging.build import build, freeze, search, solve
from lab.merging.inputs import Prompt
from lab.merging.registry import get_method
from lab.training.loop import (
    Batch,
    Diverged,
    Encoded,
    TrainConfig,
    bucketed_batches,
    collate,
    fingerprint,
    fit,
    read_state,
    token_loss,
)

HELD_OUT = 0.2  # of the coefficient rows: decides the learning rate, never trained on

Objective = Callable[[nn.Module, Batch], tuple[Tensor, int]]


@dataclass(frozen=True)
class Learned:
    """What was learned: an adapter, or for a router its state.

    adapter: the merge; None for a router. router_state: for `load_state_dict` of the router that lab.merging.build
    puts on a stack of the same adapters; None for the others. losses: nats per token (of the objective), per step of
    the chosen rate or per try of a search. sweep: (learning rate, held-out loss in nats per token), None where that
    rate diverged; [] for a search. learning_rate: the chosen one; None for a search. kept_step: after how many steps what was
    kept was found, where the recipe asks for the best instead of the last; else None.
    """

    adapter: LoraAdapter | None
    losses: list[float]
    sweep: list[tuple[float, float | None]]
    learning_rate: float | None
    steps: int
    router_state: dict[str, Tensor] | None = None
    kept_step: int | None = None


def split_held_out(rows: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """(to learn on, held out), shuffled by the seed."""
    if len(rows) < 2:
        raise LabError(
            f"There are {len(rows)} rows to learn coefficients on; give at least 2, since some are held out."
        )
    order = random.Random(seed).sample(list(rows), len(rows))
    cut = max(1, int(len(order) * HELD_OUT))
    return order[cut:], order[:cut]


def prompts_only(rows: Sequence[Encoded], pad_id: int) -> list[Encoded]:
    """The rows without their completions: a prediction is wanted after every token of the prompt, and none is known.

    One padding token stands where the completion was, for the prediction after the prompt's last token; no earlier
    token sees it. Raises LabError when every prompt is empty.
    """
    prompts = [Encoded((*row.ids[: row.prompt_length], pad_id), 0, row.skill) for row in rows if row.prompt_length]
    if not prompts:
        raise LabError("There are no prompts to learn on: every row begins with its completion.")
    return prompts


@torch.no_grad()
def held_out_loss(
    model, rows: Sequence[Encoded], pad_id: int, batch_size: int = 32, *, objective: Objective = token_loss
) -> float:
    """Mean of the objective over the labelled tokens (nats): the cross-entropy over the completions by default."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for i in range(0, len(ordered), batch_size):
        batch = collate(ordered[i : i + batch_size], pad_id)
        value, tokens = objective(model, batch.to(next(model.parameters()).device))
        total, count = total + float(value), count + tokens
    if not count:
        raise LabError("No row has a completion that fits into max_tokens; raise it.")
    return total / count


def learn(
    method: str,
    model,
    adapters: Sequence[LoraAdapter],
    rows: Sequence[Encoded],
    pad_id: int,
    *,
    rates: Sequence[float] | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    precision: str = "no",
    parameters: Mapping[str, object] = {},
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], bool | None] | None = None,
) -> Learned:
    """Learn a method's coefficients or router once per rate, and keep what is best on held-out rows of the same data.

    rows: what `METHODS[method].recipe.data` asks for. "mix": the skills' own data; "prompts": the same, whose
    completions are taken away here; "target": a few examples of the target task, which no other method sees.
    rates, batch_size, epochs, steps: default what the method's source does; steps go before epochs. parameters: the
    method's own (see lab.merging.schema). A search without gradients uses only steps, and the seed among its
    parameters. checkpoint: beginning of the names of files to continue from when interrupted (not for a search).
    on_step: see lab.training.loop.fit.

    What is built may bring its own `objective(model, batch)`, as fit's `loss`, to learn by. The rate is decided by the
    loss on the held-out rows, or by the objective where there are prompts only; so is the step that is kept, where the recipe
    says `check_every`. No parameter of the base moves.

    Raises LabError for a method that learns nothing, fewer than two adapters, rows or rates that are missing, and when
    every rate diverged.
    """
    recipe = get_method(method).recipe
    if recipe is None:
        raise LabError(f"{method} has nothing to learn; merge the adapters by it, or build it on a stack.")
    if len(adapters) < 2:
        raise LabError(f"{method} learns how adapters go together; give at least 2, not {len(adapters)}.")
    if steps is None and epochs is None:
        steps = recipe.steps
    if get_method(method).kind == "search":
        return _search(method, model, adapters, rows, pad_id, steps or recipe.steps, parameters, on_step)
    if recipe.learning_rate is None:
        return _solve(method, model, adapters, prompts_by_skill(method, rows, adapters), seed, parameters)

    rates = (recipe.learning_rate,) if rates is None else rates
    batch_size = recipe.batch_size if batch_size is None else batch_size
    if not rates:
        raise LabError(f"There is no learning rate for {method}; give at least one, or leave rates out.")
    if batch_size < 1:
        raise LabError(f"batch_size is {batch_size}; give 1 or more.")
    if recipe.data == "prompts":
        rows = prompts_only(rows, pad_id)
    training, held_out = split_held_out(rows, seed)
    if steps is None:
        steps = -(-len(training) // batch_size) * (recipe.epochs if epochs is None else epochs)
    found: dict[float, tuple[float, LoraAdapter | None, dict[str, Tensor] | None, list[float], int | None]] = {}
    failures: list[str] = []
    for rate in rates:
        with attach(model, adapters) as stack:
            learner = build(method, stack, **parameters)
            objective: Objective = getattr(learner, "objective", token_loss)
            batches = bucketed_batches(training, batch_size, steps, seed, pad_id)
            config = TrainConfig(
                steps=steps, learning_rate=rate, precision=precision, seed=seed, warmup=round(recipe.warmup * steps),
                schedule=recipe.schedule, betas=recipe.betas,
            )  # fmt: skip
            state = checkpoint and checkpoint.with_name(f"{checkpoint.name}-{rate:g}")
            label = f"{method}, rate {rate:g}"
            try:
                trainable = _Trainable(model, learner)
                criterion = objective if recipe.data == "prompts" else token_loss
                best_step = None
                if recipe.check_every:
                    best_step = _BestStep(trainable, held_out, pad_id, criterion, config, state)
                    batches = best_step.looked_at_every(recipe.check_every, batches)
                losses = fit(
                    trainable, batches, config, checkpoint=state, label=label, loss=objective, on_step=on_step
                )
                if best_step:
                    best_step.restore(after=len(losses))
                value = held_out_loss(model, held_out, pad_id, objective=criterion)
                if not math.isfinite(value):
                    raise Diverged(f"{label}: the held-out loss is {value}; lower the learning rate.")
            except Diverged as error:  # one rate of a sweep may be too high
                failures.append(str(error))
                continue
            if get_method(method).kind == "router":
                kept = {name: tensor.detach().cpu().clone() for name, tensor in learner.state_dict().items()}
                found[rate] = (value, None, kept, losses, best_step and best_step.step)
            else:
                found[rate] = (value, freeze(stack, learner), None, losses, best_step and best_step.step)
    if not found:
        raise LabError(f"{method} diverged at every learning rate: {' '.join(failures)}")
    best = min(found, key=lambda rate: found[rate][0])
    sweep = [(rate, found[rate][0] if rate in found else None) for rate in rates]
    _, adapter, router_state, losses, kept_step = found[best]
    return Learned(adapter, losses, sweep, best, steps, router_state, kept_step)


def _search(method, model, adapters, rows, pad_id, steps, parameters, on_step) -> Learned:
    """Learn without gradients: all rows score every try."""
    if not rows:
        raise LabError(f"There are no rows to learn {method} on; give a few examples of the target task.")
    losses: list[float] = []
    ended = False
    model.eval()
    with tqdm(total=steps, desc=method, mininterval=2.0) as bar:

        def loss(adapter: LoraAdapter) -> float | None:
            nonlocal ended
            if ended:
                return None
            with attach(model, [adapter]) as stack:
                stack.set_coefficients(torch.ones(1, len(stack.modules)))
                losses.append(held_out_loss(model, rows, pad_id))
            bar.update()
            ended = bool(on_step and on_step(len(losses) - 1, losses[-1]))
            return losses[-1]

        adapter = search(method, adapters, loss, steps, **parameters)
    return Learned(adapter, losses, [], None, len(losses))


class _BestStep:
    """The weights of the step with the least held-out loss so far.

    They lie in a file beside the run's checkpoint, so that a run that was killed goes on exactly.
    """

    def __init__(
        self, trainable: "_Trainable", held_out: Sequence[Encoded], pad_id: int, criterion: Objective, config: TrainConfig,
        checkpoint: Path | None,
    ):
        self.trainable, self.held_out, self.pad_id, self.criterion = trainable, held_out, pad_id, criterion
        named = [(name, p) for name, p in trainable.named_parameters() if p.requires_grad]
        self.weights, self.key = dict(named), fingerprint(config, named)
        self.file = checkpoint and checkpoint.with_name(f"{checkpoint.name}-best")
        self.best = {"key": self.key, "value": math.inf, "step": 0, "weights": self._copy()}
        if self.file and self.file.exists():
            earlier = read_state(self.file, self.best.keys())
            if earlier is None:
                checkpoint.unlink(missing_ok=True)  # it goes on after steps of which the best is not known any more
            elif earlier["key"] == self.key:
                self.best = earlier

    @property
    def step(self) -> int:
        return self.best["step"]

    def looked_at_every(self, count: int, batches: Callable[[int], list[Batch]]) -> Callable[[int], list[Batch]]:
        """The batches, with a look after every `count` steps: before the next, so that no kill comes between step and look."""

        def at(step: int) -> list[Batch]:
            if step and step % count == 0:
                self.look(step)
            return batches(step)

        return at

    def look(self, step: int) -> None:
        training = self.trainable.training
        self.trainable.eval()
        value = held_out_loss(self.trainable.model, self.held_out, self.pad_id, objective=self.criterion)
        self.trainable.train(training)
        if value < self.best["value"]:
            self.best = {"key": self.key, "value": value, "step": step, "weights": self._copy()}
            if self.file:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                torch.save(self.best, buffer)
                write_atomic(self.file, buffer.getvalue())

    def restore(self, after: int) -> None:
        """The best weights, those after the last step counted in."""
        self.look(after)
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(self.best["weights"][name])

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.weights.items()}


def prompts_by_skill(method: str, rows: Sequence[Encoded], adapters: Sequence[LoraAdapter]) -> dict[str, list[Prompt]]:
    """The prompts' token ids by skill, in alphabetical order; of running text, which has no prompt, the text is what is read.

    Raises LabError for a skill that has none, or only one.
    """

    def read(row: Encoded) -> Prompt:
        return row.ids[: row.prompt_length] if row.prompt_length > 1 else row.ids[:-1]  # one may be the beginning-of-text token

    found = {
        adapter.name: [read(row) for row in rows if row.skill == adapter.name and len(row.ids) > 1]
        for adapter in sorted(adapters, key=lambda adapter: adapter.name)
    }
    lacking = [skill for skill, prompts in found.items() if len(prompts) < 2]
    if lacking:
        have = ", ".join(sorted({row.skill for row in rows if row.skill})) or "of no skill that is named"
        raise LabError(
            f"{method} needs at least 2 prompts of every skill, and there are too few of {', '.join(lacking)} (rows are {have}); "
            f"give a file of rows per skill, called as the adapter is."
        )
    return found


def _solve(
    method: str, model, adapters: Sequence[LoraAdapter], prompts: dict[str, list[Prompt]], seed: int, parameters: Mapping
) -> Learned:
    """Learn in closed form: an adapter from what the prompts show, or a router that tells the skills' prompts apart."""
    model.eval()
    if get_method(method).kind == "solve":
        return Learned(solve(method, adapters, model, prompts, **parameters), [], [], None, 0)
    with attach(model, adapters) as stack:
        router = build(method, stack, **parameters)
        router.learn_from(prompts, seed)
        kept = {name: tensor.detach().cpu().clone() for name, tensor in router.state_dict().items()}
    return Learned(None, [], [], None, 0, kept)


class _Trainable(torch.nn.Module):
    """The frozen model and what is learned beside it, so that one loop sees both."""

    def __init__(self, model, coefficients):
        super().__init__()
        self.coefficients = coefficients
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)
