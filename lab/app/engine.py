"""The one model in memory, and the views of it in which adapters are attached.

A view ("lane") is a copy of the model's modules over the very same weights, so several sets of adapters, and a
learning job, live beside each other for the price of their factors. In a lane every row of a batch has its own coefficients:
base, skills, merge and other methods are rows of one batch, and a changed alpha is a changed row. A router has a lane of
its own, in which it decides for every row.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from lab.app.session import Routing
from lab.app.turns import Turns
from lab.errors import LabError
from lab.lora.adapter import LoraAdapter
from lab.lora.base import check_base, load_base
from lab.lora.stacked import attach

LANES = 6  # views that are kept; the least used goes


def shared_copy(model):
    """The model's modules anew, over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class Lane:
    """A view of the base with adapters attached. coefficients: (rows, adapters, modules), or one row for all.

    router: decides instead of the coefficients, when there is one.
    """

    def __init__(self, model, adapters: Sequence[LoraAdapter], routing: Routing | None = None):
        self.adapters, self.routing = tuple(adapters), routing  # while the lane lives, no other object has their ids
        self.model = shared_copy(model)
        self.coefficients: Tensor | None = None
        self.router = None
        if adapters:
            stack = attach(self.model, adapters)
            if routing is None:
                stack.set_routers({module: partial(self._of, i) for i, module in enumerate(stack.modules)})
            else:
                self.router = routing.put_on(stack)

    def use(self, coefficients: Tensor) -> None:
        """(rows, adapters, modules) for the forward passes that follow in this turn.

        Raises LabError when the base has been exchanged since the lane was made.
        """
        weight = next(self.model.parameters())
        if not weight.numel():
            raise LabError("The base model has been exchanged in the meantime; reload the page.")
        self.coefficients = coefficients.to(weight.device)

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
        self.device, self.dtype = device, dtype
        self.turns = Turns()
        self._mutex = threading.Lock()
        self._exchanging = threading.Lock()
        self._lanes: OrderedDict[tuple[int, ...], Lane] = OrderedDict()
        self._take(source, revision)

    @property
    def chat(self) -> bool:
        """Whether the base has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def model(self):
        """Raises LabError while the base is being exchanged."""
        if self._model is None:
            raise LabError("No base model is in memory just now: another one is being read; try again in a moment.")
        return self._model

    def _take(self, source: str, revision: str | None) -> None:
        model, tokenizer = load_base(source, revision=revision, dtype=self.dtype, device=self.device)
        model.requires_grad_(False)
        with self._mutex:
            self._model, self.tokenizer, self.source, self.revision = model, tokenizer, source, revision

    def load(self, source: str) -> None:
        """Another base in place of the present one, whose memory is free before the new one is read.

        When it cannot be read, the old one is read again. Raises LabError in both cases.
        """
        if not self._exchanging.acquire(blocking=False):
            raise LabError("Another base is being read already; wait until it is there.")
        try:
            check_base(source)
            before = self.source, self.revision
            self._let_go()
            try:
                self._take(source, None)
            except Exception as error:
                try:
                    self._take(*before)
                except LabError as worse:
                    raise LabError(f"{error} The one before, {before[0]}, cannot be read any more: {worse}") from error
                raise
        finally:
            self._exchanging.release()

    def _let_go(self) -> None:
        """Free the base's weights at once, whoever still holds the model or a lane of it."""
        with self.turns, self._mutex:
            model, self._model = self._model, None
            self._lanes.clear()
            if model is not None:
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.data = tensor.data.new_empty(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def lane(self, adapters: Sequence[LoraAdapter], routing: Routing | None = None) -> Lane:
        """The view with these adapters (and this router) attached. Raises LabError when they do not fit."""
        key = tuple(map(id, (*adapters, *([routing] if routing is not None else []))))
        with self._mutex:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(self.model, adapters, routing)
            self._lanes.move_to_end(key)
            while len(self._lanes) > LANES:
                self._lanes.popitem(last=False)
            return lane

    def keep(self, held: Iterable[LoraAdapter | Routing]) -> None:
        """Drop every lane of which not all adapters and routers are among these."""
        ids = set(map(id, held))
        with self._mutex:
            for key in [key for key in self._lanes if not ids.issuperset(key)]:
                del self._lanes[key]


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
