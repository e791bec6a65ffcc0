"""The fast core: several adapters on one base layer as two thin matrix products.

    y = W x + B_cat (c ⊙ (A_cat x))

A_cat (Σr × in) and B_cat (out × Σr, scaling folded in) are stacked once; c repeats each skill's coefficient
over its ranks. Skills of unequal rank, or absent from a module, are just smaller or missing blocks. The
backward pass keeps A_cat x only.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.adapter import LoraAdapter, LoraFactors, check_compatible, linear_shape, module_names
from lab.errors import LabError

Coefficient = Tensor | Callable[[Tensor], Tensor]


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
        ranks = torch.tensor([0 if f is None else f.rank for f in factors])
        spread = torch.repeat_interleave(
            torch.eye(len(factors)), ranks, dim=1
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
        u = F.linear(x, self.A_cat)  # (…, Σr)
        # A product with one-hot columns instead of an index: its backward pass is deterministic on GPUs too.
        v = u * (c @ self.spread.to(c.dtype)).to(u.dtype)
        return self.base(x) + F.linear(v, self.B_cat)

    @property
    def weight(self) -> Tensor:
        """The base layer's: some model code looks at it for the dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias


class Stack:
    """Adapters attached to a base model; made by `attach`, undone by `detach` (or as a context manager).

    skills: adapter names, in the order given. modules: the union of their modules, in natural order.
    layers: StackedLinear by module name. adapters: the adapters themselves.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[LoraAdapter]):
        self.model = model
        self.adapters = tuple(adapters)
        self.skills = tuple(adapter.name for adapter in adapters)
        self.modules = tuple(module_names(adapters))
        self._hook = None
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.layers: dict[str, StackedLinear] = {}
        for module in self.modules:
            layer = StackedLinear(model.get_submodule(module), [a.modules.get(module) for a in adapters])
            self.layers[module] = layer.train(model.training)
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
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if callable(source):
            with torch.no_grad():
                self._set(source())
            self._hook = self.model.register_forward_pre_hook(lambda *_: self._set(source()))
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
        # unbind: its backward pass is one stack, where slicing would fill a whole matrix per module.
        for layer, column in zip(self.layers.values(), values.unbind(1), strict=True):
            layer.set_coefficients(column.to(layer.spread.device))

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

    def detach(self) -> None:
        """Take the skills off: the very same base layers are back, with the requires_grad they had."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
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
        delta = factors.delta_weight().to(layer.weight.device)
        delta = delta if isinstance(layer, nn.Linear) else delta.T  # Conv1D stores (in, out)
        layer.weight.copy_(layer.weight.float() + delta)
    return model


def _replace(model: nn.Module, module: str, layer: nn.Module) -> None:
    parent, _, child = module.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
