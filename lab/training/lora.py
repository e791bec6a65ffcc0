"""Training LoRA adapters on a base model: the skills, data-mix, and the controls that are new LoRAs."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.errors import LabError
from lab.files import write_atomic
from lab.lora.adapter import LoraAdapter
from lab.lora.compatibility import linear_shape
from lab.lora.module_names import usual_order
from lab.lora.peft_io import from_peft, save
from lab.tasks import Example
from lab.tasks.prompts import in_chat
from lab.training.loop import Encoded, TrainConfig, bucketed_batches, encode, fit

VERSION = 1  # raised when the same rows and settings would give other weights


@dataclass(frozen=True)
class LoraTraining:
    """How a LoRA is trained. Rates are peaks; accumulation: micro-batches of batch_size rows to a step."""

    rank: int
    lora_alpha: int
    dropout: float
    targets: tuple[str, ...]
    epochs: int
    batch_size: int
    accumulation: int
    learning_rate: float
    warmup: int
    max_tokens: int
    precision: str

    def steps(self, rows: int) -> int:
        """Optimizer steps of all epochs over so many rows."""
        return self.epochs * math.ceil(rows / (self.batch_size * self.accumulation))


def linear_targets(model) -> tuple[str, ...]:
    """The names of all linear layers but the head, in the order in which people list them."""
    head = model.get_output_embeddings()
    found = {name.rpartition(".")[2] for name, layer in model.named_modules() if linear_shape(layer) and layer is not head}
    return tuple(sorted(found, key=usual_order))


def encode_examples(tokenizer, examples: Sequence[Example], max_tokens: int, chat: bool = False) -> list[Encoded]:
    """Training rows; chat as in lab.evaluation.evaluate.Decoding. An example's metadata may name its `skill`.

    Raises LabError when there is nothing to train on.
    """
    if chat:
        examples = [in_chat(tokenizer, example) for example in examples]
    told = [e for e in examples if e.completion]
    rows = [encode(tokenizer, e.prompt, e.completion, max_tokens, str(e.metadata.get("skill", ""))) for e in told]
    if not rows:
        raise LabError("There are no training rows: every completion is empty.")
    return rows


def train_lora(
    model, tokenizer, rows: Sequence[Encoded], training: LoraTraining, *, name: str, base: str, seed: int, folder: Path, checkpoint: Path | None,
    rank_factor: int = 1, steps: int | None = None, batch_size: int | None = None,
) -> LoraAdapter:  # fmt: skip
    """Train one LoRA and write it, as an ordinary PEFT adapter, into `folder`; the base stays as it was.

    base: as the adapter names it. rank_factor: multiple of the rank and lora_alpha (data-mix takes k, paper Section 3.1). steps, batch_size: other
    than the training's. Beside the adapter: training.json with loss per step (nats per token) and seconds.
    """
    from peft import LoraConfig, get_peft_model

    started = time.monotonic()
    accumulation = 1 if batch_size else training.accumulation
    batch_size = batch_size or training.batch_size
    steps = training.steps(len(rows)) if steps is None else steps
    present = {module.rpartition(".")[2] for module, _ in model.named_modules()}
    missing = [target for target in training.targets if target not in present]
    if missing:
        raise LabError(f"The base has no module called {missing[0]!r}; choose other targets.")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=training.rank * rank_factor, lora_alpha=training.lora_alpha * rank_factor, lora_dropout=training.dropout,
        target_modules=list(training.targets), task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    try:
        batches = bucketed_batches(rows, batch_size, steps, seed, tokenizer.pad_token_id, accumulation)
        schedule = TrainConfig(
            steps=steps, learning_rate=training.learning_rate, warmup=min(training.warmup, steps // 5), precision=training.precision, seed=seed
        )
        losses = fit(adapted, batches, schedule, checkpoint=checkpoint, label=name)
        adapter = from_peft(adapted, name=name)
    finally:
        adapted.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
    save(folder, adapter, overwrite=True)
    facts = {"loss": losses, "seconds": round(time.monotonic() - started, 1), "rows": len(rows), "steps": steps}
    write_atomic(folder / "training.json", json.dumps(facts) + "\n")
    return adapter
