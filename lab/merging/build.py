"""What learns, before and after it has learned: coefficients or routers on a stack, and the adapter that coefficients give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter
from lab.lora.compatibility import check_compatible
from lab.lora.stacked import Stack
from lab.merging.coefficients import Coefficients, TunedCoefficients, concatenate
from lab.merging.inputs import Prompt
from lab.merging.recipe import base_of, coefficient_record, inputs_of
from lab.merging.registry import complete_parameters, get_method


def build(name: str, stack: Stack, **parameters) -> nn.Module:
    """The learnable part of a method, put on the stack: a Coefficients module, or a router.

    Train its parameters as METHODS[name].recipe says (or otherwise); then `freeze`, unless it is a router. A
    method whose coefficients are finer than skills (`rank_cat`) stacks the skills anew, in its parts. Raises
    LabError for a static method, a search or a closed form.
    """
    method = get_method(name)
    if method.kind == "search":
        raise LabError(f"{name} has no parameters to train; use lab.merging.search or lab.merging.learn.learn.")
    if method.kind == "solve":
        raise LabError(f"{name} has no parameters to train; use lab.merging.solve or lab.merging.learn.learn.")
    if method.kind not in ("coefficients", "router"):
        raise LabError(f"{name} has nothing to learn; merge the adapters by it instead.")
    complete = complete_parameters(method, parameters)
    device = next(iter(stack.layers.values())).weight.device
    if method.kind == "router":
        return method.function(stack, **complete).to(device)
    whole = getattr(stack, "whole", stack.adapters)  # an earlier build may have stacked parts of them
    coefficients = method.function(whole, **complete).to(device)
    coefficients.recipe = {"method": name, "parameters": complete}
    if coefficients.skills != stack.skills:
        stack.detach()
        stack.__init__(stack.model, coefficients.adapters)
        stack.whole = whole
    if stack.adapters != whole:
        coefficients.recipe["inputs"] = inputs_of(whole)
    stack.set_coefficients(coefficients)
    if isinstance(coefficients, TunedCoefficients):
        coefficients.put_on(stack)
    return coefficients


def search(
    name: str,
    adapters: Sequence[LoraAdapter],
    loss: Callable[[LoraAdapter], float | None],
    steps: int | None = None,
    **parameters,
) -> LoraAdapter:
    """The adapter that a method without gradients (`lorahub`) finds by trying `steps` of them.

    loss: of an adapter, in nats per token; None ends the search with the best so far. steps: default what
    the method's source does. Raises LabError for another method, or adapters that do not fit together.
    """
    method = get_method(name)
    if method.kind != "search":
        raise LabError(f"{name} does not search; use lab.merging.merge or lab.merging.learn.learn.")
    complete = complete_parameters(method, parameters)
    check_compatible(adapters)
    trimmed = [_trimmed(adapter) for adapter in adapters]
    found = method.function(trimmed, loss, method.recipe.steps if steps is None else steps, **complete)
    recipe = {"method": name, "parameters": complete, "inputs": inputs_of(adapters), **found.recipe}
    return LoraAdapter(found.name, base_of(adapters), found.modules, recipe)


def _trimmed(adapter: LoraAdapter) -> LoraAdapter:
    """Without padding, which would make its ranks unequal to those of others."""
    modules = {module: factors.trimmed() for module, factors in adapter.modules.items()}
    return replace(adapter, modules={module: f if f.rank else adapter.modules[module] for module, f in modules.items()})


def solve(
    name: str, adapters: Sequence[LoraAdapter], model: nn.Module, prompts: Mapping[str, Sequence[Prompt]], **parameters
) -> LoraAdapter:
    """The adapter that a method in closed form (`regmean`) makes of what the model's modules read on the skills' prompts.

    model: the base, nothing attached. prompts: token ids by skill. Raises LabError for another method, adapters that do not fit
    together, or a skill without prompts.
    """
    method = get_method(name)
    if method.kind != "solve":
        raise LabError(f"{name} is no closed form; use lab.merging.merge or lab.merging.learn.learn.")
    complete = complete_parameters(method, parameters)
    check_compatible(adapters, model)
    adapters = sorted(adapters, key=lambda adapter: adapter.name)
    for adapter in adapters:
        if not prompts.get(adapter.name):
            raise LabError(f"{name} needs prompts of every skill, and {adapter.name} has none.")
    modules = method.function(adapters, model, prompts, **complete)
    recipe = {"method": name, "parameters": complete, "inputs": inputs_of(adapters)}
    return LoraAdapter(f"{name}({', '.join(a.name for a in adapters)})", base_of(adapters), modules, recipe)


def freeze(stack: Stack, coefficients: Coefficients, *, name: str | None = None) -> LoraAdapter:
    """The stack with its present coefficients as an ordinary adapter of rank Σr, all scales folded into B.

    Raises LabError when the coefficients are of other skills or modules, or not finite.
    """
    if coefficients.skills != stack.skills or coefficients.module_names != stack.modules:
        raise LabError(
            "The coefficients belong to other skills or modules than the stack's; build them on this stack."
        )
    values = coefficients().detach().cpu()
    if not values.isfinite().all():
        raise LabError(
            "The learned coefficients contain NaN or infinite values; lower the learning rate and learn "
            "again."
        )
    recipe = dict(coefficients.recipe)
    if "inputs" not in recipe:
        recipe["inputs"] = inputs_of(stack.adapters)
    parts = stack.adapters
    if isinstance(coefficients, TunedCoefficients):
        parts = coefficients.tuned_adapters()
        recipe["tuned"] = coefficients.tuned
        recipe["interpolation"] = coefficient_record(coefficients)  # of other factors than the inputs': no alphas
    else:
        recipe |= coefficient_record(coefficients)
    name = name or f"{recipe.get('method', 'cat')}({', '.join(i['name'] for i in recipe['inputs'])})"
    merged = concatenate(parts, values, name=name, recipe=recipe)
    return LoraAdapter(name, base_of(stack.adapters), merged.modules, recipe)
