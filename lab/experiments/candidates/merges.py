"""Methods of lab.merging as candidates: with their defaults, with the source's own settings, and on noise in place of the skills."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lab.experiments.candidates.making import learned
from lab.experiments.candidates.registry import CANDIDATES, Candidate, candidate, of_method
from lab.experiments.context import Entry, RunContext
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging import METHODS, merge

RECYCLING = "https://arxiv.org/abs/2602.12323"


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
