"""Prompt router: one decision per prompt for skills over a frozen base, the base itself among the answers (Phi-4-multimodal's
mixture of LoRAs, arXiv 2503.01743, where the kind of input decides).
"""

import random
import weakref
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.stacked import PerPrompt, Stack
from lab.merging.inputs import Prompt, equal_lengths
from lab.merging.registry import Range, Recipe, merge_method
from lab.merging.routing import Router

SAME = 1e-6  # of a squared size: less is rounding
FOLDS = 5  # of a skill's prompts, each held out once: they say how far a prompt of the skill may lie from the others
FLOOR = 0.1  # of the median feature's variance (then of every direction's): what never varied in few prompts is no proof
DIRECTIONS = 32  # in which a skill's prompts vary together, at most

_SEEN_BY_THE_BASE = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


@merge_method(
    label="Prompt router",
    paper="https://arxiv.org/abs/2503.01743",
    formula="c per prompt: the nearest skills by the base's mean hidden state against each skill's own prompts, or 0 for all",
    recipe=Recipe(learning_rate=None, batch_size=16, data="prompts"),
)
class prompt_router(Router):
    """Reads the prompt once with the base alone and gives it to one skill (or a mix of the nearest), for all tokens and modules.

    Each skill knows its own prompts only: their mean hidden state (over a prompt's tokens, in one layer), how it varies (a
    Gaussian: each feature's variance, and the main directions of the standardised features), and how far held-out ones lie. A
    prompt that lies farther than `margin` times that from every skill is answered by the base, with the very same bits. A
    skill that is added later changes no number of the others, and a prompt that it does not take is answered as before, bit
    for bit: every skill is computed by itself, on all rows, and added where it is wanted.

    The prompt is what the first forward pass of a cache reads; without a cache every pass is a prompt of its own, so that
    scoring a given answer reads it too. Before it has learned, everything goes to the base.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        top_k: Annotated[int, Range(1), "skills per prompt, at most; 1 is a hard choice"] = 1,
        layer: Annotated[
            int | None, Range(0), "whose hidden states are read (0: the embeddings); empty: the middle one"
        ] = None,
        margin: Annotated[float, Range(0, 1000), "how much farther than a skill's own held-out prompts a prompt may lie"] = 1.25,
        temperature: Annotated[float, Range(1e-6), "of the softmax over distances, when top_k is more than 1"] = 0.1,
    ):
        super().__init__(stack, top_k=top_k, layer=layer, margin=margin, temperature=temperature)
        config, k = stack.model.config.get_text_config(), len(self.skills)
        layers, width = config.num_hidden_layers, config.hidden_size
        if layer is not None and layer > layers:
            raise LabError(f"prompt_router: layer is {layer}, and the base has {layers}; give a number up to that.")
        self.top_k, self.margin, self.temperature = top_k, margin, temperature
        self.layer = layers // 2 if layer is None else layer
        self.register_buffer("means", torch.zeros(k, width))  # skills in alphabetical order, as all of these
        self.register_buffer("scales", torch.ones(k, width))  # standard deviations
        self.register_buffer("directions", torch.zeros(k, min(width, DIRECTIONS), width))
        self.register_buffer("gains", torch.zeros(k, min(width, DIRECTIONS)))  # what a deviation along each counts less
        self.register_buffer("limits", torch.zeros(k))  # largest distance that is still of the skill; 0: it has not learned
        self._decision: PerPrompt | None = None
        self._decisions = weakref.WeakKeyDictionary()  # by the model's cache
        self.put_on(stack)
        stack.before_forward("", self._decide)

    # Learning

    def learn_from(self, prompts: Mapping[str, Sequence[Prompt]], seed: int = 0) -> None:
        """Learn the skills that are named, each from its own prompts (token ids) and nothing else."""
        for skill, own in prompts.items():
            row = self.sorted_skills.index(skill)
            found = self.embed(own)
            order = random.Random(f"{seed} {skill}").sample(range(len(own)), len(own))
            farthest = torch.zeros((), device=found.device)
            for fold in range(FOLDS):
                held = order[fold::FOLDS]
                rest = [place for number, place in enumerate(order) if number % FOLDS != fold]
                if held and rest:
                    self._set(row, _fit(found[rest], self.gains.shape[1]))
                    farthest = torch.maximum(farthest, self.distances(found[held])[:, row].max())
            self._set(row, _fit(found, self.gains.shape[1]))
            self.limits[row] = self.margin * farthest.clamp(min=SAME)

    def _set(self, row: int, fitted: Sequence[Tensor]) -> None:
        for buffer, value in zip((self.means, self.scales, self.directions, self.gains), fitted, strict=True):
            buffer[row] = value

    def take(self, other: "prompt_router") -> None:
        """What another router has learned of skills of the same names: so one can be added without the others' prompts."""
        for row, skill in enumerate(self.sorted_skills):
            if skill in other.sorted_skills:
                place = other.sorted_skills.index(skill)
                for name in ("means", "scales", "directions", "gains", "limits"):
                    self.get_buffer(name)[row] = other.get_buffer(name)[place].to(self.get_buffer(name))

    # Deciding

    def embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """(prompts, width), fp32."""
        found = torch.empty(len(prompts), self.means.shape[1], device=self.means.device)
        for places, ids in equal_lengths(prompts, self.means.device):
            found[places] = self._mean_state(self.stack.model, {"input_ids": ids})
        return found

    def distances(self, embedded: Tensor) -> Tensor:
        """(prompts, skills): squared deviation from each skill's mean in its own covariance (Mahalanobis), per feature.

        One skill after the other, so that the others cannot move a bit.
        """
        columns = []
        for mean, scale, directions, gains in zip(self.means, self.scales, self.directions, self.gains, strict=True):
            z = (embedded - mean) / scale
            columns.append((z.square().sum(-1) / FLOOR - ((z @ directions.T).square() * gains).sum(-1)) / len(mean))
        return torch.stack(columns, dim=1)

    def shares(self, embedded: Tensor) -> Tensor:
        """(prompts, skills), alphabetical: they sum to 1, or are all 0 for the base."""
        relative = self.distances(embedded) / self.limits
        relative = relative.masked_fill(~(relative <= 1), torch.inf)
        best = relative.topk(min(self.top_k, relative.shape[1]), dim=-1, largest=False)
        share = (-best.values / self.temperature).softmax(-1).nan_to_num(0.0)  # of infinities only: the base
        return torch.zeros_like(relative).scatter(-1, best.indices, share)

    def chosen(self, prompts: Sequence[Prompt]) -> list[str]:
        """The skill of the largest share by prompt, "" for the base."""
        shares = self.shares(self.embed(prompts))
        return [self.sorted_skills[int(row.argmax())] if row.any() else "" for row in shares]

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        shares = self._decision.shares[:, self.order.argsort()] * self.present[index]
        return shares[:, None].expand(x.shape[0], x.shape[1], -1)

    def _route(self, index: int, x: Tensor) -> PerPrompt:
        if self._decision is None:
            raise LabError("The prompt router has not decided; call the whole model, not a part of it.")
        if self._support is not None:
            self._support.add(self.module_names[index], self.coefficients(index, x))
        return self._decision

    def _decide(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        from transformers import DynamicCache

        if args:
            args, kwargs = args[1:], {"input_ids": args[0], **kwargs}
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(model.config, "use_cache", False)
        if use_cache and kwargs.get("past_key_values") is None:
            kwargs = {**kwargs, "past_key_values": DynamicCache(config=model.config)}
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            if cache not in self._decisions:
                raise LabError("The prompt router has not seen this text's beginning; start with an empty cache.")
            self._decision = self._decisions[cache]
            return args, kwargs
        seen = {name: kwargs[name] for name in _SEEN_BY_THE_BASE if kwargs.get(name) is not None}
        shares = self.shares(self._mean_state(model, seen))[:, self.order]
        self._decision = PerPrompt(shares, tuple(shares.any(0).nonzero()[:, 0].tolist()))
        if cache is not None:
            self._decisions[cache] = self._decision
        return args, kwargs

    @torch.no_grad()
    def _mean_state(self, model: nn.Module, seen: Mapping[str, Tensor]) -> Tensor:
        """(rows, width), fp32: the mean of the base's hidden states over the tokens that are no padding."""
        with self.stack.without_skills():
            hidden = model.base_model(**seen, use_cache=False, output_hidden_states=True).hidden_states[self.layer].float()
        mask = seen.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return hidden.mean(1)
        mask = mask[:, -hidden.shape[1] :, None].to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def _fit(states: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and scale (width,), directions (most, width) and gains (most,) of a Gaussian on (prompts, width)."""
    mean, variance = states.mean(0), states.var(dim=0, unbiased=False)
    least = SAME * mean.square().mean() + torch.finfo(mean.dtype).tiny
    scale = (variance + FLOOR * variance.median()).clamp(min=least).sqrt()
    _, S, Qh = torch.linalg.svd((states - mean) / scale, full_matrices=False)
    count = min(len(S), most)
    directions, gains = states.new_zeros(most, len(mean)), states.new_zeros(most)
    directions[:count] = Qh[:count]
    gains[:count] = 1 / FLOOR - 1 / (S[:count].square() / len(states) + FLOOR)
    return mean, scale, directions, gains
