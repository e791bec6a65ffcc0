"""The one registry of what stands in a comparison: baselines, skills, merges, controls; its label, role, cost and what it may see.

A candidate is a function of a RunContext that gives an Entry, registered by `@candidate`; every method of lab.merging is one by its
own name already, and every skill of a section. Figures, tables, leaderboard, plan, app and notebooks ask `describe`.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from lab.errors import LabError
from lab.experiments.candidates.making import learned, static
from lab.experiments.context import Entry, RunContext
from lab.experiments.section import Section
from lab.merging import METHODS

# In the order in which tables and figures show them.
ROLES = ("base", "skill", "control", "static", "router", "learned", "data", "retrieval", "other")

# What is trained for a candidate, beside the skills:
#   "coefficients"  on the small mix, once per learning rate of the sweep     "one rate"     on the small mix, once
#   "mix"           a LoRA of all skills' ranks on all their rows             "continual"    one of the last skill's rows, for one epoch
#   "new lora"      one on the small mix, for the steps of one learning       "new loras"    for the steps of the whole sweep
Cost = Literal["nothing", "coefficients", "one rate", "search", "mix", "continual", "new lora", "new loras"]


@dataclass(frozen=True)
class Candidate:
    """name: in notebooks and records. label: for people. seedless: the same for every seed. special: only in
    sections that name it. keeps: what of it lies in the store,
    in LoRAs of a skill's rank: "nothing", "one", or "all" (about as many as there are skills)."""

    name: str
    label: str
    role: str
    make: Callable[[RunContext], Entry] | None = field(compare=False, default=None)
    cost: Cost = "nothing"
    sees: str = "nothing"
    source: str = ""
    summary: str = ""
    seedless: bool = False
    special: bool = False
    keeps: Literal["nothing", "one", "all"] = "all"

    @property
    def position(self) -> tuple:
        """Sort key that groups by role."""
        order = list(CANDIDATES)
        return (ROLES.index(self.role), order.index(self.name) if self.name in order else len(order), self.name)


CANDIDATES: dict[str, Candidate] = {}


def candidate(name: str, label: str, role: str, *, source: str = "", **facts) -> Callable:
    """Register the decorated function of a RunContext under a name; a taken name is an error. facts: fields of Candidate."""

    def register(function):
        if name in CANDIDATES or name in METHODS:
            raise ValueError(f"two candidates are called {name!r}")
        described = function.func if isinstance(function, partial) else function
        summary = " ".join((inspect.getdoc(described) or "").partition("\n\n")[0].split())
        CANDIDATES[name] = Candidate(name, label, role, function, source=source, summary=summary, **facts)
        return function

    return register


def of_method(name: str) -> Candidate:
    """A method of lab.merging as a candidate, with its default parameters."""
    method = METHODS[name]
    if method.recipe is None:
        make, cost = static, "nothing"
    else:
        closed = method.recipe.learning_rate is None  # nothing is trained: some forward passes
        make, cost = learned, "search" if method.kind == "search" else "nothing" if closed else "coefficients"
    keeps = "nothing" if method.kind == "router" else "all"  # a router's skills lie in the store anyway
    return Candidate(name, method.label, method.role, partial(make, method=name), cost, method.sees, method.paper, method.summary, keeps=keeps)


def find(name: str, section: Section) -> Candidate:
    """By name: a candidate, a method of lab.merging, or a skill of the section. Raises LabError for another."""
    for task in section.skills:
        if name == task.name:
            return replace(describe(name, [name]), make=lambda context: context.skill(task), keeps="one")
    usual = [name for name, found in CANDIDATES.items() if not found.special]
    if name in usual or name in section.candidates:
        return CANDIDATES[name]
    if name in METHODS:
        return of_method(name)
    known = [*section.candidates, *usual, *(t.name for t in section.skills), *METHODS]
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise LabError(f"There is no method {name!r}; did you mean {near!r}? ({', '.join(dict.fromkeys(known))})")


def describe(name: str, skills: Iterable[str] = ()) -> Candidate:
    """What a name in a record stands for. skills: the names that are a skill alone.

    A choice of a sweep ("ties_oracle", lab.experiments.ablations) is described as its method; a name that nothing is known of is
    of the role "other".
    """
    skills = list(skills)
    if name in skills:
        return _Skill(name, f"{spaced(name)} skill", "skill", place=skills.index(name))
    if name in CANDIDATES:
        return CANDIDATES[name]
    if name in METHODS:
        return of_method(name)
    if name == "by_hand":  # of a notebook's `alphas` (merges.by_hand)
        return replace(of_method("cat_static"), name=name, label="Alphas by hand")
    for suffix, chosen in SUFFIXES.items():
        method = name.removesuffix(f"_{suffix}")
        if method != name and method in METHODS:
            return replace(of_method(method), name=name, label=f"{METHODS[method].label} ({chosen})")
    return Candidate(name, spaced(name), "other")


SUFFIXES = {"oracle": "oracle", "held_out": "held out"}  # of a sweep's choices: by the target's test, by held-out loss


@dataclass(frozen=True)
class _Skill(Candidate):
    place: int = 0

    @property
    def position(self) -> tuple:
        return (ROLES.index("skill"), self.place, self.name)


def spaced(name: str) -> str:
    return name.replace("_", " ")
