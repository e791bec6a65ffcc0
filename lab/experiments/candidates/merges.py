"""Methods of lab.merging as candidates: with their defaults, with the source's own settings, and on noise in place of the skills."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from lab.experiments.candidates.registry import CANDIDATES, Candidate, candidate, of_method
from lab.experiments.context import Entry, RunContext
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging import METHODS, learn, merge
from lab.merging.routing import Router

RECYCLING = "https://arxiv.org/abs/2602.12323"


def learned(
    context: RunContext, method: str, *, rates: Sequence[float] = (), kind: str = "",
    adapters: Callable[[], Sequence[LoraAdapter]] | None = None, parameters: Mapping = {},
) -> Entry:  # fmt: skip
    """A method of lab.merging that learns, on the skills' own data unless its recipe asks for examples of the target.

    rates: the preset's sweep, unless given. adapters: gives others than the skills. Steps and batch are the preset's for all
    methods, so that each sees as much data as CAT.
    """
    preset, recipe = context.preset, METHODS[method].recipe
    search = METHODS[method].kind == "search"
    rates = () if search else tuple(rates or preset.coefficient_rates)
    examples = context.target_examples(recipe.rows) if recipe.data == "target" else context.coefficient_examples

    def build(checkpoint: Path) -> tuple[LoraAdapter | Router, dict]:
        found = learn.learn(
            method, context.model, adapters() if adapters else context.skills, context.encoded(examples), context.tokenizer.pad_token_id,
            rates=rates, batch_size=preset.coefficient_batch, epochs=None if search else preset.coefficient_epochs, seed=context.seed,
            precision=preset.precision, parameters=parameters, checkpoint=checkpoint,
        )  # fmt: skip
        facts = {"loss": found.losses, "sweep": found.sweep, "learning_rate": found.learning_rate, "steps": found.steps}
        return found.adapter or context.router(method, parameters, found.router_state), facts

    key = context.coefficient_key(examples, rates=rates, **context.method_key(method, parameters))
    return context.made(kind or method, {**key, "noise": True} if adapters else key, build)


def static(context: RunContext, method: str, **parameters) -> Entry:
    """A static method of lab.merging with its default weights, or a router that learns nothing."""
    if "seed" in {p.name for p in METHODS[method].parameters}:
        parameters.setdefault("seed", context.seed)

    def build(_: Path) -> tuple[LoraAdapter | Router, dict]:
        if METHODS[method].kind == "router":
            return context.router(method, parameters), {}
        return merge(method, context.skills, **parameters), {}

    return context.made(method, context.method_key(method, parameters), build)


def by_hand(alphas: str) -> dict[str, Candidate]:
    """A candidate of this run alone: `cat_static` with rules of lab.merging.alphas over its weights; {} without any."""

    def make(context: RunContext) -> Entry:
        def build(_: Path) -> tuple[LoraAdapter, dict]:
            return merge("cat_static", context.skills, alphas=alphas), {}

        return context.made("by_hand", {**context.method_key("cat_static", {}), "alphas": alphas}, build)

    return {"by_hand": dataclasses.replace(of_method("cat_static"), name="by_hand", label="Alphas by hand", make=make)} if alphas else {}


def cat_released(context: RunContext) -> Entry:
    """The released code's start and rate: logits from N(0, 1), 1e-4. Batch size and epochs are the preset's, as for `cat`."""
    return learned(context, "cat_released", rates=(METHODS["cat_released"].recipe.learning_rate,), parameters={"seed": context.seed})


CANDIDATES["cat_released"] = dataclasses.replace(of_method("cat_released"), make=cat_released, cost="one rate")


@candidate("cat_layer", "CAT (layer)", "learned", cost="coefficients", sees=METHODS["cat"].sees, source=METHODS["cat"].paper)
def cat_layer(context: RunContext) -> Entry:
    """CAT with one coefficient per skill and layer, in place of one per module."""
    return learned(context, "cat", kind="cat_layer", parameters={"granularity": "layer"})


def random_adapters(adapters: Sequence[LoraAdapter], seed: int) -> list[LoraAdapter]:
    """LoRAs of Gaussian noise around 0 whose factors have the spread (std) of the given ones, module by module."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * like.std()

    return [
        dataclasses.replace(a, modules={m: LoraFactors(noise(f.A), noise(f.B), f.scaling) for m, f in a.modules.items()})
        for a in adapters
    ]


def random_loras(context: RunContext, method: str = "cat", kind: str = "random_loras") -> Entry:
    """Control: a method learned on noise in place of the skills (arXiv 2602.12323)."""
    return learned(context, method, adapters=lambda: random_adapters(context.skills, context.seed), kind=kind)


for _name, _label, _method in (
    ("random_loras", "Random LoRAs", "cat"),
    ("random_loras_softmax", "Random LoRAs (softmax)", "cat_softmax"),
    ("random_loras_per_rank", "Random LoRAs (per rank)", "rank_cat"),
):
    candidate(_name, _label, "control", cost="coefficients", sees=METHODS[_method].sees, source=RECYCLING)(
        partial(random_loras, method=_method, kind=_name)
    )
