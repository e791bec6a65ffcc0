"""Static merges: a method applied to adapters, with weights given, gives an ordinary adapter."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.compatibility import check_compatible
from lab.merging.alphas import Grid, alphas_record, parse_alphas
from lab.merging.coefficients import concatenate
from lab.merging.recipe import base_of, coefficient_record, inputs_of
from lab.merging.registry import Method, complete_parameters, get_method, seeded_generator
from lab.merging.truncation import factor_delta, is_exact, truncate

ALPHAS = "cat_static"  # the method whose coefficients alphas are


def merge(
    name: str,
    adapters: Sequence[LoraAdapter],
    weights: Sequence[float] | None = None,
    *,
    alphas: str | None = None,
    rank: int | None = None,
    on_module: Callable[[str], None] | None = None,
    **parameters,
) -> LoraAdapter:
    """Merge adapters by a static method into one adapter.

    weights: one per adapter, in their order; default the method's (1/k or 1). alphas: rules as `lab.merging.alphas` reads
    them, `layers 0-5 q,v: maths 0.3`, applied to the weights; for `cat_static`. parameters: see `schema(name)`.
    rank: truncate every module to this rank (SVD); default what the method gives, at most Σr (`svd`: max
    r). on_module: told each module's name when it is merged. The result's recipe holds method, parameters,
    weights (or alphas and the coefficients that they are), inputs, the rank asked for and, where something was
    cut, `discarded_energy`: the share of Σ‖ΔW‖² that is lost, in all and per module; and `truncation`: how many
    modules were cut exactly, and how many by a randomised range finder. Dense updates are computed on the GPU
    where there is one; the result is on the CPU.

    Raises LabError for a learned method or router, adapters that do not fit together, bad weights, alphas,
    parameters or rank.
    """
    full = merge_full_rank(name, adapters, weights, alphas=alphas, **parameters)
    default = {"sum": sum, "max": max}[get_method(name).default_rank]
    ceiling = max(_rank_sum(adapters, module) for module in full.modules)
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= ceiling):
        raise LabError(
            f"rank is {rank!r}; give a whole number from 1 to {ceiling}, the sum of the adapters' ranks."
        )
    modules, discarded, energy, randomised = {}, {}, {}, 0
    for module, update in full.modules.items():
        present = [adapter.modules[module] for adapter in adapters if module in adapter.modules]
        ranks = [factors.rank for factors in present]
        target = min(rank, sum(ranks)) if rank else max(1, default([factors.trimmed().rank for factors in present]))
        result = update.compute()
        if isinstance(result, Tensor):
            modules[module], discarded[module], energy[module] = factor_delta(result, target)
            randomised += not is_exact(result.shape)
        elif result.rank > target:
            modules[module], discarded[module], energy[module] = truncate(result, target)
        else:
            modules[module], energy[module] = result, _energy(result)
        if on_module:
            on_module(module)
    recipe = dict(full.recipe) | ({"rank": rank} if rank else {})
    if discarded:
        recipe["discarded_energy"] = {
            "total": _share(sum(discarded.values()), sum(energy.values())),
            "modules": {module: _share(lost, energy[module]) for module, lost in discarded.items()},
        }
        recipe["truncation"] = {"exact": len(discarded) - randomised, "randomised": randomised}
    return LoraAdapter(full.name, full.base, modules, recipe)


@dataclass(frozen=True)
class FullRankUpdate:
    """One module's merged update, untruncated, computed when asked for. shape: (out, in).

    compute: gives the dense update (out, in), or factors where the method gives those.
    """

    shape: tuple[int, int]
    compute: Callable[[], Tensor | LoraFactors]

    def delta_weight(self) -> Tensor:
        """The update, (out, in)."""
        result = self.compute()
        return result.cpu() if isinstance(result, Tensor) else result.delta_weight()


@dataclass(frozen=True, eq=False)
class FullRankMerge:
    """A merge without truncation. Like an adapter it can be folded into a base model (`lab.lora.stacked.fold`).

    modules: updates by module, each computed when asked for, so that one dense matrix is held at a time.
    """

    name: str
    base: str
    modules: Mapping[str, FullRankUpdate]
    recipe: Mapping[str, object]


def merge_full_rank(
    name: str, adapters: Sequence[LoraAdapter], weights: Sequence[float] | None = None, *, alphas: str | None = None, **parameters
) -> FullRankMerge:
    """As `merge`, with every module's update as the method gives it: nothing is truncated or lost.

    Raises LabError as `merge` does.
    """
    method = get_method(name)
    if method.kind == "router":
        raise LabError(f"{name} routes per token and has no merged weights; attach it to a model instead.")
    if method.recipe is not None:
        raise LabError(
            f"{name} learns its coefficients from data; learn it on a model instead of merging statically."
        )
    if alphas is not None and name != ALPHAS:
        raise LabError(f"{name} takes no alphas; they are the coefficients of {ALPHAS}: choose that, or give weights.")
    complete = complete_parameters(method, parameters)
    check_compatible(adapters)
    values = _check_weights(method, weights, len(adapters))
    order = sorted(range(len(adapters)), key=lambda i: adapters[i].name)
    adapters, values = [adapters[i] for i in order], values[order]
    recipe = {"method": name, "parameters": complete, "inputs": inputs_of(adapters)}
    result_name = f"{name}({', '.join(adapter.name for adapter in adapters)})"
    if method.kind == "coefficients":
        coefficients = method.function(adapters, **complete)
        recipe |= coefficient_record(coefficients)
        values = coefficients().detach()
        compute = _concatenated(adapters, values)
    elif alphas is not None:
        grid = Grid.of(adapters)
        found = parse_alphas(alphas, grid, grid.flat(values[:, None].numpy()))
        recipe |= alphas_record(found, grid)
        compute = _concatenated(adapters, torch.tensor(found, dtype=torch.float32))
    else:
        recipe["weights"] = dict(zip((a.name for a in adapters), values.tolist(), strict=True))
        compute = {
            module: partial(_merge_module, method, adapters, values, module, complete)
            for module in module_names(adapters)
        }
    shapes = {module: f.shape for adapter in adapters for module, f in adapter.modules.items()}
    updates = {module: FullRankUpdate(shapes[module], call) for module, call in compute.items()}
    return FullRankMerge(result_name, base_of(adapters), updates, recipe)


def _concatenated(adapters: Sequence[LoraAdapter], values: Tensor) -> dict[str, Callable[[], LoraFactors]]:
    merged = concatenate(adapters, values, name="", recipe={}).modules
    return {module: partial(merged.__getitem__, module) for module in merged}


def _merge_module(
    method: Method, adapters: Sequence[LoraAdapter], weights: Tensor, module: str, parameters: Mapping
) -> Tensor | LoraFactors:
    parameters = dict(parameters)
    if method.draws:
        parameters["generator"] = seeded_generator(parameters.pop("seed"), module)
    out_features, in_features = next(a.modules[module] for a in adapters if module in a.modules).shape
    absent = LoraFactors(torch.zeros(0, in_features), torch.zeros(out_features, 0))
    # Padding would count in densities and draws: no method sees it.
    factors = [adapter.modules.get(module, absent).trimmed() for adapter in adapters]
    nothing = LoraFactors(torch.zeros(1, in_features), torch.zeros(out_features, 1))  # a module of rank 0 is none
    if not any(f.rank for f in factors):
        return nothing
    if method.kind == "delta":
        deltas = _deltas(factors)
        return method.function(deltas, weights.to(deltas.device), **parameters)
    A, B = [f.A for f in factors], [f.B for f in factors]
    scalings = [f.scaling for f in factors]
    if method.kind == "raw factors":
        merged = LoraFactors(*method.function(A, B, torch.tensor(scalings), weights, **parameters))
        return merged if merged.rank else nothing
    roots = [math.sqrt(abs(s)) for s in scalings]
    A = [root * a for root, a in zip(roots, A, strict=True)]
    B = [math.copysign(root, s) * b for root, s, b in zip(roots, scalings, B, strict=True)]
    merged = LoraFactors(*method.function(A, B, weights, **parameters))
    return merged if merged.rank else nothing


def _deltas(factors: Sequence[LoraFactors]) -> Tensor:
    """The updates (skills, out, in), on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    deltas = torch.empty(len(factors), *factors[0].shape, device=device)
    for delta, f in zip(deltas, factors, strict=True):
        torch.mm(f.B.to(device), f.A.to(device), out=delta).mul_(f.scaling)
    return deltas


def _check_weights(method: Method, weights: Sequence[float] | None, k: int) -> Tensor:
    if weights is None:
        return torch.full((k,), 1 / k if method.default_weight == "mean" else 1.0)
    if method.kind == "coefficients":
        raise LabError(f"{method.name} draws its own coefficients; leave the weights out.")
    values = torch.as_tensor(weights, dtype=torch.float32)
    if values.shape != (k,):
        raise LabError(f"There are {values.numel()} weights for {k} adapters; give one weight per adapter.")
    if not values.isfinite().all():
        raise LabError(f"The weights {values.tolist()} contain NaN or infinite values; give finite numbers.")
    return values


def _energy(factors: LoraFactors) -> float:
    """‖ΔW‖² from the Gram matrices of the factors."""
    gram_A, gram_B = factors.A @ factors.A.T, factors.B.T @ factors.B
    return factors.scaling**2 * (gram_A * gram_B).sum().item()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rank_sum(adapters: Sequence[LoraAdapter], module: str) -> int:
    return sum(adapter.modules[module].rank for adapter in adapters if module in adapter.modules)
