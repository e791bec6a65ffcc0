"""Answers as they grow: one batch, every row with its own prompt and coefficients, a few tokens at a turn."""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from lab.app.engine import Engine, Lane
from lab.errors import LabError
from lab.evaluation.generate import before_end, cut, end_tokens, room
from lab.training.loop import encode_prompt

TOKENS_A_TURN = 6
LONGEST_PROMPT = 200_000  # characters; tokenising more would keep the others waiting


@dataclass(frozen=True)
class Decoding:
    """temperature 0 is greedy. Rows draw from generators of their own, seeded by `seed` and the row. stop: strings."""

    max_new_tokens: int = 120
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ("\nQuestion:",)

    def __post_init__(self):
        whole = isinstance(self.max_new_tokens, int) and not isinstance(self.max_new_tokens, bool)
        if not whole or not 1 <= self.max_new_tokens <= 4096:
            raise LabError(f"max_new_tokens is {self.max_new_tokens!r}; give a whole number from 1 to 4096.")
        if not 0 <= self.temperature <= 10:
            raise LabError(f"temperature is {self.temperature!r}; give a number from 0 (greedy) to 10.")
        if not 0 < self.top_p <= 1:
            raise LabError(f"top_p is {self.top_p!r}; give a number above 0, at most 1.")


@dataclass(frozen=True)
class Answer:
    """A row's text so far. tokens: so far. seconds: of the model's time for its batch. done: nothing more will come."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class _Row:
    index: int
    ids: list[int] = field(default_factory=list)
    done: bool = False


@torch.no_grad()
def stream(
    engine: Engine,
    lane: Lane,
    prompts: Sequence[str],
    coefficients: Tensor,
    decoding: Decoding = Decoding(),
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[Answer]]:
    """Yield all rows' answers after every turn, until each has ended or `stopped()`.

    coefficients: (rows, adapters, modules). Greedy answers are those of lab.evaluation.generate. Raises LabError for an
    empty prompt or one that does not fit, and for a model that keeps no cache of keys and values.
    """
    tokenizer, model = engine.tokenizer, lane.model
    encoded = _encode(tokenizer, model, prompts, decoding.max_new_tokens)
    device = model.device
    width = max(map(len, encoded))
    ids = torch.full((len(encoded), width), tokenizer.pad_token_id)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    for row, tokens in enumerate(encoded):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    takes = inspect.signature(model.forward).parameters
    if "past_key_values" not in takes:
        raise LabError(
            f"A {type(model).__name__} keeps what it has read in its own way, so its answers are not streamed here; ask it by "
            "python -m lab evaluate."
        )
    fixed = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    ends = end_tokens(model, tokenizer)
    draws = [torch.Generator().manual_seed(decoding.seed * 100_003 + row) for row in range(len(encoded))]
    cache = DynamicCache(config=model.config)
    answers = [Answer() for _ in encoded]
    live = [_Row(index) for index in range(len(encoded))]
    seconds = 0.0
    while not all(row.done for row in live) and not stopped():
        with engine.turns:
            began = time.perf_counter()
            lane.use(coefficients[[row.index for row in live]])
            for _ in range(TOKENS_A_TURN):
                if "position_ids" in takes:
                    fixed["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **fixed)
                chosen = _choose(out.logits[:, -1].float(), decoding, [draws[row.index] for row in live])
                for row, token in zip(live, chosen.tolist(), strict=True):
                    row.ids.append(token)
                ids = chosen[:, None].to(device)
                mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
                if all(row.done or row.ids[-1] in ends or len(row.ids) >= decoding.max_new_tokens for row in live):
                    break
            seconds += time.perf_counter() - began
            for row in live:
                if not row.done:
                    answers[row.index], row.done = _read(tokenizer, row, ends, decoding, seconds)
            staying = [place for place, row in enumerate(live) if not row.done]
            # Rows that have ended need no more computing; only a router may keep a cache of its own with all of them.
            if lane.router is None and 0 < len(staying) < len(live):
                keep = torch.tensor(staying, device=device)
                cache.batch_select_indices(keep)
                ids, mask = ids[keep], mask[keep]
                live = [live[place] for place in staying]
        yield list(answers)
    if not all(answer.done for answer in answers):
        yield [replace(answer, done=True) for answer in answers]


def _read(tokenizer, row: _Row, ends: list[int], decoding: Decoding, seconds: float) -> tuple[Answer, bool]:
    ids = before_end(row.ids[: decoding.max_new_tokens], ends)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = cut(whole, decoding.stop)
    done = len(ids) < len(row.ids) or text != whole or len(row.ids) >= decoding.max_new_tokens
    if not done:
        text = text.rstrip("�")  # half of a character of several tokens
    return Answer(text, len(ids), seconds, done), done


def _choose(logits: Tensor, decoding: Decoding, draws: Sequence[torch.Generator]) -> Tensor:
    """(rows, vocabulary) -> (rows,) token ids, on the CPU."""
    if decoding.temperature == 0:
        return logits.argmax(-1).cpu()
    weights = (logits.cpu() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ordered, order = weights.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= decoding.top_p  # the most likely one always stays
        weights = weights.masked_fill(beyond.gather(-1, order.argsort(-1)), 0)
    return torch.stack([torch.multinomial(w, 1, generator=draw)[0] for w, draw in zip(weights, draws, strict=True)])


def _encode(tokenizer, model, prompts: Sequence[str], new_tokens: int) -> list[list[int]]:
    for prompt in prompts:
        if not prompt.strip():
            raise LabError("The prompt is empty; write something.")
        if len(prompt) > LONGEST_PROMPT:
            raise LabError(f"The prompt has {len(prompt):,} characters; give at most {LONGEST_PROMPT:,}.")
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest, limit = max(map(len, encoded)), room(model)
    if limit is not None and longest + new_tokens > limit:
        raise LabError(
            f"A prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit}; shorten one of them."
        )
    return encoded
