"""What belongs to one visitor: adapters, alphas with their past, other contenders. The model is not in it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lab.errors import LabError
from lab.files import content_hash
from lab.lora.adapter import LoraAdapter, module_names
from lab.lora.compatibility import check_compatible
from lab.lora.stacked import Stack
from lab.merging import build, get_method, merge
from lab.merging.alphas import Grid, alphas_record, format_alphas, parse_alphas, settle
from lab.merging.merge import ALPHAS
from lab.merging.recipe import inputs_of
from lab.merging.registry import complete_parameters
from lab.merging.routing import Router

PAST = 100  # settings kept for undo
OTHERS = 12  # merged adapters that one visitor may hold
START = 0.8  # alphas at the start: in the embedded world far better than an equal share


@dataclass(frozen=True, eq=False)
class Routing:
    """A router between adapters as a column: it decides per token, so no adapter can stand for it.

    recipe: method and parameters, and what went in. state: what was learned, for the module of lab.merging.build.
    """

    name: str
    adapters: tuple[LoraAdapter, ...]
    recipe: Mapping[str, object]
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def put_on(self, stack: Stack) -> Router:
        """The router, on a stack of its adapters. Raises LabError when it cannot work with them."""
        router = build(str(self.recipe["method"]), stack, **self.recipe["parameters"])
        router.load_state_dict(self.state)
        return router


@dataclass(frozen=True)
class Part:
    """Columns that are rows of one batch. places: which of the columns asked for. rows: (places, adapters, modules)."""

    places: tuple[int, ...]
    adapters: tuple[LoraAdapter, ...]
    rows: Tensor
    routing: Routing | None = None


@dataclass(eq=False)
class Session:
    """One visitor's state.

    others: merges by other methods, recipes and learned ones, by column name. stop: ends the running answer.
    sources: where each adapter was read from. refused: adapters that would fit if they were for this base, and their place.
    emptied: the page was closed and what it held was freed. key: of the visitor's workspace, "" for programs; kept: what was
    written there last; unkept: why not. form: what stands in the fields of Compare.
    """

    adapters: tuple[LoraAdapter, ...] = ()
    grid: Grid | None = None
    alphas: np.ndarray | None = None
    past: list[np.ndarray] = field(default_factory=list)
    slots: dict[str, np.ndarray] = field(default_factory=dict)
    others: dict[str, LoraAdapter | Routing] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    base: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    refused: tuple = ()
    run: object = None  # the last comparison
    job: str = ""  # the learning job's id
    layers: str = ""  # the id of the job that weighs layers
    emptied: bool = False
    key: str = ""
    kept: str = ""
    unkept: str = ""
    form: dict = field(default_factory=dict)

    def take(self, adapters: Sequence[LoraAdapter], model, base: str) -> None:
        """Work with these adapters from now on. Alphas stay where skills and modules are the same."""
        check_compatible(adapters, model)
        grid = Grid.of(adapters)
        if self.grid is None or not self.grid.equals(grid):
            self.grid, self.alphas = grid, grid.flat(START)
            self.past, self.slots = [], {}
        self.adapters = tuple(adapters)
        self.others, self.base, self.run = {}, base, None

    def empty(self, shared: Sequence[LoraAdapter]) -> None:
        """The page is closed: free what is large. It can go on when all it had were alphas of `shared` adapters."""
        self.stop.set()
        own = not set(map(id, self.adapters)) <= set(map(id, shared))
        self.emptied = own or bool(self.others)
        self.others, self.run, self.refused = {}, None, ()
        if own:
            self.adapters, self.grid, self.alphas = (), None, None
            self.past, self.slots = [], {}

    def need(self) -> Grid:
        if self.grid is None:
            raise LabError("No adapters are loaded; load two or more first.")
        return self.grid

    @property
    def text(self) -> str:
        return format_alphas(self.alphas, self.need())

    def set(self, values: np.ndarray) -> None:
        """New alphas; the old ones can be had back by `undo`."""
        values = settle(values, self.need())
        if not (values == self.alphas).all():
            self.past = [*self.past[-PAST + 1 :], self.alphas]
            self.alphas = values

    def set_text(self, text: str) -> None:
        """Apply rules to the present alphas."""
        self.set(parse_alphas(text, self.need(), self.alphas))

    def undo(self) -> None:
        if not self.past:
            raise LabError("There is nothing to undo.")
        self.alphas = self.past.pop()

    def store(self, slot: str) -> None:
        self.slots[slot] = self.alphas

    def recall(self, slot: str) -> None:
        if slot not in self.slots:
            raise LabError(f"Setting {slot} is empty; keep the present alphas in it first.")
        self.set(self.slots[slot])

    def make(
        self, method: str, parameters: Mapping, weights: Sequence[float] | None = None, rank: int | None = None
    ) -> LoraAdapter | Routing:
        """What a method that learns nothing makes of the adapters: a merge, or a router. Raises LabError."""
        self.need()
        known = get_method(method)
        if known.kind != "router" or known.recipe is not None:
            return merge(method, self.adapters, weights, rank=rank, **parameters)
        if weights is not None or rank is not None:
            raise LabError(f"{method} decides token by token; leave weights and rank empty.")
        complete = complete_parameters(known, parameters)
        return Routing(
            method, self.adapters, {"method": method, "parameters": complete, "inputs": inputs_of(self.adapters)}
        )

    def add(self, label: str, adapter: LoraAdapter | Routing) -> str:
        """Hold another contender under this name, or its next free variant."""
        if len(self.others) >= OTHERS:
            raise LabError(f"There are {OTHERS} columns of other methods already; remove one first.")
        taken, unique, number = self.columns, label, 2
        while unique in taken:
            unique, number = f"{label} {number}", number + 1
        adapter = replace(adapter, name=unique)
        if isinstance(adapter, LoraAdapter):
            check_compatible([adapter, *self.adapters])
        self.others[unique] = adapter
        return unique

    @property
    def columns(self) -> list[str]:
        """Everything that can answer."""
        return ["base", *(a.name for a in self.adapters), "merge", *sorted(self.slots), *self.others]

    def player(self, column: str) -> str:
        """A column's name in votes: settings differ, so a merge carries the mark of its alphas."""
        if column in ("merge", *self.slots):
            values = self.alphas if column == "merge" else self.slots[column]
            return f"merge {content_hash(self.grid.modules, values.tolist())[:4]}"
        return column

    def recipe(self, column: str) -> Mapping[str, object]:
        """How a column is made, {} for the base and the skills; without making it."""
        if column in self.others:
            return self.others[column].recipe
        if column not in ("merge", *self.slots):
            return {}
        values = self.alphas if column == "merge" else self.slots[column]
        return {"method": ALPHAS, **alphas_record(values, self.grid)}

    def parts(self, columns: Sequence[str]) -> list[Part]:
        """All columns in as few batches as can be: every router needs a view of its own."""
        routed = [i for i, name in enumerate(columns) if isinstance(self.others.get(name), Routing)]
        plain = [i for i in range(len(columns)) if i not in routed]
        found = [Part(tuple(plain), *self.plan([columns[i] for i in plain]))] if plain else []
        for i in routed:
            routing = self.others[columns[i]]
            nothing = torch.zeros(1, len(routing.adapters), len(module_names(routing.adapters)))
            found.append(Part((i,), routing.adapters, nothing, routing))
        return found

    def plan(self, columns: Sequence[str]) -> tuple[tuple[LoraAdapter, ...], Tensor]:
        """The adapters to attach, and for each column its row of coefficients: (columns, adapters, modules)."""
        self.need()
        for name in columns:
            if name not in self.columns:
                raise LabError(f"There is no column {name!r}; choose from {', '.join(self.columns)}.")
        adapters = (*self.adapters, *(self.others[name] for name in columns if name in self.others))
        modules = module_names(adapters)
        ours = [modules.index(module) for module in self.grid.modules]
        rows = torch.zeros(len(columns), len(adapters), len(modules))
        k = len(self.adapters)
        for row, name in enumerate(columns):
            if name == "base":
                continue
            if name == "merge" or name in self.slots:
                values = self.alphas if name == "merge" else self.slots[name]
                rows[row, :k, ours] = torch.tensor(values, dtype=torch.float32)
            elif name in self.others:
                rows[row, k + [n for n in columns if n in self.others].index(name)] = 1
            else:
                rows[row, self.grid.skills.index(name)] = 1
        return adapters, rows

    def merged(self, column: str) -> LoraAdapter | Routing:
        """A column as one ordinary adapter, or the router that it is. Raises LabError for the base."""
        if column in self.others:
            return self.others[column]
        if column in self.need().skills:
            return self.adapters[self.grid.skills.index(column)]
        if column == "base":
            raise LabError("The base alone is no adapter; choose another column.")
        if column != "merge" and column not in self.slots:
            raise LabError(f"There is no column {column!r}; choose from {', '.join(self.columns[1:])}.")
        values = self.alphas if column == "merge" else self.slots[column]
        return merge(ALPHAS, self.adapters, alphas=format_alphas(values, self.grid))
