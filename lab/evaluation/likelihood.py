"""Which of several continuations a model finds most likely, for multiple choice."""

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from lab.errors import LabError
from lab.training.loop import IGNORED, collate, encode


@torch.inference_mode()
def most_likely(
    model, tokenizer, prompts: Sequence[str], choices: Sequence[Sequence[str]], *, batch_size: int = 64, label: str = "choices"
) -> list[int]:
    """Per prompt, the place (from 0) of the choice with the highest log-likelihood per token, its end-of-text token included.

    Per token, so that long choices do not lose for their length. Raises LabError for a prompt without choices, or one that is
    too long for the model.
    """
    if not all(choices):
        raise LabError("A prompt has no choices; give at least one for each.")
    rows = [encode(tokenizer, prompt, choice, 10**9) for prompt, given in zip(prompts, choices, strict=True) for choice in given]
    longest = getattr(model.config, "max_position_embeddings", None)
    tokens = max((len(row.ids) for row in rows), default=0)
    if longest is not None and tokens > longest:
        raise LabError(f"A prompt and its choice have {tokens} tokens, the model reads {longest}; shorten them.")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    means = [0.0] * len(rows)
    for start in tqdm(range(0, len(order), batch_size), desc=label, mininterval=2.0, leave=False):
        chunk = order[start : start + batch_size]
        batch = collate([rows[i] for i in chunk], tokenizer.pad_token_id)
        ids, mask, labels = (t.to(model.device) for t in (batch.input_ids, batch.attention_mask, batch.labels[:, 1:]))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        for i, mean in zip(chunk, (losses.sum(1) / (labels != IGNORED).sum(1)).tolist(), strict=True):
            means[i] = mean
    found, at = [], 0
    for given in choices:
        found.append(min(range(len(given)), key=lambda i: means[at + i]))
        at += len(given)
    return found
