"""One step of coefficient learning, forward and backward: ours, PEFT's active adapters, the released code's loop.

    python benchmarks/step.py

Decoder layers of real shape (Llama, hidden 2048 and 4096), adapters on q/k/v/up/down, one softmax coefficient per
skill and module. The base and all factors are frozen in every variant; all variants share the base's weights.

base       the frozen base alone: the floor. Its backward pass goes from the output down to the outputs of the first
           layer's q/k/v, which is as far as any gradient of a coefficient has to go, and no further.
stacked    lab.lora.stacked with the coefficients of `cat`.
peft       k active adapters in PEFT, each one's `scaling` replaced by its coefficient (PEFT has nothing learnable
           there, but multiplies by whatever it holds).
released   the form of the code released with the paper: a softmax over k scalars per module, and a Python loop over
           the LoRAs' outputs.

With --graphs each variant is also recorded as a CUDA graph and replayed ("stacked, graph"): what remains of a step when neither
Python nor the launches of kernels take time. Then "x base" and "x peft" of such a row are beside the recorded base and PEFT.

"arithmetic" is what the multiplications of the skills cost beside those of the base's linear layers, 1 being none.
"working" is the peak above what is held before the step (weights and factors).
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import common  # before lab: it makes the package importable
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.initialization import no_init_weights

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter
from lab.lora.stacked import attach
from lab.merging.coefficients import Coefficients

SKILL_VARIANTS = ("stacked", "peft", "released")
GRAPH = ", graph"


def make_base(hidden: int, layers: int, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=common.intermediate_size(hidden), num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128), vocab_size=8, use_cache=False,
    )  # fmt: skip
    with no_init_weights(), torch.device(device):
        model = LlamaModel(config).to(dtype)
    common.fill(model)
    return model.requires_grad_(False).eval()


class Step:
    """A model, and the raw coefficients (skills, modules) that it learns; None for the base alone."""

    def __init__(self, model: nn.Module, raw: Tensor | None, tokens: int):
        self.model, self.raw = model, raw
        weight = next(model.parameters())
        generator = torch.Generator().manual_seed(1)
        shape = (1, tokens, model.config.hidden_size)
        self.x, self.probe = (torch.randn(shape, generator=generator).to(weight) for _ in range(2))
        self.output: Tensor | None = None

    def __call__(self) -> None:
        if self.raw is not None:
            self.raw.grad = None
        output = self.model(inputs_embeds=self.x).last_hidden_state
        (output * self.probe).sum().backward()
        self.output = output.detach()

    def gradient(self) -> Tensor | None:
        return None if self.raw is None else self.raw.grad

    def result(self) -> tuple[Tensor, Tensor | None]:
        """Copies of the output and of the coefficients' gradient (None for the base alone), of the last call."""
        gradient = self.gradient()
        return self.output.clone(), None if gradient is None else gradient.clone()


def make_base_step(base: LlamaModel, tokens: int) -> Step:
    model = common.sharing(base)
    attention = model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    return Step(model, None, tokens)


def make_stacked_step(base: LlamaModel, adapters: Sequence[LoraAdapter], tokens: int) -> Step:
    model = common.sharing(base)
    stack = attach(model, adapters)
    coefficients = Coefficients(stack.adapters, seed=0).to(next(base.parameters()).device)
    stack.set_coefficients(coefficients)
    return Step(model, coefficients.raw, tokens)


def make_peft_step(base: LlamaModel, adapters: Sequence[LoraAdapter], tokens: int) -> Step:
    coefficients = Coefficients(adapters, seed=0).to(next(base.parameters()).device)
    model = common.peft_of(common.sharing(base), adapters)
    layers = [model.get_base_model().get_submodule(name) for name in coefficients.module_names]
    names = [adapter.name for adapter in adapters]
    slots = list(itertools.product(names, layers))

    def set_scalings(*_) -> None:
        for (name, layer), value in zip(slots, coefficients().flatten().unbind(), strict=True):
            layer.scaling[name] = value.to(layer.weight.dtype)

    model.register_forward_pre_hook(set_scalings)
    return Step(model, coefficients.raw, tokens)


class ReleasedLinear(nn.Module):
    """A base layer, and beside it every LoRA's output times its share of a softmax over this module's scalars."""

    def __init__(self, base: nn.Linear, A: Sequence[Tensor], B: Sequence[Tensor], logits: Callable[[], Tensor]):
        super().__init__()
        self.base, self.A, self.B, self.logits = base, A, B, logits

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        shares = self.logits().softmax(0).to(x.dtype)
        for i, (a, b) in enumerate(zip(self.A, self.B, strict=True)):
            y = y + shares[i] * nn.functional.linear(nn.functional.linear(x, a), b)
        return y


def make_released_step(base: LlamaModel, adapters: Sequence[LoraAdapter], tokens: int) -> Step:
    weight = next(base.parameters())
    start = Coefficients(adapters, seed=0)
    # One parameter per module, as in the released code.
    scalars = [nn.Parameter(column.clone().to(weight.device)) for column in start.raw.detach().unbind(1)]
    model = common.sharing(base)
    for name, scalar in zip(start.module_names, scalars, strict=True):
        factors = [adapter.modules[name] for adapter in adapters]
        A = [f.A.to(weight) for f in factors]
        B = [(f.scaling * f.B).to(weight) for f in factors]
        parent, _, child = name.rpartition(".")
        layer = ReleasedLinear(model.get_submodule(name), A, B, lambda scalar=scalar: scalar)
        setattr(model.get_submodule(parent), child, layer)
    return ReleasedStep(model, scalars, tokens)


class ReleasedStep(Step):
    def __init__(self, model: nn.Module, scalars: Sequence[nn.Parameter], tokens: int):
        super().__init__(model, None, tokens)
        self.scalars = scalars

    def __call__(self) -> None:
        for scalar in self.scalars:
            scalar.grad = None
        super().__call__()

    def gradient(self) -> Tensor:
        return torch.stack([scalar.grad for scalar in self.scalars], dim=1)


MAKERS = {"stacked": make_stacked_step, "peft": make_peft_step, "released": make_released_step}


def make_step(variant: str, base: LlamaModel, skills: int, rank: int, tokens: int) -> Step:
    if variant == "base":
        return make_base_step(base, tokens)
    return MAKERS[variant](base, common.random_adapters(common.adapted_shapes(base), skills, rank), tokens)


def arithmetic(base: LlamaModel, skills: int, rank: int) -> float:
    linear = sum(m.weight.numel() for m in base.modules() if isinstance(m, nn.Linear))
    return 1 + skills * rank * sum(map(sum, common.adapted_shapes(base).values())) / linear


def main(argv: Sequence[str] | None = None) -> Path:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--skills", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--graphs", action="store_true", help="every variant as a CUDA graph too")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, else float32")
    options = parser.parse_args(argv)
    device = common.find_device(options.device)
    if options.quick:
        options.hidden, options.skills, options.tokens, options.rounds, options.rank = [32], [2, 3], 5, 1, 2
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    cells = [("base", 0), *((variant, k) for k in options.skills for variant in SKILL_VARIANTS)]

    usage = {}
    for hidden in options.hidden:
        for variant, k in cells:

            def build(hidden=hidden, variant=variant, k=k):
                base = make_base(hidden, options.layers, device, dtype)
                step = make_step(variant, base, k, options.rank, options.tokens)
                return lambda: step()

            usage[hidden, variant, k] = common.measure_alone(build, device)
            print(f"memory: hidden {hidden}, {variant}, {k} skills", file=sys.stderr)

    rows, checks, unrecorded = [], [], []
    for hidden in options.hidden:
        base = make_base(hidden, options.layers, device, dtype)
        steps = {cell: make_step(cell[0], base, cell[1], options.rank, options.tokens) for cell in cells}
        seconds = common.interleave(steps, options.rounds, device)
        results = {cell: step.result() for cell, step in steps.items()}
        graphs = {}
        for (variant, k), step in steps.items() if options.graphs else ():
            try:
                graphs[variant + GRAPH, k] = common.recorded(step, device)
            except LabError as error:
                unrecorded.append(f"No graph of {variant} at hidden {hidden}, {k} skills: {error}")
        seconds |= common.interleave(graphs, options.rounds, device)
        for variant, k in graphs:
            plain = variant.removesuffix(GRAPH)
            for what, recorded, direct in zip(("output", "gradients"), steps[plain, k].result(), results[plain, k], strict=True):
                if direct is not None:
                    where = f"hidden {hidden}, {k} skills"
                    checks.append(common.check(f"{what} of {plain} recorded and direct, {where}", recorded, direct, tolerance))
        times = {cell: common.timing(values) for cell, values in seconds.items()}
        for variant, k in times:
            plain, graph = variant.removesuffix(GRAPH), GRAPH if variant.endswith(GRAPH) else ""
            used, least = usage[hidden, plain, k], usage[hidden, "base", 0]
            floor, theirs = times.get(("base" + graph, 0)), times.get(("peft" + graph, k))
            median = times[variant, k]["median s"]
            rows.append(
                {"hidden": hidden, "skills": k, "variant": variant}
                | times[variant, k]
                | {
                    "x base": median / floor["median s"] if floor else None,
                    "x peft": median / theirs["median s"] if theirs else None,
                    "arithmetic": arithmetic(base, k, options.rank),
                    "held MB": common.megabytes(used.held),
                    "peak MB": common.megabytes(used.peak),
                    "working MB": common.megabytes(used.peak - used.held),
                    "peak x base": used.peak / max(least.peak, 1),
                    "working x base": (used.peak - used.held) / max(least.peak - least.held, 1),
                }
            )
            if variant in ("peft", "released"):
                ours, theirs = results["stacked", k], results[variant, k]
                where = f"at hidden {hidden}, {k} skills, of stacked and {variant}"
                checks.append(common.check(f"outputs {where}", ours[0], theirs[0], tolerance))
                checks.append(common.check(f"coefficient gradients {where}", ours[1], theirs[1], tolerance))
        del steps, graphs, base
    return common.report(
        "step", device, options, rows, checks,
        [
            f"{options.layers} layers, {options.tokens} tokens, rank {options.rank}, {dtype}; "
            f"median of {options.rounds} rounds in turns.",
            "base: forward, and backward down to the outputs of the first layer's q/k/v (the floor).",
            "held: base weights and factors (stacked: in the stack, nobody holding the adapters beside it); working: peak above it.",
            *unrecorded,
        ],
    )  # fmt: skip


if __name__ == "__main__":
    common.start(main)
