"""Merging LoRA adapters. METHODS holds every method; a new file in this package is found by itself.

`merge` applies a static method and returns an ordinary adapter. For a learned one, `build` puts its
coefficients on a stack, `lab.training.fit` learns them, and `freeze` turns the result into an ordinary
adapter; `search` does without gradients. `lab.learning.learn` does all of it.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import scipy.linalg
import torch
from torch import Tensor, nn

from lab.adapter import LoraAdapter, LoraFactors, check_compatible, module_names
from lab.errors import LabError
from lab.merging.coefficients import Coefficients, concatenate
from lab.merging.registry import (
    METHODS,
    Method,
    Parameter,
    Range,
    Recipe,
    complete_parameters,
    get_method,
    merge_method,
    schema,
    seeded_generator,
)
from lab.stacked import Stack

__all__ = [
    "METHODS",
    "Coefficients",
    "FullRankMerge",
    "FullRankUpdate",
    "Method",
    "Parameter",
    "Range",
    "Recipe",
    "build",
    "concatenate",
    "factor_delta",
    "freeze",
    "get_method",
    "merge",
    "merge_full_rank",
    "merge_method",
    "schema",
    "search",
    "truncate",
]


def merge(
    name: str,
    adapters: Sequence[LoraAdapter],
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    on_module: Callable[[str], None] | None = None,
    **parameters,
) -> LoraAdapter:
    """Merge adapters by a static method into one adapter.

    weights: one per adapter, in their order; default the method's (1/k or 1). parameters: see `schema(name)`.
    rank: truncate every module to this rank (SVD); default what the method gives, at most Σr (`svd`: max
    r). on_module: told each module's name when it is merged. The result's recipe holds method, parameters,
    weights, inputs and, where something was cut, `discarded_energy`: the share of Σ‖ΔW‖² that is lost, in all
    and per module.

    Raises LabError for a learned method or router, adapters that do not fit together, bad weights, parameters
    or rank.
    """
    full = merge_full_rank(name, adapters, weights, **parameters)
    default = {"sum": sum, "max": max}[get_method(name).default_rank]
    ceiling = max(_rank_sum(adapters, module) for module in full.modules)
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= ceiling):
        raise LabError(
            f"rank is {rank!r}; give a whole number from 1 to {ceiling}, the sum of the adapters' ranks."
        )
    modules, discarded, energy = {}, {}, {}
    for module, update in full.modules.items():
        ranks = [adapter.modules[module].rank for adapter in adapters if module in adapter.modules]
        target = min(rank, sum(ranks)) if rank else default(ranks)
        result = update.compute()
        if isinstance(result, Tensor):
            modules[module], discarded[module], energy[module] = factor_delta(result, target)
        elif result.rank > target:
            modules[module], discarded[module], energy[module] = truncate(result, target)
        else:
            modules[module], energy[module] = result, _energy(result)
        if on_module:
            on_module(module)
    recipe = dict(full.recipe)
    if discarded:
        recipe["discarded_energy"] = {
            "total": _share(sum(discarded.values()), sum(energy.values())),
            "modules": {module: _share(lost, energy[module]) for module, lost in discarded.items()},
        }
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
        return result if isinstance(result, Tensor) else result.delta_weight()


@dataclass(frozen=True, eq=False)
class FullRankMerge:
    """A merge without truncation. Like an adapter it can be folded into a base model (`lab.stacked.fold`).

    modules: updates by module, each computed when asked for, so that one dense matrix is held at a time.
    """

    name: str
    base: str
    modules: Mapping[str, FullRankUpdate]
    recipe: Mapping[str, object]


def merge_full_rank(
    name: str, adapters: Sequence[LoraAdapter], weights: Sequence[float] | None = None, **parameters
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
    complete = complete_parameters(method, parameters)
    check_compatible(adapters)
    values = _check_weights(method, weights, len(adapters))
    order = sorted(range(len(adapters)), key=lambda i: adapters[i].name)
    adapters, values = [adapters[i] for i in order], values[order]
    recipe = {"method": name, "parameters": complete, "inputs": _inputs(adapters)}
    result_name = f"{name}({', '.join(adapter.name for adapter in adapters)})"
    if method.kind == "coefficients":
        coefficients = method.function(adapters, **complete)
        recipe |= _coefficient_record(coefficients)
        values = coefficients().detach()
        merged = concatenate(adapters, values, name=result_name, recipe=recipe).modules
        compute = {module: partial(merged.__getitem__, module) for module in merged}
    else:
        recipe["weights"] = dict(zip((a.name for a in adapters), values.tolist(), strict=True))
        compute = {
            module: partial(_merge_module, method, adapters, values, module, complete)
            for module in module_names(adapters)
        }
    shapes = {module: f.shape for adapter in adapters for module, f in adapter.modules.items()}
    updates = {module: FullRankUpdate(shapes[module], call) for module, call in compute.items()}
    return FullRankMerge(result_name, _base(adapters), updates, recipe)


def build(name: str, stack: Stack, **parameters) -> nn.Module:
    """The learnable part of a method, put on the stack: a Coefficients module, or a router.

    Train its parameters as METHODS[name].recipe says (or otherwise); then `freeze`, unless it is a router. A
    method whose coefficients are finer than skills (`rank_cat`) stacks the skills anew, in its parts. Raises
    LabError for a static method or a search.
    """
    method = get_method(name)
    if method.kind == "search":
        raise LabError(f"{name} has no parameters to train; use lab.merging.search or lab.learning.learn.")
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
        coefficients.recipe["inputs"] = _inputs(whole)
    stack.set_coefficients(coefficients)
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
        raise LabError(f"{name} does not search; use lab.merging.merge or lab.learning.learn.")
    complete = complete_parameters(method, parameters)
    check_compatible(adapters)
    found = method.function(adapters, loss, method.recipe.steps if steps is None else steps, **complete)
    recipe = {"method": name, "parameters": complete, "inputs": _inputs(adapters), **found.recipe}
    return LoraAdapter(found.name, _base(adapters), found.modules, recipe)


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
        recipe["inputs"] = _inputs(stack.adapters)
    recipe |= _coefficient_record(coefficients)
    name = name or f"{recipe.get('method', 'cat')}({', '.join(i['name'] for i in recipe['inputs'])})"
    merged = concatenate(stack.adapters, values, name=name, recipe=recipe)
    return LoraAdapter(name, _base(stack.adapters), merged.modules, recipe)


def factor_delta(delta: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    """Best factors of at most `rank` for a dense update (out, in), the energy Σσ² discarded, the whole.

    From the top eigenvectors of the smaller Gram matrix in double precision, where the squaring of the
    singular values costs less than fp32 resolves: deterministic, and faster than an SVD of all directions.
    """
    rows = (delta if delta.shape[0] <= delta.shape[1] else delta.T).double()
    n = len(rows)
    top = (n - min(rank, n), n - 1)
    gram = (rows @ rows.T).numpy()
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=top, overwrite_a=True)
    P = torch.from_numpy(vectors).flip(1)  # (n, rank), strongest first
    projected = P.T @ rows  # σ_j times the other singular vector
    energies = projected.square().sum(dim=1)
    root = energies.sqrt().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    narrow, wide = (P * root).float(), (projected / root[:, None]).float()
    factors = LoraFactors(wide, narrow) if rows.shape == delta.shape else LoraFactors(narrow.T, wide.T)
    whole = rows.square().sum().item()
    return factors, max(whole - energies.sum().item(), 0.0), whole


def truncate(factors: LoraFactors, rank: int) -> tuple[LoraFactors, float, float]:
    """As `factor_delta` for an update given as factors, without forming it: QR of B and of Aᵀ, SVD of the
    small core.
    """
    Q_B, R_B = torch.linalg.qr(factors.scaling * factors.B)
    Q_A, R_A = torch.linalg.qr(factors.A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return _balanced(Q_B @ U, S, Vh @ Q_A.T, rank)


def _balanced(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[LoraFactors, float, float]:
    root = S[:rank].sqrt()
    energies = S.double().square()
    factors = LoraFactors(root[:, None] * Vh[:rank], U[:, :rank] * root)
    return factors, energies[rank:].sum().item(), energies.sum().item()


def _merge_module(
    method: Method, adapters: Sequence[LoraAdapter], weights: Tensor, module: str, parameters: Mapping
) -> Tensor | LoraFactors:
    parameters = dict(parameters)
    if method.draws:
        parameters["generator"] = seeded_generator(parameters.pop("seed"), module)
    out_features, in_features = next(a.modules[module] for a in adapters if module in a.modules).shape
    absent = LoraFactors(torch.zeros(0, in_features), torch.zeros(out_features, 0))
    factors = [adapter.modules.get(module, absent) for adapter in adapters]
    if method.kind == "delta":
        return method.function(torch.stack([f.delta_weight() for f in factors]), weights, **parameters)
    A, B = [f.A for f in factors], [f.B for f in factors]
    scalings = [f.scaling for f in factors]
    if method.kind == "raw factors":
        return LoraFactors(*method.function(A, B, torch.tensor(scalings), weights, **parameters))
    roots = [math.sqrt(abs(s)) for s in scalings]
    A = [root * a for root, a in zip(roots, A, strict=True)]
    B = [math.copysign(root, s) * b for root, s, b in zip(roots, scalings, B, strict=True)]
    return LoraFactors(*method.function(A, B, weights, **parameters))


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


def _base(adapters: Sequence[LoraAdapter]) -> str:
    return next((adapter.base for adapter in adapters if adapter.base), "")


def _inputs(adapters: Sequence[LoraAdapter]) -> list[dict]:
    return [{"name": a.name, "base": a.base, "rank": a.rank, "digest": a.digest()} for a in adapters]


def _coefficient_record(coefficients: Coefficients) -> dict:
    with torch.no_grad():
        values = coefficients().cpu()
    return {
        "skills": list(coefficients.skills),
        "modules": list(coefficients.module_names),
        "coefficients": values.tolist(),
    }


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
