"""X-LoRA: a classifier on the base model's last hidden state scales the skills per token (arXiv 2402.07148; PEFT)."""

import inspect
import weakref
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.stacked import Stack
from lab.merging.registry import Range, Recipe, merge_method, seeded_generator
from lab.merging.routing import Router, start_rows, token_scores

if TYPE_CHECKING:
    from transformers import DynamicCache

_SEEN_BY_THE_BASE = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


@merge_method(
    label="X-LoRA",
    paper="https://arxiv.org/abs/2402.07148",
    formula="c(x) = softmax(classifier(last hidden state of the base) / temperature) per token",
    # The authors' training example (EricLBuehler/xlora, examples/train.ipynb).
    recipe=Recipe(learning_rate=1e-4, batch_size=1, epochs=5),
)
class xlora(Router):
    """Before every forward pass the base alone runs too, and a classifier on its last hidden state gives the shares.

    PEFT recomputes both passes over the whole text for every new token (it forbids the cache). Here the base's pass
    keeps a cache of its own beside the model's: a token's hidden state depends on earlier tokens only, so the numbers
    are the same, at the cost of a second cache. With `top_k`, or where a skill lacks a module, the shares of the others
    sum to 1 (PEFT drops the rest without renormalising).
    """

    def __init__(
        self,
        stack: Stack,
        *,
        depth: Annotated[int, Range(1), "linear layers of the classifier"] = 1,
        size: Annotated[int, Range(1), "width of its hidden layers, if depth > 1"] = 2048,
        dropout: Annotated[float, Range(0, 1), "after its hidden layers, in training"] = 0.2,
        layerwise: Annotated[bool, "other shares in every module, instead of the same in all"] = False,
        temperature: Annotated[float, Range(1e-6), "of the softmax"] = 1.0,
        top_k: Annotated[int | None, Range(1), "softmax over the best skills only; None takes all"] = None,
        seed: Annotated[int | None, Range(0), "of nn.Linear's start; None starts with equal shares"] = 0,
    ):
        super().__init__(
            stack, depth=depth, size=size, dropout=dropout, layerwise=layerwise, temperature=temperature,
            top_k=top_k, seed=seed,
        )  # fmt: skip
        self.temperature, self.top_k, self.layerwise = temperature, top_k, layerwise
        if "past_key_values" not in inspect.signature(stack.model.forward).parameters:
            raise LabError(
                f"X-LoRA reads the base's states through its cache of keys and values, which a {type(stack.model).__name__} does not have; "
                "choose another method."
            )
        width, blocks = stack.model.config.get_text_config().hidden_size, []
        for number in range(depth - 1):
            blocks += [_linear(width, size, seed or 0, number), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.hidden = nn.Sequential(*blocks)
        units = stack.modules if layerwise else ("all modules",)
        weights = [start_rows(seed, self.sorted_skills, width, "weight", unit) for unit in units]
        biases = [start_rows(seed, self.sorted_skills, width, "bias", unit)[:, 0] for unit in units]
        self.weight = nn.Parameter(torch.stack(weights))  # (units, skills, width)
        self.bias = nn.Parameter(torch.stack(biases))  # (units, skills)
        self._scores: Tensor | None = None  # (rows, tokens, units, skills), of the forward pass under way
        self._base_caches = weakref.WeakKeyDictionary()  # by the model's cache
        self.put_on(stack)
        stack.before_forward("", self._scaling_pass)

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        if self._scores is None:
            raise LabError("X-LoRA's scaling pass has not run; call the whole model, not a part of it.")
        # An output layer may be asked for the last tokens only.
        scores = self._scores[:, -x.shape[1] :, index if self.layerwise else 0]
        return self.softmax(index, scores / self.temperature, self.top_k)

    def _scaling_pass(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        from transformers import DynamicCache

        if args:
            args, kwargs = args[1:], {"input_ids": args[0], **kwargs}
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(model.config, "use_cache", False)
        if use_cache and kwargs.get("past_key_values") is None:
            kwargs = {**kwargs, "past_key_values": DynamicCache(config=model.config)}
        seen = {name: kwargs[name] for name in _SEEN_BY_THE_BASE if kwargs.get(name) is not None}
        cache = self._base_cache(model, kwargs.get("past_key_values"))
        with self.stack.without_skills(), torch.no_grad():
            hidden = model.base_model(**seen, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = self.hidden(hidden.float())
        scores = token_scores(hidden, self.weight.flatten(0, 1), self.bias.flatten())
        self._scores = scores.unflatten(-1, self.bias.shape)
        return args, kwargs

    def _base_cache(self, model: nn.Module, cache: object) -> "DynamicCache | None":
        from transformers import DynamicCache

        if cache is None:
            return None
        if cache not in self._base_caches:
            self._base_caches[cache] = DynamicCache(config=model.config)
            cache.reorder_cache = _refuse_beams
        own = self._base_caches[cache]
        if own.get_seq_length() != cache.get_seq_length():
            raise LabError(
                f"X-LoRA's own cache holds {own.get_seq_length()} tokens and the model's {cache.get_seq_length()}; "
                f"start with an empty cache, so that X-LoRA sees every token."
            )
        return own


def _linear(inputs: int, outputs: int, seed: int, number: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    generator = seeded_generator(seed, "hidden", str(number))
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def _refuse_beams(*_) -> None:
    raise LabError("X-LoRA cannot follow beam search in its own cache; generate with one beam.")
