"""What the per-token routers share: the shares of the present skills, their file, and how many skills they use.

A router never becomes an adapter: its coefficients depend on the input. Its parameters are saved beside the
names and digests of the skills it was learned for (`save_router`, `load_router`).
"""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lab.errors import LabError
from lab.files import atomic_folder, write_atomic
from lab.lora.compatibility import linear_shape
from lab.lora.stacked import Stack
from lab.merging.registry import complete_parameters, get_method, seeded_generator

WEIGHTS = "router.safetensors"
RECIPE = "recipe.json"


class Router(nn.Module, ABC):
    """Coefficients per token for every module of a stack.

    A subclass makes its parameters, calls `put_on(stack)`, and defines `coefficients(index, x)`: from the input
    (…, in) of module number `index` to (…, skills), 0 where a skill lacks the module. Its parameters hold the
    skills in alphabetical order, so the order in which they were given does not matter.

    skills, module_names: as in the stack. in_features: per module. recipe: method and parameters. The parameters
    are fp32 and the only thing that learns; the base and the skills stay frozen.
    """

    def __init__(self, stack: Stack, **parameters):
        super().__init__()
        self.stack = stack
        self.skills = stack.skills
        self.module_names = stack.modules
        self.recipe = {"method": type(self).__name__, "parameters": parameters}
        self.sorted_skills = tuple(sorted(stack.skills))
        self.in_features = [linear_shape(layer.base)[1] for layer in stack.layers.values()]
        order = torch.tensor([self.sorted_skills.index(skill) for skill in stack.skills])
        self.register_buffer("order", order, persistent=False)
        present = stack.present[order.argsort()].T.contiguous()  # (modules, skills)
        self.register_buffer("present", present, persistent=False)
        self._support: Support | None = None

    @abstractmethod
    def coefficients(self, index: int, x: Tensor) -> Tensor:
        """See the class."""

    def put_on(self, stack: Stack) -> None:
        """Make the stack ask this router, whatever fed it before. It goes to the device and mode of the model."""
        self.to(next(iter(stack.layers.values())).weight.device).train(stack.model.training)
        stack.set_coefficients(torch.full(stack.present.shape, 1 / len(stack.skills)))
        stack.set_routers({module: partial(self._route, index) for index, module in enumerate(stack.modules)})

    def _route(self, index: int, x: Tensor) -> Tensor:
        c = self.coefficients(index, x)
        if self._support is not None:
            self._support.add(self.module_names[index], c.detach())
        return c[..., self.order]

    def softmax(self, index: int, scores: Tensor, top_k: int | None = None) -> Tensor:
        """Scores (…, skills) to shares that sum to 1 over the (`top_k` best of the) skills present in the module."""
        scores = scores.masked_fill(~self.present[index], -torch.inf)
        if top_k is not None and top_k < scores.shape[-1]:
            best = scores.topk(top_k, dim=-1).indices
            dropped = torch.ones_like(scores, dtype=torch.bool).scatter(-1, best, False)
            scores = scores.masked_fill(dropped, -torch.inf)
        return scores.softmax(dim=-1)

    def forward(self):
        raise LabError(
            f"A router ({self.recipe['method']}) decides per token, so it cannot become an adapter; save it with "
            f"save_router and attach the skills."
        )

    @contextlib.contextmanager
    def effective_support(self) -> Iterator["Support"]:
        """Count, inside the block, how many skills share a token; padding (by the attention mask) does not count."""
        support = Support()

        def remember(model, args, kwargs):
            mask = kwargs.get("attention_mask")
            support.mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

        handle = self.stack.model.register_forward_pre_hook(remember, with_kwargs=True)
        self._support = support
        try:
            yield support
        finally:
            self._support = None
            handle.remove()


class Support:
    """Effective support size (Σ|c|)² / Σc² of the coefficients of a token: 1 for one skill, k for k equal shares.

    For shares that sum to 1 it is 1/Σc², the effective number of order 2 (Laakso & Taagepera 1979; Grendár 2006);
    unlike exp(entropy) it is defined for coefficients of any sign and sum.
    """

    def __init__(self):
        self.mask: Tensor | None = None
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, module: str, c: Tensor) -> None:
        """c: (rows, tokens, skills); the mask's last columns are those of the tokens (cached decoding)."""
        square = c.square().sum(-1)
        size = c.abs().sum(-1).square() / square.clamp(min=torch.finfo(c.dtype).tiny)
        if self.mask is not None and size.ndim == 2:
            size = size[self.mask[:, -size.shape[1] :]]
        total, count = self._sums.get(module, (0.0, 0))
        self._sums[module] = (total + size.sum(dtype=torch.float64), count + size.numel())

    @property
    def modules(self) -> dict[str, float]:
        """Mean over the tokens, by module."""
        return {module: float(total) / max(count, 1) for module, (total, count) in self._sums.items()}

    @property
    def mean(self) -> float:
        """Mean over the modules. Raises LabError when no token went through the router."""
        sizes = self.modules.values()
        if not sizes:
            raise LabError("No token went through the router; run the model inside the block.")
        return sum(sizes) / len(sizes)


def token_scores(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) times weight (skills, in), in fp32 also under autocast: small steps would be lost in bf16."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight, bias)


def start_rows(seed: int | None, skills: Sequence[str], size: int, *where: str) -> Tensor:
    """(skills, size): zeros, or for a seed nn.Linear's U(±1/√size), drawn per skill name and place."""
    if seed is None:
        return torch.zeros(len(skills), size)
    bound = size**-0.5
    generators = [seeded_generator(seed, *where, skill) for skill in skills]
    return torch.stack([torch.empty(size).uniform_(-bound, bound, generator=g) for g in generators])


def save_router(folder: str | Path, router: Router, *, overwrite: bool = False) -> None:
    """Write router.safetensors and recipe.json (method, parameters, digests of the skills), whole or not at all.

    Raises LabError when the folder exists (unless `overwrite`), for a full disk, or NaN in the router.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in router.state_dict().items()}
    _check_finite(tensors, "The router has NaN or infinite values; learn it again with a lower learning rate.")
    inputs = [{"name": a.name, "base": a.base, "rank": a.rank, "digest": a.digest()} for a in router.stack.adapters]
    recipe = {**router.recipe, "inputs": inputs, "modules": list(router.module_names)}
    with atomic_folder(folder, overwrite) as temporary:
        write_atomic(temporary / RECIPE, json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
        write_atomic(temporary / WEIGHTS, save(tensors, metadata={"format": "pt"}))


def load_router(folder: str | Path, stack: Stack) -> Router:
    """The router of a folder, put on a stack of the very skills it was learned for (in any order).

    Raises LabError for other skills and for missing, damaged or non-finite content.
    """
    folder = Path(folder)
    name, parameters, learned, tensors = _read(folder)
    if learned != {adapter.name: adapter.digest() for adapter in stack.adapters}:
        raise LabError(
            f"The router in {folder} was learned for the skills {', '.join(learned)}, and the attached ones "
            f"({', '.join(stack.skills)}) are others or have changed; attach those it was learned for."
        )
    method = get_method(name)
    if method.kind != "router":
        raise LabError(f"{folder} holds {method.name!r}, which is no router; load it as an adapter.")
    router = method.function(stack, **complete_parameters(method, parameters))
    try:
        router.load_state_dict(tensors)
    except RuntimeError as error:
        raise LabError(f"{folder}/{WEIGHTS} does not fit its {RECIPE}; save the router again.") from error
    return router


def check_router(folder: Path) -> None:
    """Raise LabError where `load_router` would for missing, damaged or non-finite content."""
    _read(folder)


def learned_for(folder: str | Path) -> list[str]:
    """The names of the skills that a saved router was learned for, in their order. Raises LabError for a damaged one."""
    return list(_read(Path(folder))[2])


def _read(folder: Path) -> tuple[str, dict[str, object], dict[str, str], dict[str, Tensor]]:
    """Method, parameters, digests by skill, tensors."""
    for name in (RECIPE, WEIGHTS):
        if not (folder / name).is_file():
            raise LabError(f"{folder} has no {name}; give a folder that save_router wrote.")
    try:
        recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        described = recipe["method"], dict(recipe["parameters"]), {s["name"]: s["digest"] for s in recipe["inputs"]}
        tensors = load_file(folder / WEIGHTS)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise LabError(f"The router in {folder} is damaged; copy or save it again.") from error
    _check_finite(tensors, f"{folder}/{WEIGHTS} has NaN or infinite values; save the router again.")
    return *described, tensors


def _check_finite(tensors: Mapping[str, Tensor], message: str) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise LabError(message)
