"""How a method of lab.merging is made in a run context: learned on its own data, or merged as it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.experiments.context import Entry, RunContext
from lab.lora.adapter import LoraAdapter
from lab.merging import METHODS, learn, merge
from lab.merging.routing import Router


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
    rates = () if recipe.learning_rate is None else tuple(rates or preset.coefficient_rates)
    examples = context.target_examples(recipe.rows) if recipe.data == "target" else context.coefficient_examples

    def build(checkpoint: Path) -> tuple[LoraAdapter | Router, dict]:
        found = learn.learn(
            method, context.model, adapters() if adapters else context.skills, context.encoded(examples), context.tokenizer.pad_token_id,
            rates=rates, batch_size=preset.coefficient_batch, epochs=None if search else preset.coefficient_epochs, seed=context.seed,
            precision=preset.precision, parameters=parameters, checkpoint=checkpoint,
        )  # fmt: skip
        facts = {"loss": found.losses, "sweep": found.sweep, "learning_rate": found.learning_rate, "steps": found.steps}
        facts |= {} if found.kept_step is None else {"kept_step": found.kept_step}
        return found.adapter or context.router(method, parameters, found.router_state), facts

    steps = {"steps": recipe.steps} if search else {}
    key = context.coefficient_key(examples, rates=rates, **steps, **context.method_key(method, parameters))
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
