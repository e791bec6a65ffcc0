"""How the embedded base models were made: `python -m lab.world.recipe` re-creates one (the first: 53 minutes on two cores)."""

import argparse
import importlib
import json
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lab.errors import LabError
from lab.files import atomic_folder, content_hash
from lab.training.loop import IGNORED, Batch, TrainConfig, fit, write_losses
from lab.world.text import documents
from lab.world.tokenizer import sample_texts, train_tokenizer

OTHERS = {"embedded-reading": "lab.world.reading.text", "embedded-letters": "lab.world.letters.text"}  # modules with a WORLD


@dataclass(frozen=True)
class BaseRecipe:
    """Everything that decides what the base becomes."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    intermediate: int = 512
    vocabulary: int = 640  # without the 1100 groups of digits
    row_tokens: int = 384
    rows: int = 11
    copy_short: int = 100  # steps of the copying with the shorter sequences
    copy_steps: int = 600  # at most: repeated random tokens first, with AdamW alone, until they are copied
    copied: float = 0.1  # nats per token at which copying counts as learned
    copy_learning_rate: float = 2e-3
    steps: int = 3400
    last_step: int | None = None  # where the first course of reading ends, if before its rates are down to 0
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.02
    seed: int = 0


Document = str | tuple[str, str]  # a text, or what is given of it, which is read but not learned, and the rest


@dataclass(frozen=True)
class World:
    """What a base model reads. documents(seed): an endless stream of them. tokenizer(recipe): made, not loaded.

    sources: the files that decide all. folder: where the base ships. about: what its card says of it.
    """

    name: str
    documents: Callable[[int], Iterator[Document]]
    tokenizer: Callable[[BaseRecipe], object]
    sources: tuple[Path, ...]
    folder: Path
    recipe: BaseRecipe
    about: str
    afterwards: tuple[tuple[Callable[[int], Iterator[str]], int], ...] = ()  # (documents, steps) of further courses of reading


def make_tokenizer(recipe: BaseRecipe):
    return train_tokenizer(sample_texts(documents(recipe.seed), 20000), recipe.vocabulary)


_HERE = Path(__file__).parent
FIRST = World(
    "embedded", documents, make_tokenizer,
    tuple(_HERE / name for name in ("text.py", "tokenizer.py", "lexicon.py", "chains.py", "stories.py", "orders.py")), _HERE / "base", BaseRecipe(),
    """It reads its world's English, copies numbers of up to six digits, knows small sums, and continues stories and Python.
It was never shown what the events of a story do to a count, nor any `solution()`: those are the skills' to bring.
Its tokenizer is byte-level BPE with digits in groups of up to three, so that any text can be encoded.""",
)  # fmt: skip


def copy_batch(recipe: BaseRecipe, vocabulary: int, step: int) -> Batch:
    """Sequences of random tokens, each told twice; from 16 tokens, growing, since longer ones are learned far slower."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    length = 16 if step < recipe.copy_short else 32
    half = torch.randint(3, vocabulary, (recipe.rows * recipe.row_tokens // (4 * length), length), generator=generator)
    ids = torch.cat([half, half], dim=1)
    labels = ids.clone()
    labels[:, :length] = -100
    return Batch(ids, labels, torch.ones_like(ids))


def text_batches(recipe: BaseRecipe, tokenizer, documents: Callable[[int], Iterator[Document]]) -> Callable[[int], list[Batch]]:
    """step -> rows of packed documents, each begun by <s>. A step's text depends on the seed and the step alone."""

    def at(step: int) -> list[Batch]:
        stream = documents(random.Random(f"{recipe.seed}-{step}").getrandbits(40))
        rows, wanted = [], []
        for _ in range(recipe.rows):
            row: list[int] = []
            labels: list[int] = []
            while len(row) < recipe.row_tokens:
                document = next(stream)
                given, written = ("", document) if isinstance(document, str) else document
                head = [tokenizer.bos_token_id, *tokenizer(given)["input_ids"]]
                tail = [*tokenizer(written)["input_ids"], tokenizer.eos_token_id]
                row += head + tail
                labels += ([IGNORED] * len(head) if given else head) + tail
            rows.append(row[: recipe.row_tokens])
            wanted.append(labels[: recipe.row_tokens])
        ids = torch.tensor(rows)
        return [Batch(ids, torch.tensor(wanted), torch.ones_like(ids))]

    return at


def make_base(folder: Path, recipe: BaseRecipe, checkpoint: Path, seconds: float | None = None, world: World = FIRST) -> None:
    """Train and save the base; `seconds` ends the training after that time (the schedule does not know, for trials only).

    checkpoint: where an interrupted run of the same recipe and the same text goes on from.
    """
    started = time.monotonic()
    checkpoint = checkpoint.with_name(f"{checkpoint.stem}-{content_hash(asdict(recipe), *world.sources)[:16]}{checkpoint.suffix}")
    tokenizer = world.tokenizer(recipe)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=recipe.hidden, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads, intermediate_size=recipe.intermediate, max_position_embeddings=1024,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, attention_dropout=0.0, dtype="float32",
        )
    )  # fmt: skip
    copying = TrainConfig(steps=recipe.copy_steps, learning_rate=recipe.copy_learning_rate, warmup=50, seed=recipe.seed)
    first = fit(
        model, lambda step: [copy_batch(recipe, len(tokenizer), step)], copying, checkpoint=checkpoint.with_suffix(".copy"),
        label="base model, copying", on_step=lambda step, loss: loss < recipe.copied,
    )  # fmt: skip

    def stop(step: int, loss: float) -> bool:
        return (seconds is not None and time.monotonic() - started > seconds) or (not second and step + 1 == recipe.last_step)

    second: list[float] = []
    for course, (texts, steps) in enumerate([(world.documents, recipe.steps), *world.afterwards]):
        place = checkpoint.with_suffix(f".{course}") if course else checkpoint
        second += read(model, text_batches(recipe, tokenizer, texts), recipe, steps, place, stop)
    losses = [*first, *second]
    facts = {
        "recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters()), "steps": len(losses),
        "tokens": len(second) * recipe.rows * recipe.row_tokens, "seconds": round(time.monotonic() - started), "threads": torch.get_num_threads(),
        "machine": platform.machine(), "torch": torch.__version__, "loss": sum(second[-50:]) / len(second[-50:]),
    }  # fmt: skip
    with atomic_folder(folder, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
        (temporary / "README.md").write_text(model_card(facts, world))
        write_losses(temporary / "losses.json", losses)
    for file in checkpoint.parent.glob(f"{checkpoint.stem}.*"):
        file.unlink()


def read(model, batches, recipe: BaseRecipe, steps: int, checkpoint: Path, stop=None) -> list[float]:
    """One course of reading: Muon for the hidden matrices, AdamW for the rest; the rates fall to 0. Gives the loss per step."""
    config = TrainConfig(
        steps=steps, learning_rate=recipe.learning_rate, warmup=100, weight_decay=0.01, optimizer="muon",
        muon_learning_rate=recipe.muon_learning_rate, seed=recipe.seed,
    )  # fmt: skip
    return fit(model, batches, config, checkpoint=checkpoint, label="base model, text", on_step=stop)


def model_card(facts: dict, world: World = FIRST) -> str:
    """The card that ships with the base, from the facts of its training."""
    recipe = facts["recipe"]
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# The base model "{world.name}" of Soup Lab's embedded world

A Llama of {facts["parameters"] / 1e6:.1f} million parameters ({recipe["layers"]} layers, hidden size {recipe["hidden"]}, fp32), trained from nothing by
`python -m lab.world.recipe --world {world.name}` on generated text: {facts["tokens"] / 1e6:.1f} million tokens in {facts["steps"]} steps,
{facts["seconds"] / 60:.0f} minutes on {facts["threads"]} CPU {"thread" if facts["threads"] == 1 else "threads"}; final loss {facts["loss"]:.3f} nats per token (`losses.json`, `recipe.json`).

{world.about}

It knows nothing of the real world and is of no use outside this lab.
"""


def get_world(name: str) -> World:
    """By the name of its base, as in lab.lora.base.EMBEDDED. Raises LabError for another."""
    if name == FIRST.name:
        return FIRST
    if name not in OTHERS:
        raise LabError(f"There is no embedded world {name!r}; choose {', '.join([FIRST.name, *OTHERS])}.")
    return importlib.import_module(OTHERS[name]).WORLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=[FIRST.name, *OTHERS], default=FIRST.name, help="which base (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the base model (default where it ships)")
    parser.add_argument("--steps", type=int, help="training steps (default the recipe's)")
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/base.ckpt"), help="where an interrupted run resumes from")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds (for trials)")
    args = parser.parse_args()
    world = get_world(args.world)
    recipe = world.recipe if args.steps is None else replace(world.recipe, steps=args.steps)
    make_base(args.out or world.folder, recipe, args.checkpoint, args.seconds, world)


if __name__ == "__main__":
    main()
