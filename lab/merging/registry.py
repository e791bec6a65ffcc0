"""The registry of merging methods. A method is one function (or router class) whose signature is its schema.

Its positional parameters say what kind of method it is:

(deltas, weights) -> (out, in), kind "delta"
    deltas (skills, out, in), scaling included, zeros where a skill lacks the module; weights (skills,). Both
    are on the GPU where there is one; a generator is the CPU's. The result is factored again by SVD.
(A, B, weights) -> (A, B), kind "factors"
    A_i (r_i, in) and B_i (out, r_i) per skill, each carrying √scaling, so that B_i A_i is the delta weight;
    r_i = 0 where a skill lacks the module.
(A, B, scalings, weights) -> (A, B), kind "raw factors"
    The factors as PEFT stores them, and their scalings (skills,), for methods whose result depends on that
    split; the result's scaling is 1.
(adapters) -> Coefficients, kind "coefficients"
    Learned as the `recipe` says, or fixed when there is none.
(adapters, loss, steps) -> LoraAdapter, kind "search"
    Learned without gradients: tries so many adapters, each scored by `loss(adapter)` (nats per token; None
    when the search is to end before), and returns the best.
(adapters, model, prompts) -> factors by module, kind "solve"
    Learned in closed form: from what the modules of the base read on each skill's own prompts (token ids by skill).
(stack) -> nn.Module, kind "router"
    Gives coefficients per token; it puts itself on the stack (`Stack.set_routers`).

Static methods are called once per module, with the skills in alphabetical order, so their result cannot
depend on the order in which adapters were given. The keyword parameters, with default, type (int, float,
bool, str, Literal) and `Annotated[float, Range(low, high), "help"]`, become the controls of notebook, app and
command line. A method that draws random numbers takes a keyword `generator: torch.Generator`; people see it
as `seed`, and every module has its own stream.
"""

import difflib
import hashlib
import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from lab.errors import LabError

KINDS = {
    ("deltas", "weights"): "delta",
    ("A", "B", "weights"): "factors",
    ("A", "B", "scalings", "weights"): "raw factors",
    ("adapters",): "coefficients",
    ("adapters", "loss", "steps"): "search",
    ("adapters", "model", "prompts"): "solve",
    ("stack",): "router",
}


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, for Annotated."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Parameter:
    """One control of a method. type: int, float, bool or str; optional: None is allowed too."""

    name: str
    type: type
    default: Any
    low: float = -math.inf
    high: float = math.inf
    choices: tuple = ()
    optional: bool = False
    help: str = ""

    def check(self, value: Any, where: str) -> None:
        """Raise LabError when the value is not one of this parameter's."""
        if value is None and self.optional:
            return
        if self.choices:
            if value not in self.choices:
                raise LabError(
                    f"{where}: {self.name} is {value!r}; choose one of {', '.join(map(repr, self.choices))}."
                )
            return
        allowed = (int, float) if self.type is float else self.type
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.type is not bool):
            raise LabError(f"{where}: {self.name} is {value!r}; give a value of type {self.type.__name__}.")
        if self.type in (int, float) and not self.low <= value <= self.high:  # false for NaN too
            raise LabError(
                f"{where}: {self.name} is {value}; give a number from {self.low:g} to {self.high:g}."
            )


@dataclass(frozen=True)
class Recipe:
    """How the source trains a learned method.

    learning_rate: None for a search without gradients and for a closed form. steps: optimizer steps or tries, None for `epochs`
    over the data.
    data: "mix" (the skills' own data, with answers), "prompts" (the same, without answers) or "target"
    (examples of the target task, which no other method sees). rows: how many, None for all there are.
    schedule: how the rate falls to 0. warmup: share of the steps in which it rises first. betas: AdamW's. check_every: after
    so many steps each, and at the end, the held-out loss is looked at, and the best is kept; None keeps the last.
    """

    learning_rate: float | None
    batch_size: int
    epochs: int = 1
    steps: int | None = None
    data: Literal["mix", "prompts", "target"] = "mix"
    rows: int | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    check_every: int | None = None


@dataclass(frozen=True)
class Method:
    """A registered method.

    default_weight: "mean" (1/k each) or "one", used when no weights are given. default_rank: to what a
    module is cut when no rank is asked for, the "sum" or the "max" of the skills' ranks. draws: it takes a
    generator. recipe: how it is trained, None when it learns nothing. label: what people read in figures and tables. version:
    raised when the formula changes, so that nothing made by the old one is taken for the new. max_skills: None for any number.
    equal_ranks: by its defaults it needs adapters of one rank. control: it stands beside merges to doubt them.
    depends_on_split: by its definition, and its defaults, an update written as other factors of the same product, (B R)(R⁻¹ A),
    is merged otherwise.
    """

    name: str
    kind: str
    function: Callable
    paper: str
    formula: str
    parameters: tuple[Parameter, ...]
    default_weight: str
    default_rank: str
    draws: bool
    recipe: Recipe | None
    label: str
    version: int = 1
    max_skills: int | None = None
    equal_ranks: bool = False
    control: bool = False
    depends_on_split: bool = False

    @property
    def role(self) -> str:
        """What part it plays in a comparison: "control", "router", "learned" or "static"."""
        if self.control:
            return "control"
        return "router" if self.kind == "router" else "static" if self.recipe is None else "learned"

    @property
    def sees(self) -> str:
        """What data it may see: one of SEES."""
        return SEES[None if self.recipe is None else self.recipe.data]

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, on one line."""
        return " ".join((inspect.getdoc(self.function) or "").partition("\n\n")[0].split())


METHODS: dict[str, Method] = {}
SEES = {None: "nothing", "prompts": "the skills' prompts", "mix": "a little of the skills' rows", "target": "a few target rows"}


def merge_method(
    *,
    label: str,
    paper: str,
    formula: str,
    version: int = 1,
    weights: Literal["mean", "one"] = "mean",
    rank: Literal["sum", "max"] = "sum",
    recipe: Recipe | None = None,
    max_skills: int | None = None,
    equal_ranks: bool = False,
    control: bool = False,
    depends_on_split: bool = False,
) -> Callable:
    """Register the decorated function or class in METHODS under its own name; a taken name is an error.

    weights, rank: `default_weight` and `default_rank` of the Method; the others are its fields by the same names.
    """

    def register(function):
        name = function.__name__
        if name in METHODS:
            raise ValueError(f"two merging methods are called {name!r}")
        positional, parameters = _read_signature(function)
        if positional not in KINDS:
            raise ValueError(f"{name}: positional parameters {positional} are none of {list(KINDS)}")
        draws = "generator" in inspect.signature(function).parameters
        METHODS[name] = Method(
            name, KINDS[positional], function, paper, formula, parameters, weights, rank, draws, recipe, label, version,
            max_skills, equal_ranks, control, depends_on_split,
        )  # fmt: skip
        return function

    return register


def get_method(name: str) -> Method:
    """The method of that name. Raises LabError with the nearest and all valid names."""
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise LabError(
            f"Unknown merging method {name!r}; {hint}The methods are {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]


def schema(name: str) -> tuple[Parameter, ...]:
    """The parameters of a method, in the order of its signature. Raises LabError for an unknown name."""
    return get_method(name).parameters


def complete_parameters(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values and the defaults of the others. Raises LabError for an unknown name or a bad value."""
    known = {parameter.name: parameter for parameter in method.parameters}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LabError(
                f"{method.name} has no parameter {name!r}; {hint}It has {', '.join(known) or 'none'}."
            )
        known[name].check(value, method.name)
    return {name: given.get(name, parameter.default) for name, parameter in known.items()}


def seeded_generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator for one seed and one named thing (a module, a skill), whatever was drawn before."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _read_signature(function: Callable) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    positional, parameters = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            positional.append(name)
        elif name == "generator":
            parameters.append(Parameter("seed", int, 0, low=0, help="seed of the random draws"))
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{function.__name__}: parameter {name!r} needs a default")
        else:
            parameters.append(_read_parameter(name, hints[name], parameter.default))
    return tuple(positional), tuple(parameters)


def _read_parameter(name: str, hint: Any, default: Any) -> Parameter:
    bounds, text, optional, choices = Range(), "", False, ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bounds = next((extra for extra in extras if isinstance(extra, Range)), bounds)
        text = next((extra for extra in extras if isinstance(extra, str)), text)
    if get_origin(hint) in (Union, types.UnionType):
        optional = True
        (hint,) = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = type(choices[0])
    if hint not in (int, float, bool, str):
        raise ValueError(
            f"parameter {name!r} is of type {hint}; a control is an int, float, bool, str or Literal"
        )
    return Parameter(name, hint, default, bounds.low, bounds.high, choices, optional, text)
