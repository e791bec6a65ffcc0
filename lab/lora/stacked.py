"""The fast core: several adapters on one base layer as two thin matrix products.

    y = W x + B_cat (c ⊙ (A_cat x))

A_cat (Σr × in) and B_cat (out × Σr, scaling folded in) are stacked once; c repeats each skill's coefficient
over its ranks. Skills of unequal rank, or absent from a module, are just smaller or missing blocks. The
backward pass keeps A_cat x only, and both passes add the skills' share in place to the base layer's product,
so that nothing as wide as the layer is made beside it.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, LoraFactors, module_names
from lab.lora.compatibility import check_compatible, is_conv1d, linear_shape


@dataclasses.dataclass(frozen=True)
class PerPrompt:
    """Coefficients of whole prompts. shares: (rows, skills). skills: the numbers of those that any row has a share of.

    Unlike a Tensor of coefficients, each skill is computed by itself: a row without a share of any skill is the base's to the
    bit, and a skill that a row has no share of cannot move a bit of it.
    """

    shares: Tensor
    skills: tuple[int, ...]


Coefficient = Tensor | Callable[[Tensor], Tensor | PerPrompt]


class StackedLinear(nn.Module):
    """A frozen linear layer (nn.Linear or Conv1D) with k skills beside it.

    factors: one entry per skill, None where the skill does not change this layer.
    coefficients: (skills,), or per token (…, skills) with the leading shape of x, or a callable that makes
    either from x.
    """

    def __init__(self, base: nn.Module, factors: Sequence[LoraFactors | None]):
        super().__init__()
        self.base = base
        out_features, in_features = linear_shape(base)
        weight = base.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        present = [f for f in factors if f is not None]
        A = torch.cat([f.A for f in present] or [torch.zeros(0, in_features)])  # (Σr, in)
        B = torch.cat(
            [f.scaling * f.B for f in present] or [torch.zeros(out_features, 0)], dim=1
        )  # (out, Σr)
        ranks = [0 if f is None else f.rank for f in factors]
        self.starts = list(itertools.accumulate(ranks, initial=0))  # of each skill's ranks in the stacked factors
        spread = torch.repeat_interleave(
            torch.eye(len(factors)), torch.tensor(ranks), dim=1
        )  # (skills, Σr), one-hot columns
        # Not persistent: the state of the attached model is that of the base.
        self.register_buffer("A_cat", A.to(weight.device, dtype), persistent=False)
        self.register_buffer("B_cat", B.to(weight.device, dtype), persistent=False)
        self.register_buffer("spread", spread.to(weight.device), persistent=False)
        self.set_coefficients(torch.full((len(factors),), 1 / len(factors), device=weight.device))

    def set_coefficients(self, coefficients: Coefficient) -> None:
        """See the class. A router stays outside the module tree: it belongs to the method, not the base."""
        self.__dict__["coefficients"] = coefficients

    def forward(self, x: Tensor) -> Tensor:  # (…, in) -> (…, out)
        c = self.coefficients
        if callable(c):
            c = c(x)
        if isinstance(c, PerPrompt):
            return self._per_prompt(x, c)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        skills = (c, self.spread, self.A_cat, self.B_cat)
        if _is_plain(self.base) and (autocast or dtype == self.weight.dtype):
            W = self.weight if is_conv1d(self.base) else self.weight.T
            return _Stacked.apply(x.to(dtype), *skills, W, self.bias)
        return self.base(x) + _Stacked.apply(x.to(dtype), *skills, None, None)

    def _per_prompt(self, x: Tensor, c: PerPrompt) -> Tensor:
        """Every skill on all rows, added where it has a share: the shapes, and so the roundings, do not depend on the choices."""
        if x.ndim != 3 or len(x) != len(c.shares):
            raise LabError(f"{len(c.shares)} prompts were decided on, and the layer reads {tuple(x.shape)}; keep the rows as they began.")
        out = self.base(x)
        for skill in c.skills:
            ranks = slice(self.starts[skill], self.starts[skill + 1])
            if ranks.start == ranks.stop:
                continue
            share = c.shares[:, skill, None, None].to(out.dtype)
            # Contiguous: in what steps the memory of all skills is walked must not matter.
            A, B = self.A_cat[ranks].contiguous(), self.B_cat[:, ranks].contiguous()
            update = F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))
            out = torch.where(share != 0, out + (share * update).to(out.dtype), out)
        return out

    def within(self, skill: int, factors: LoraFactors) -> LoraFactors:
        """A skill's factors as views of the stacked ones, each where that holds the very same numbers."""
        ranks = slice(self.starts[skill], self.starts[skill + 1])
        A, B = self.A_cat[ranks], self.B_cat[:, ranks]
        same = A.dtype == factors.A.dtype and A.device == factors.A.device
        return LoraFactors(A if same else factors.A, B if same and factors.scaling == 1 else factors.B, factors.scaling)

    @property
    def weight(self) -> Tensor:
        """The base layer's: some model code looks at it for the dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is x W + b with frozen W and b and nothing else: not quantised, sharded, offloaded or hooked."""
    return (
        _is_plain_class(type(layer))
        and type(layer.weight) is nn.Parameter
        and not layer.weight.requires_grad
        and not (layer.bias is not None and layer.bias.requires_grad)
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
    )


@functools.cache
def _is_plain_class(kind: type) -> bool:
    if kind is nn.Linear:
        return True
    from transformers.pytorch_utils import Conv1D

    return kind is Conv1D  # not one made from it, which may do anything


class _Stacked(torch.autograd.Function):
    """x W + b + ((c spread) ⊙ (x Aᵀ)) Bᵀ, or its last term alone where W is None; only x and c have gradients.

    x: (…, in), in the dtype of the result. c: (skills,) or (…, skills), in its own dtype: a step of 1e-4 is
    below the resolution of bf16 near 0.5. spread: (skills, Σr). A: (Σr, in). B: (out, Σr). W: (in, out).

    Kept for the backward pass is u = x Aᵀ, and only where c wants a gradient; all else exists anyway. Under
    autocast the weights are cast again there: plain autograd keeps a second copy of every frozen weight.
    """

    @staticmethod
    def forward(ctx, x, c, spread, A, B, W, b):
        with torch.autocast(x.device.type, enabled=False):
            u = F.linear(x, A.to(x.dtype))
            rows = x.reshape(-1, x.shape[-1])
            v = _scale(u, c, spread).view(len(rows), len(A))
            if W is None:
                y = v @ B.T.to(x.dtype)
            else:
                W_x = W.to(x.dtype)
                y = rows @ W_x if b is None else torch.addmm(b.to(x.dtype), rows, W_x)
                y.addmm_(v, B.T.to(x.dtype))
        ctx.save_for_backward(u if ctx.needs_input_grad[1] else None, c, spread, A, B, W)
        return y.view(*x.shape[:-1], len(B))

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        u, c, spread, A, B, W = ctx.saved_tensors
        dx = dc = None
        with torch.autocast(g.device.type, enabled=False):
            rows = g.reshape(-1, g.shape[-1])
            dv = (rows @ B.to(g.dtype)).view(*g.shape[:-1], len(A))
            if ctx.needs_input_grad[0]:
                du, A_g = _scale(dv, c, spread).view(len(rows), len(A)), A.to(g.dtype)
                dx = du @ A_g if W is None else (rows @ W.T.to(g.dtype)).addmm_(du, A_g)
                dx = dx.view(*g.shape[:-1], A.shape[1])
            if ctx.needs_input_grad[1]:
                de = dv * u
                de = de.view(len(rows), len(A)).sum(0, dtype=c.dtype) if c.ndim == 1 else de.to(c.dtype)
                dc = (de @ spread.T.to(c.dtype)).sum_to_size(c.shape)
        return dx, dc, None, None, None, None, None


def _scale(u: Tensor, c: Tensor, spread: Tensor) -> Tensor:
    # A product with one-hot columns instead of an index: its backward pass is deterministic on GPUs too.
    return (u * (c @ spread.to(c.dtype))).to(u.dtype)


class Stack:
    """Adapters attached to a base model; made by `attach`, undone by `detach` (or as a context manager).

    skills: adapter names, in the order given. modules: the union of their modules, in natural order.
    layers: StackedLinear by module name. adapters: the adapters, their factors in the stack's own memory where dtype, device
    and (for B) a scaling of 1 allow: who lets go of the given ones holds them once.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[LoraAdapter]):
        self.model = model
        self.skills = tuple(adapter.name for adapter in adapters)
        self.modules = tuple(module_names(adapters))
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.layers: dict[str, StackedLinear] = {}
        for module in self.modules:
            layer = StackedLinear(model.get_submodule(module), [a.modules.get(module) for a in adapters])
            self.layers[module] = layer.train(model.training)
        self.adapters = tuple(
            dataclasses.replace(a, modules={m: self.layers[m].within(skill, f) for m, f in a.modules.items()})
            for skill, a in enumerate(adapters)
        )
        model.requires_grad_(False)
        for module, layer in self.layers.items():
            _replace(model, module, layer)

    @property
    def present(self) -> Tensor:
        """(skills, modules), True where the skill changes the module."""
        return torch.tensor(
            [[module in adapter.modules for module in self.modules] for adapter in self.adapters]
        )

    def set_coefficients(self, source: Tensor | Callable[[], Tensor]) -> None:
        """Give each skill its coefficient in each module: (skills, modules), as ordered in those attributes.

        A tensor is set at once. A callable (such as lab.merging's Coefficients) is asked before every forward
        pass of the whole model, so that gradients reach what it is made of. Raises LabError for another shape
        or NaN.
        """
        self._remove_hooks()
        if callable(source):
            with torch.no_grad():
                self._set(source())
            self.before_forward("", lambda *_: self._set(source()))
        else:
            if not source.isfinite().all():
                raise LabError("The coefficients contain NaN or infinite values; give finite numbers.")
            self._set(source)

    def _set(self, values: Tensor) -> None:
        expected = (len(self.skills), len(self.modules))
        if tuple(values.shape) != expected:
            raise LabError(
                f"The coefficients have shape {tuple(values.shape)}; {expected} (skills, modules) is needed."
            )
        columns: dict[torch.device, tuple[Tensor, ...]] = {}  # one transfer to each device, not one per module
        for index, layer in enumerate(self.layers.values()):
            device = layer.spread.device
            if device not in columns:
                # unbind: its backward pass is one stack, where slicing would fill a whole matrix per module.
                columns[device] = values.to(device).unbind(1)
            layer.set_coefficients(columns[device][index])

    def set_routers(self, routers: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Give modules (by name) a router each: from the layer's input (…, in) to coefficients (…, skills).

        Modules that are not named keep their coefficients. Raises LabError for a module that the stack does
        not have.
        """
        for module, router in routers.items():
            if module not in self.layers:
                raise LabError(
                    f"Module {module!r} has no skill attached; the first with skills is {self.modules[0]!r}."
                )
            self.layers[module].set_coefficients(router)

    def before_forward(self, module: str, hook: Callable) -> None:
        """Call `hook(module, args, kwargs)` before every forward pass of a module of the model ("": the model).

        What it returns, if anything, replaces (args, kwargs). `set_coefficients` and `detach` end it.
        """
        layer = self.model.get_submodule(module)
        self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextlib.contextmanager
    def without_skills(self) -> Iterator[None]:
        """The model is the base alone inside the block."""
        for module, layer in self.layers.items():
            _replace(self.model, module, layer.base)
        try:
            yield
        finally:
            for module, layer in self.layers.items():
                _replace(self.model, module, layer)

    def detach(self) -> None:
        """Take the skills off: the very same base layers are back, with the requires_grad they had."""
        self._remove_hooks()
        for module, layer in self.layers.items():
            _replace(self.model, module, layer.base)
        self.layers = {}
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._trainable = []

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *exception) -> None:
        self.detach()


def attach(model: nn.Module, adapters: Sequence[LoraAdapter]) -> Stack:
    """Put skills onto a base model, which is frozen; every coefficient starts as 1/k.

    While attached, an adapted layer's own parameters are found under `<module>.base`. Raises LabError when
    the adapters do not fit each other or the model, or when the model has skills attached already.
    """
    if any(isinstance(layer, StackedLinear) for layer in model.modules()):
        raise LabError("The model has skills attached already; detach them first.")
    check_compatible(adapters, model)
    return Stack(model, adapters)


@torch.no_grad()
def fold(model: nn.Module, adapter: LoraAdapter) -> nn.Module:
    """Add the adapter's delta weights to the base model's weights, in place and for good; returns the model.

    The sum is formed in fp32. Raises LabError when the adapter does not fit, when a layer is quantised, or
    when its weight is shared with another layer (tied embeddings), which would change too.
    """
    check_compatible([adapter], model)
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for module in adapter.modules:
        weight = model.get_submodule(module).weight
        if not weight.is_floating_point():
            raise LabError(
                f"Module {module!r} is quantised ({weight.dtype}); load the base in fp32, fp16 or bf16 to "
                f"fold."
            )
        if owners[id(weight)] > 1:
            raise LabError(
                f"The weight of {module!r} is shared with another layer, which folding would change; untie "
                f"it first."
            )
    for module, factors in adapter.modules.items():
        layer = model.get_submodule(module)
        delta = _on(factors, layer.weight.device).delta_weight().to(layer.weight.device)
        delta = delta if isinstance(layer, nn.Linear) else delta.T  # Conv1D stores (in, out)
        layer.weight.copy_(layer.weight.float() + delta)
    return model


@contextlib.contextmanager
def folded(model: nn.Module, adapter: LoraAdapter) -> Iterator[None]:
    """The model with the adapter folded into its weights inside the block; after it the very same weights are back.

    Raises LabError as `fold` does.
    """
    check_compatible([adapter], model)
    kept = {module: model.get_submodule(module).weight.detach().to("cpu", copy=True) for module in adapter.modules}
    try:
        fold(model, adapter)
        yield
    finally:
        with torch.no_grad():
            for module, weight in kept.items():
                model.get_submodule(module).weight.copy_(weight)


def _on(update: LoraFactors, device: torch.device) -> LoraFactors:
    """Factors on the device, where their product is made: they are small, what they make is not. Other updates as they are."""
    if not isinstance(update, LoraFactors):
        return update
    return LoraFactors(update.A.to(device), update.B.to(device), update.scaling)


def _replace(model: nn.Module, module: str, layer: nn.Module) -> None:
    parent, _, child = module.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
