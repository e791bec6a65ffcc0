"""How likely a model finds continuations of a prompt: for multiple choice, and for scores as model cards report them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from lab.errors import LabError
from lab.evaluation.generate import room
from lab.training.loop import IGNORED, Encoded, collate, encode, labelled_logits


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation. total: the logarithm of its probability (nats). tokens: how many it has."""

    total: float
    tokens: int


@torch.inference_mode()
def likelihoods(
    model, tokenizer, prompts: Sequence[str], choices: Sequence[Sequence[str]], *, ended: bool = True, batch_size: int = 64,
    label: str = "choices",
) -> list[list[Likelihood]]:  # fmt: skip
    """Of each prompt's choices, in their order. ended: the end-of-text token after a choice counts as one of its tokens.

    Raises LabError for a prompt without choices, an empty choice that does not end, or one that is too long for the model.
    """
    if not all(choices):
        raise LabError("A prompt has no choices; give at least one for each.")
    rows = [encode(tokenizer, prompt, choice, 10**9) for prompt, given in zip(prompts, choices, strict=True) for choice in given]
    if not ended:
        rows = [Encoded(row.ids[:-1], row.prompt_length) for row in rows]
        if any(len(row.ids) == row.prompt_length for row in rows):
            raise LabError("A choice is empty; write something, or score its end as well.")
    longest = room(model)
    tokens = max((len(row.ids) for row in rows), default=0)
    if longest is not None and tokens > longest:
        raise LabError(f"A prompt and its choice have {tokens} tokens, the model reads {longest}; shorten them.")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found = [Likelihood(0.0, 0)] * len(rows)
    for start in tqdm(range(0, len(order), batch_size), desc=label, mininterval=2.0, leave=False):
        chunk = order[start : start + batch_size]
        batch = collate([rows[i] for i in chunk], tokenizer.pad_token_id).to(model.device)
        logits, labels = labelled_logits(model, batch)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        counts = (batch.labels[:, 1:] != IGNORED).sum(1).tolist()
        totals = torch.stack([row.sum() for row in losses.split(counts)]).tolist()  # one wait for a GPU, not one per row
        for i, total, tokens in zip(chunk, totals, counts, strict=True):
            found[i] = Likelihood(-total, tokens)
    ordered = iter(found)
    return [[next(ordered) for _ in given] for given in choices]


def most_likely(
    model, tokenizer, prompts: Sequence[str], choices: Sequence[Sequence[str]], *, batch_size: int = 64, label: str = "choices"
) -> list[int]:
    """Per prompt, the place (from 0) of the choice with the highest log-likelihood per token, its end-of-text token included.

    Per token, so that long choices do not lose for their length. Raises LabError as `likelihoods` does.
    """
    found = likelihoods(model, tokenizer, prompts, choices, batch_size=batch_size, label=label)
    return [max(range(len(given)), key=lambda i: given[i].total / given[i].tokens) for given in found]
