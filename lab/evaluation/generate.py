"""Batched generation: prompts sorted by length, so that little is padding; greedy, or the paper's sampling."""

import json
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from lab.errors import LabError
from lab.files import write_atomic
from lab.training.loop import encode_prompt


@torch.inference_mode()
def generate(
    model,
    tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    partial: Path | None = None,
    label: str = "answers",
) -> list[str]:
    """One completion per prompt, in the order of the prompts, up to the first end token (`end_tokens`) or stop string.

    temperature 0 is greedy; otherwise each batch draws from its own seed. partial: a file that keeps finished batches, so that an
    interrupted call goes on. Prompts are tokenised as in training.
    """
    from transformers import GenerationConfig

    if any(not prompt for prompt in prompts):
        raise LabError("A prompt is empty; write something.")
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = room(model)
    if longest is not None and max(map(len, encoded)) + max_new_tokens > longest:
        raise LabError(
            f"A prompt of {max(map(len, encoded))} tokens and {max_new_tokens} new ones exceed the model's {longest}; shorten it."
        )
    ends = end_tokens(model, tokenizer)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature > 0, temperature=temperature or None, top_p=top_p if temperature else None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=ends or None, bos_token_id=tokenizer.bos_token_id, use_cache=True,
        stop_strings=list(stop) or None,
        # transformers fills what is unset from the model's own settings: these must not depend on the base.
        top_k=0, repetition_penalty=1.0, no_repeat_ngram_size=0,
    )  # fmt: skip
    done = _begun(partial)
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if [len(texts) for texts in done] != [len(chunk) for chunk in chunks[: len(done)]]:
        done = []  # begun with another batch size
    for number, chunk in enumerate(tqdm(chunks, desc=label, mininterval=2.0, leave=False)):
        if number < len(done):
            continue
        torch.manual_seed(seed * len(chunks) + number)
        width = max(len(encoded[i]) for i in chunk)
        ids = torch.full((len(chunk), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(chunk), width), dtype=torch.long)
        for row, i in enumerate(chunk):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[row, width - len(encoded[i]) :] = 1
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config, tokenizer=tokenizer
        )
        told = [before_end(row, ends) for row in out[:, width:].tolist()]
        texts = tokenizer.batch_decode(told, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        done.append([cut(text, stop) for text in texts])
        if partial is not None and len(chunks) > 1:
            write_atomic(partial, json.dumps(done))
    completions = dict(zip((i for chunk in chunks for i in chunk), (text for texts in done for text in texts), strict=True))
    return [completions[i] for i in range(len(prompts))]


def _begun(partial: Path | None) -> list[list[str]]:
    """The answers of an interrupted run, by batch."""
    if partial is None or not partial.exists():
        return []
    try:
        return [[str(text) for text in texts] for texts in json.loads(partial.read_text())]
    except (OSError, ValueError, TypeError):
        warnings.warn(f"The interrupted answers {partial} are damaged: all are made again.", stacklevel=3)
        return []


def room(model) -> int | None:
    """How many tokens the model reads, None where its configuration does not say; of a model of several parts, its language model."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_tokens(model, tokenizer) -> list[int]:
    """The ids at which an answer ends: the tokenizer's end, and each that the model's generation_config names."""
    settings = getattr(model, "generation_config", None)
    named = settings.eos_token_id if settings is not None else None
    found = [*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id]
    return sorted({token for token in found if token is not None})


def further_ends(model, tokenizer) -> list[int]:
    """The end tokens beside the tokenizer's own: what a digest of weights, configuration and tokenizer does not tell."""
    return [token for token in end_tokens(model, tokenizer) if token != tokenizer.eos_token_id]


def before_end(ids: Sequence[int], ends: Collection[int]) -> Sequence[int]:
    """The tokens before the first end token; all when there is none."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text before the first stop string."""
    for mark in stop:
        text = text.split(mark)[0]
    return text
