"""The one training loop: base, skills, data-mix, coefficients and routers all go through `fit`."""

import hashlib
import json
import pickle
import random
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab.errors import LabError
from lab.files import atomic_file, could_not_write, write_atomic

IGNORED = -100  # label of a token that carries no loss
# From so many tokens on, the predictions are made only where there is a label: they cost as much as many of a small model's layers.
# Under it, little is saved, and a product of fewer rows may differ in its last bits.
LARGE_VOCABULARY = 8192


class Diverged(LabError):
    """The loss became NaN."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. learning_rate is the peak after `warmup` steps; it then falls to 0 at `steps`, linearly or as a cosine (`schedule`)."""

    steps: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02  # only for optimizer="muon": hidden matrices; the rest takes AdamW at learning_rate
    betas: tuple[float, float] = (0.9, 0.98)
    precision: str = "no"  # accelerate's mixed precision: no | bf16 | fp16
    seed: int = 0
    schedule: str = "linear"

    def __post_init__(self):
        if self.schedule not in ("linear", "cosine"):
            raise LabError(f"schedule is {self.schedule!r}; choose linear or cosine.")
        if self.steps < 0:
            raise LabError(f"steps is {self.steps}; give 0 or more.")
        if not self.learning_rate > 0:
            raise LabError(f"learning_rate is {self.learning_rate}; give a number above 0.")
        if self.optimizer not in ("adamw", "muon"):
            raise LabError(f"optimizer is {self.optimizer!r}; choose adamw or muon.")
        if self.precision not in ("no", "bf16", "fp16"):
            raise LabError(f"precision is {self.precision!r}; choose no, bf16 or fp16.")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise LabError("precision fp16 needs a GPU, and none is available here; choose no or bf16.")


@dataclass(frozen=True)
class Batch:
    """input_ids, labels, attention_mask: (rows, tokens) int64. labels are IGNORED where no loss is wanted. skills: of the rows."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    skills: tuple[str, ...] = ()

    def to(self, device) -> "Batch":
        return Batch(self.input_ids.to(device), self.labels.to(device), self.attention_mask.to(device), self.skills)


@dataclass(frozen=True)
class Encoded:
    """One training row: token ids, and how many of the first belong to the prompt (no loss there). skill: whose it is, if known."""

    ids: tuple[int, ...]
    prompt_length: int
    skill: str = ""


def encode_prompt(tokenizer, prompt: str) -> list[int]:
    """The prompt as training, generation and likelihoods all read it: it begins with the beginning-of-text token, once, where the
    tokenizer has one. (A chat template may bring it along.)"""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id
    return ids if start is None or ids[:1] == [start] else [start, *ids]


def encode(tokenizer, prompt: str, completion: str, max_tokens: int, skill: str = "") -> Encoded:
    """Prompt and completion are tokenised apart, as generation sees them, and end with the end-of-text token."""
    head = encode_prompt(tokenizer, prompt)
    tail = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Encoded(tuple([*head, *tail][:max_tokens]), min(len(head), max_tokens), skill)


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, row.prompt_length : len(row.ids)] = torch.tensor(row.ids[row.prompt_length :], dtype=torch.long)
        mask[i, : len(row.ids)] = 1
    return Batch(ids, labels, mask, tuple(row.skill for row in rows))


def bucketed_batches(
    rows: Sequence[Encoded], batch_size: int, steps: int, seed: int, pad_id: int, accumulation: int = 1
) -> Callable[[int], list[Batch]]:
    """Batches by step: epoch after epoch in a seeded order, rows of like length together, so that little is padding.

    Returns step -> list of `accumulation` micro-batches. The same step always gives the same batches, which makes resuming exact.
    """
    rows = [row for row in rows if row.prompt_length < len(row.ids)]
    if not rows:
        raise LabError("There is nothing to train on: no row has a completion that fits into max_tokens.")
    rng = random.Random(seed)
    order: list[list[int]] = []
    while len(order) < steps * accumulation:
        shuffled = rng.sample(range(len(rows)), len(rows))
        pools = [shuffled[i : i + batch_size * 16] for i in range(0, len(shuffled), batch_size * 16)]
        epoch = []
        for pool in pools:
            pool.sort(key=lambda i: len(rows[i].ids))
            epoch += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        rng.shuffle(epoch)
        order += epoch

    def at(step: int) -> list[Batch]:
        chosen = order[step * accumulation : (step + 1) * accumulation]
        return [collate([rows[i] for i in indices], pad_id) for indices in chosen]

    return at


def token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Sum of the cross-entropy over the labelled tokens (nats), and their number."""
    logits, labels = labelled_logits(model, batch)
    return nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


def labelled_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Predictions of the labelled tokens, row after row: (tokens, vocabulary) float32, and their labels: (tokens,).

    Where the vocabulary is large, the model's head is given no other position; model may be wrapped, by PEFT for example.
    """
    labels = batch.labels[:, 1:]
    wanted = labels != IGNORED
    with _narrowed(_head(model), wanted):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    everywhere = logits.shape[:2] == batch.labels.shape
    return (logits[:, :-1][wanted] if everywhere else logits[0]).float(), labels[wanted]


def _head(model: nn.Module) -> nn.Linear | None:
    """What turns hidden states into predictions, where it is a plain linear layer over a large vocabulary."""
    from transformers import PreTrainedModel

    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    head = inner.get_output_embeddings() if inner is not None else None
    return head if type(head) is nn.Linear and head.out_features >= LARGE_VOCABULARY else None


@contextmanager
def _narrowed(head: nn.Linear | None, wanted: Tensor) -> Iterator[None]:
    """Inside the block the head sees the wanted positions only, as one row: (1, tokens, width). wanted: (rows, tokens - 1)."""
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :-1][wanted][None],))
    try:
        yield
    finally:
        hook.remove()


def _optimizers(named: list[tuple[str, nn.Parameter]], config: TrainConfig) -> list[torch.optim.Optimizer]:
    adamw = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": config.betas}
    if config.optimizer == "adamw":
        return [torch.optim.AdamW([p for _, p in named], **adamw)]
    hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    chosen = set(map(id, hidden))
    rest = [p for _, p in named if id(p) not in chosen]
    muon = torch.optim.Muon(hidden, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [muon, torch.optim.AdamW(rest, **adamw)] if rest else [muon]


def fingerprint(config: TrainConfig, named: list[tuple[str, nn.Parameter]]) -> str:
    """What a checkpoint must have in common with a run to be resumed by it."""
    shapes = [(name, tuple(p.shape)) for name, p in named]
    return hashlib.sha256(json.dumps([asdict(config), shapes], default=str).encode()).hexdigest()


def fit(
    model: nn.Module,
    batches: Callable[[int], list[Batch]],
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    label: str = "training",
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int]] = token_loss,
    on_step: Callable[[int, float], bool | None] | None = None,
) -> list[float]:
    """Train the parameters of `model` that require a gradient, in place; returns the loss (nats per token) of every step.

    `batches(step)` gives the micro-batches of a step; their gradients are averaged over tokens. With `checkpoint` (a file)
    the run can be killed at any moment and continues exactly: weights, optimizer, random state and losses come back.
    `on_step(step, loss)` may return True to stop early, keeping what was learned.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from transformers import get_scheduler

    torch.manual_seed(config.seed)
    # Another precision, or device, than an earlier run of this process had. A model on the CPU is trained there, beside a GPU too.
    place = next(model.parameters()).device.type
    on_cpu = place == "cpu" and torch.cuda.is_available()
    AcceleratorState._reset_state(reset_partial_state=PartialState(cpu=on_cpu).device.type != place)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=on_cpu)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise LabError(f"{label}: no parameter of the model is trainable.")
    optimizers = _optimizers(named, config)
    schedules = [get_scheduler(config.schedule, o, config.warmup, config.steps) for o in optimizers]
    model, *optimizers = accelerator.prepare(model, *optimizers)
    device = accelerator.device
    losses: list[float] = []
    ended = False
    key = fingerprint(config, named)
    state = read_state(checkpoint, _CHECKPOINT) if checkpoint is not None else None
    if state is not None and state["key"] == key:
        with torch.no_grad():
            for name, parameter in named:
                parameter.copy_(state["weights"][name])
        for optimizer, schedule, saved, rate in zip(optimizers, schedules, state["optimizers"], state["schedules"], strict=True):
            optimizer.load_state_dict(saved)
            schedule.load_state_dict(rate)
        torch.set_rng_state(state["random"])
        if state["random_gpu"]:
            torch.cuda.set_rng_state_all(state["random_gpu"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        losses, ended = state["losses"], state["ended"]
    model.train()
    saved_at = time.monotonic()
    last = len(losses) if ended else config.steps  # a run that was stopped early stays stopped
    bar = tqdm(range(len(losses), last), initial=len(losses), total=config.steps, desc=label, mininterval=2.0)
    for step in bar:
        micro = batches(step)
        tokens = sum(int((b.labels[:, 1:] != IGNORED).sum()) for b in micro)  # before they go to a GPU, which would be waited for
        values = []
        for batch in micro:
            value, _ = loss(model, batch.to(device))
            accelerator.backward(value / max(tokens, 1))
            values.append(value.detach())
        accelerator.clip_grad_norm_([p for _, p in named], config.clip)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(sum(torch.stack(values).tolist()) / max(tokens, 1))  # the one wait of a step
        if losses[-1] != losses[-1]:
            raise Diverged(f"{label}: the loss became NaN at step {step}; lower the learning rate (now {config.learning_rate}).")
        bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
        if checkpoint is not None and time.monotonic() - saved_at > checkpoint_seconds:
            _save_checkpoint(checkpoint, key, named, optimizers, schedules, losses, accelerator.scaler, ended=False)
            saved_at = time.monotonic()
        if on_step is not None and on_step(step, losses[-1]):
            break
    if checkpoint is not None:
        _save_checkpoint(checkpoint, key, named, optimizers, schedules, losses, accelerator.scaler, ended=True)
    model.eval()
    return losses


def read_state(path: Path, holding: Collection[str]) -> dict | None:
    """What a checkpoint holds, on the CPU, under these names; None where there is none, or, with a warning, where it is damaged."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() == set(holding):
            return state
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, AttributeError, TypeError, pickle.UnpicklingError):
        pass  # said below
    warnings.warn(f"The checkpoint {path} is damaged: the training starts from its beginning.", stacklevel=3)
    return None


_CHECKPOINT = {"key", "weights", "optimizers", "schedules", "random", "random_gpu", "scaler", "losses", "ended"}


def _save_checkpoint(path: Path, key: str, named, optimizers, schedules, losses: list[float], scaler, ended: bool) -> None:
    state = {
        "key": key,
        "weights": {name: p.detach() for name, p in named},
        "optimizers": [o.state_dict() for o in optimizers],
        "schedules": [s.state_dict() for s in schedules],
        "random": torch.get_rng_state(),
        "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "scaler": scaler.state_dict() if scaler is not None else {},
        "losses": losses,
        "ended": ended,
    }
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)  # given the path itself it would not tell why it could not write
        except RuntimeError as error:
            raise could_not_write(path, error) from error


def write_losses(path: Path, losses: list[float]) -> None:
    write_atomic(path, json.dumps([round(x, 5) for x in losses]))
