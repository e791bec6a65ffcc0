"""The one model in memory, and the views of it in which adapters are attached.

A view ("lane") is a copy of the model's modules over the very same weights, so several sets of adapters, and a learning
job, live beside each other for the price of their factors. In a lane every row of a batch has its own coefficients:
base, skills, merge and other methods are rows of one batch, and a changed alpha is a changed row.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lab.adapter import LoraAdapter
from lab.app.turns import Turns
from lab.base import load_base
from lab.errors import LabError
from lab.stacked import attach

LANES = 4  # views that are kept; the least used goes


def shared_copy(model):
    """The model's modules anew, over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class Lane:
    """A view of the base with adapters attached. coefficients: (rows, adapters, modules), or one row for all."""

    def __init__(self, model, adapters: Sequence[LoraAdapter]):
        self.adapters = tuple(adapters)
        self.model = shared_copy(model)
        self.modules: tuple[str, ...] = ()
        self.coefficients: Tensor | None = None
        if adapters:
            stack = attach(self.model, adapters)
            self.modules = stack.modules
            stack.set_routers({module: partial(self._of, i) for i, module in enumerate(stack.modules)})

    def use(self, coefficients: Tensor) -> None:
        """(rows, adapters, modules) for the forward passes that follow in this turn."""
        device = next(self.model.parameters()).device
        self.coefficients = coefficients.to(device)

    def _of(self, module: int, x: Tensor) -> Tensor:
        rows = self.coefficients[:, :, module]  # (rows, adapters)
        if x.ndim == 3:
            return rows[:, None, :].expand(x.shape[0], x.shape[1], -1)
        if len(rows) > 1:
            raise LabError("This base mixes the rows of a batch inside a layer; compare one column at a time.")
        return rows.expand(*x.shape[:-1], -1)


class Engine:
    """model, tokenizer: the base. source: its name or folder. turns: taken by everything that runs the model."""

    def __init__(self, source: str, *, revision: str | None = None, dtype: str = "float32", device: str | None = None):
        self.device = device
        self.turns = Turns()
        self._mutex = threading.Lock()
        self._lanes: OrderedDict[tuple, Lane] = OrderedDict()
        self.load(source, revision=revision, dtype=dtype)

    def load(self, source: str, *, revision: str | None = None, dtype: str = "float32") -> None:
        """Take another base in place of the present one, which stays when this fails."""
        model, tokenizer = load_base(source, revision=revision, dtype=dtype, device=self.device)
        model.requires_grad_(False)
        with self._mutex:
            self.model, self.tokenizer, self.source, self.dtype = model, tokenizer, source, dtype
            self._lanes.clear()

    def lane(self, adapters: Sequence[LoraAdapter]) -> Lane:
        """The view with these adapters attached. Raises LabError when they do not fit."""
        key = tuple(map(id, adapters))
        with self._mutex:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(self.model, adapters)
            self._lanes.move_to_end(key)
            while len(self._lanes) > LANES:
                self._lanes.popitem(last=False)
            return lane


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
