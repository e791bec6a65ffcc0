"""Alphas of a merge: one coefficient per skill and module, and the one text in which people read and write them.

A text is a list of rules, one to a line (or parted by `;`), later ones over earlier ones:

    maths: 0.8                                  one skill, everywhere
    layers 0-2,5 q,v: 0.3                       these layers and kinds of module, for every skill
    layers 0-5 q,v: maths 0.3                   the skill may also stand before the value
    code layers 3 mlp: 0.5                      groups: attn, mlp
    maths layers 3 q,k,v: 0.41 0.52 0.47        one number per kind named
    maths: late 0.2 1                           a curve over depth, from the first number to the second
    code: complement maths                      1 - the other's alpha
    maths: random 0 1 seed 7
    # a comment

`python -m lab merge --alphas`, `lab.merging.merge(alphas=…)` and the app read it by `parse_alphas`. It and `format_alphas` are
inverse to each other for values as `settle` keeps them (four decimals).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, module_names
from lab.lora.module_names import ATTENTION, MLP, parse, places_of, usual_order
from lab.merging.registry import seeded_generator

LIMIT = 10.0  # alphas lie in [-LIMIT, LIMIT]
DECIMALS = 4
CURVES = {
    "flat": lambda depth: np.ones_like(depth),
    "ramp": lambda depth: depth,
    "early": lambda depth: np.clip(2 - 3 * depth, 0, 1),  # the first third high, the last third low
    "late": lambda depth: np.clip(3 * depth - 1, 0, 1),
    "ring": lambda depth: np.sin(np.pi * depth),  # the middle layers high
}
GROUPS = {"attn": ATTENTION, "mlp": MLP}  # words of the language -> groups of modules


@dataclass(frozen=True)
class Grid:
    """Where alphas live. modules: as `lab.lora.adapter.module_names` orders them. present: (skills, modules)."""

    skills: tuple[str, ...]
    modules: tuple[str, ...]
    present: np.ndarray

    @classmethod
    def of(cls, adapters: Sequence[LoraAdapter]) -> "Grid":
        modules = tuple(module_names(adapters))
        present = np.array([[module in a.modules for module in modules] for a in adapters])
        return cls(tuple(a.name for a in adapters), modules, present)

    @cached_property
    def places(self) -> tuple[tuple[int | None, str], ...]:
        """(layer, kind) of each module: (3, 'q_proj'), the kind as lab.lora.module_names has it."""
        return tuple(places_of(self.modules).values())

    @cached_property
    def layers(self) -> tuple[int | None, ...]:
        return tuple(sorted({layer for layer, _ in self.places}, key=lambda n: (n is None, n)))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({kind for _, kind in self.places}, key=usual_order))

    @cached_property
    def depth(self) -> np.ndarray:
        """Depth of each module in [0, 1]; 0 where it belongs to no layer."""
        numbers = [layer for layer in self.layers if layer is not None] or [0]
        reach = max(len(numbers) - 1, 1)
        return np.array([0.0 if layer is None else numbers.index(layer) / reach for layer, _ in self.places])

    def flat(self, value: float | np.ndarray) -> np.ndarray:
        """One value everywhere, or (skills, 1) one for each skill."""
        return settle(np.full(self.present.shape, value), self)

    def equals(self, other: "Grid") -> bool:
        same = self.skills == other.skills and self.modules == other.modules
        return same and bool((self.present == other.present).all())


def short_kind(kind: str) -> str:
    """`q` of `q_proj`: how kinds are written."""
    return kind.removesuffix("_proj")


def settle(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Alphas as they are kept: four decimals, 0 where a skill lacks the module.

    Raises LabError for a wrong shape, NaN, or a value outside [-LIMIT, LIMIT].
    """
    values = np.asarray(values, dtype=float)
    if values.shape != grid.present.shape:
        raise LabError(
            f"Alphas of shape {values.shape} do not fit {grid.present.shape} (skills, modules); load the same adapters."
        )
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LIMIT:
        raise LabError(f"Alphas are numbers from {-LIMIT:g} to {LIMIT:g}; one is NaN, infinite or outside.")
    return np.where(grid.present, np.round(values, DECIMALS) + 0.0, 0.0)


def format_alphas(values: np.ndarray, grid: Grid) -> str:
    """The shortest of our rules that give exactly these alphas."""
    values = settle(values, grid)
    lines = []
    for skill, row, present in zip(grid.skills, values, grid.present, strict=True):
        common, _ = Counter(row[present].tolist() or [0.0]).most_common(1)[0]
        lines.append(f"{skill}: {_number(common)}")
        runs: list[tuple[list[int | None], str]] = []
        for layer in grid.layers:
            cells = {kind: row[i] for i, (at, kind) in enumerate(grid.places) if at == layer and present[i]}
            tail = _cells(cells, grid.kinds, common, layer is None)
            if runs and runs[-1][1] == tail and layer is not None:
                runs[-1][0].append(layer)
            else:
                runs.append(([layer], tail))
        for layers, tail in runs:
            if tail:
                where = "" if layers == [None] else f" layers {_span(layers)}"
                lines.append(f"{skill}{where}{tail}")
    return "\n".join(lines)


def alphas_record(values: np.ndarray, grid: Grid) -> dict:
    """What the recipe of a merge by these alphas tells: the rules, and the coefficients (skills, modules) that they are."""
    return {
        "alphas": format_alphas(values, grid),
        "skills": list(grid.skills),
        "modules": list(grid.modules),
        "coefficients": values.tolist(),
    }


def _cells(cells: dict[str, float], kinds: Sequence[str], common: float, outside: bool) -> str:
    changed = [kind for kind in kinds if kind in cells and cells[kind] != common]
    if not changed:
        return ""
    numbers = [_number(cells[kind]) for kind in changed]
    if len(set(numbers)) == 1:
        everywhere = len(changed) == len(cells) and not outside
        return f": {numbers[0]}" if everywhere else f" {_list(changed)}: {numbers[0]}"
    return f" {_list(changed)}: {' '.join(numbers)}"


def _list(kinds: Sequence[str]) -> str:
    return ",".join(short_kind(kind) for kind in kinds)


def _span(layers: Sequence[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _number(value: float) -> str:
    return np.format_float_positional(value, trim="-")


def parse_alphas(text: str, grid: Grid, start: np.ndarray | None = None) -> np.ndarray:
    """(skills, modules) after the rules, applied to `start` (default zeros).

    Raises LabError naming the line for anything that it does not understand.
    """
    values = np.zeros(grid.present.shape) if start is None else np.array(start, dtype=float)
    if len(text) > 200_000:
        raise LabError("The text of the alphas is longer than 200,000 characters; give fewer rules.")
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        for rule in line.split("#")[0].split(";"):
            if rule.strip():
                count += 1
                try:
                    _apply(rule.strip(), grid, values)
                except LabError as error:
                    raise LabError(f"Line {number} ({rule.strip()[:60]!r}): {error}") from error
    if not count:
        raise LabError("The text holds no rule; write for example `layers 0-2 q,v: 0.3`.")
    return settle(values, grid)


def _apply(rule: str, grid: Grid, values: np.ndarray) -> None:
    where, colon, what = rule.rpartition(":")
    if not colon or not what.strip():
        raise LabError("a rule needs a colon and a value, as in `layers 0-2 q,v: 0.3`.")
    if ":" in where:
        raise LabError("two rules stand here; put each on a line of its own, or part them by `;`.")
    named, modules, kinds = _select(where, grid)
    words = what.replace(",", " ").split()
    if named is None and len(words) > 1 and words[0] in grid.skills and words[0].lower() not in (*CURVES, "random", "complement"):
        named = words.pop(0)  # `layers 0-2: maths 0.3`
    skills = range(len(grid.skills)) if named is None else [grid.skills.index(named)]
    if words[0].lower() == "complement":
        other = words[1] if len(words) == 2 else None
        if other not in grid.skills:
            raise LabError(f"complement needs the name of one skill: {', '.join(grid.skills)}.")
        for row in skills:
            values[row, modules] = 1 - values[grid.skills.index(other), modules]
        return
    if words[0].lower() in CURVES or words[0].lower() == "random":
        name, numbers = words[0].lower(), words[1:]
        seed = 0
        if len(numbers) >= 2 and numbers[-2].lower() == "seed":
            if name != "random" or not numbers[-1].isdecimal():
                raise LabError("seed belongs to random, and is a whole number of 0 or more.")
            seed, numbers = int(numbers[-1]), numbers[:-2]
        if len(numbers) not in ((0, 1, 2) if name != "flat" else (1,)):
            raise LabError(f"{name} takes {'one number' if name == 'flat' else 'two numbers, low and high'}.")
        ends = [_value(word) for word in numbers]
        low, high = (0.0, *ends) if len(ends) == 1 else tuple(ends) or (0.0, 1.0)
        for row in skills:
            shape = _draws(seed, grid, row) if name == "random" else CURVES[name](grid.depth)
            values[row, modules] = low + (high - low) * shape[modules]
        return
    numbers = [_value(word) for word in words]
    if len(numbers) == 1:
        values[np.ix_(skills, modules)] = numbers[0]
        return
    if kinds is None or len(numbers) != len(kinds):
        raise LabError(f"{len(numbers)} numbers need as many kinds of module named before the colon.")
    for module in modules:
        values[skills, module] = numbers[kinds.index(grid.places[module][1])]


def _draws(seed: int, grid: Grid, row: int) -> np.ndarray:
    """(modules,) in [0, 1): of each skill and module by name, whatever else is loaded and in which order."""
    return np.array([torch.rand(1, generator=seeded_generator(seed, grid.skills[row], m)).item() for m in grid.modules])


def _select(where: str, grid: Grid) -> tuple[str | None, list[int], list[str] | None]:
    """The skill, columns, and the kinds in the order in which they are named; None for what is not named."""
    words = where.replace(", ", ",").split()
    skill = words.pop(0) if words and words[0] in grid.skills else None
    layers: list[int | None] = list(grid.layers)
    if words and words[0].lower() in ("layer", "layers"):
        if len(words) < 2:
            raise LabError("`layers` needs numbers, as in `layers 0-2,5`.")
        layers, words = _layers(words[1], grid), words[2:]
    kinds = None
    if words:
        kinds = [kind for word in words.pop(0).split(",") for kind in _kinds(word, grid)]
    if words:
        raise LabError(f"{words[0]!r} is one word too many; write skill, layers, modules, in this order.")
    wanted = set(grid.kinds if kinds is None else kinds)
    modules = [i for i, (layer, kind) in enumerate(grid.places) if layer in layers and kind in wanted]
    return skill, modules, kinds


def _layers(text: str, grid: Grid) -> list[int]:
    if text.lower() in ("all", "*"):
        return [layer for layer in grid.layers if layer is not None]
    known = {layer for layer in grid.layers if layer is not None}
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            raise LabError(f"{part!r} is no layer; write numbers such as 0-2,5.")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or not {first, last} <= known:
            raise LabError(f"there are no layers {part}; the adapters change layers {min(known)} to {max(known)}.")
        found += [layer for layer in known if first <= layer <= last]
    return found


def _kinds(word: str, grid: Grid) -> list[str]:
    if word.lower() in ("all", "*"):
        return list(grid.kinds)
    named = [kind for kind in grid.kinds if word in (kind, short_kind(kind))]
    if not named and word.lower() in GROUPS:
        group = GROUPS[word.lower()]
        named = [kind for kind in grid.kinds if any(parse(m).group == group for m, (_, k) in zip(grid.modules, grid.places) if k == kind)]
    if not named:
        known = ", ".join((*grid.skills, *map(short_kind, grid.kinds), *GROUPS))
        raise LabError(f"{word!r} is neither a skill nor a kind of module; there are {known}.")
    return named


def _value(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or abs(value) > LIMIT:
        raise LabError(f"{word!r} is not a number from {-LIMIT:g} to {LIMIT:g}.")
    return value
