"""What a set of adapters is, what of it fits together, and which methods are open to it: data first, then text."""

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter, module_names
from lab.lora.base import base_folder, refuse_quantised, same_base
from lab.lora.compatibility import compatibility_problems
from lab.lora.peft_io import WEIGHTS, find_folder, load, read_config
from lab.merging import METHODS, merge, search
from lab.merging.registry import Method

GROUPS = ("static", "learned", "router")
Span = tuple[float, float]  # smallest and largest over the modules


@dataclass(frozen=True)
class AdapterReport:
    """One adapter. What cannot be known is None: everything but the config's values where it cannot be read.

    problem: why it cannot be read, "" when it can. rank, alpha, scaling: spans over the modules; alpha is known of
    folders only. kinds: (last part of the module's name, how many of them). parameters: entries of all factors.
    size: bytes of the weights, in the file or, without one, in memory. dtype: as stored ("F32", "BF16", …). notes: the
    adapter's.
    """

    name: str
    base: str
    problem: str = ""
    rank: Span | None = None
    alpha: Span | None = None
    scaling: Span | None = None
    rslora: bool = False
    kinds: tuple[tuple[str, int], ...] = ()
    parameters: int | None = None
    size: int | None = None
    dtype: str = ""
    notes: tuple[str, ...] = ()

    @property
    def modules(self) -> int:
        return sum(count for _, count in self.kinds)

    def text(self) -> str:
        lines = [("base", self.base or "not stated")]
        if self.rank:
            alpha = f", alpha {_span(self.alpha)}" if self.alpha else ""
            scaling = f", scaling {_span(self.scaling)}" if self.scaling else ""
            lines.append(("rank", f"{_span(self.rank)}{alpha}{scaling}{' (rsLoRA)' if self.rslora else ''}"))
        if self.kinds:
            lines.append(("modules", f"{self.modules}: " + ", ".join(f"{n} {kind}" for kind, n in self.kinds)))
        if self.parameters is not None:
            lines.append(("size", f"{self.parameters:,} parameters, {_bytes(self.size)} {self.dtype}".rstrip()))
        lines += [("note", note) for note in self.notes]
        if self.problem:
            lines.append(("cannot be read", self.problem))
        return "\n".join([self.name, *(f"  {label:9} {value}" for label, value in lines)])


@dataclass(frozen=True)
class MethodReport:
    """reason: why the method refuses the set, in its own words; "" when it is open to it."""

    name: str
    group: str
    reason: str

    @property
    def open(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SetReport:
    """adapters in the order given. fits: what agrees. problems: what keeps them from being merged, a sentence each."""

    adapters: tuple[AdapterReport, ...]
    fits: tuple[str, ...]
    problems: tuple[str, ...]
    methods: tuple[MethodReport, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def text(self) -> str:
        parts = [adapter.text() for adapter in self.adapters]
        if self.fits:
            parts.append("What fits\n" + "\n".join(f"  {line}" for line in self.fits))
        if self.problems:
            parts.append("What does not fit\n" + "\n".join(f"  {line}" for line in self.problems))
        open_ones = [method for method in self.methods if method.open]
        lines = [f"Methods open to this set: {len(open_ones)} of {len(self.methods)}"]
        for group in dict.fromkeys(method.group for method in open_ones):
            names = ", ".join(method.name for method in open_ones if method.group == group)
            lines += textwrap.wrap(names, 100, initial_indent=f"  {group:9} ", subsequent_indent=" " * 12)
        refused: dict[str, list[str]] = {}
        for method in self.methods:
            if method.reason:
                refused.setdefault(method.reason, []).append(method.name)
        if refused:
            lines.append("Not open")
            for reason, names in refused.items():
                lines.append(f"  {'every method' if len(names) == len(METHODS) else ', '.join(names)}: {reason}")
        return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def group(method: Method) -> str:
    """How a method is listed: "static" (given or fixed coefficients), "learned" (from data) or "router" (per token)."""
    if method.kind == "router":
        return "router"
    return "static" if method.recipe is None else "learned"


def check_several(adapters: Sequence) -> None:
    """Raise LabError unless there are two adapters or more."""
    if len(adapters) < 2:
        raise LabError(f"There {'is one adapter' if adapters else 'are no adapters'}; a merge needs two or more.")


def describe(adapter: LoraAdapter, folder: Path | None = None) -> AdapterReport:
    """The report of one adapter; alpha, size and dtype are those of `folder`, where it was read from."""
    factors = list(adapter.modules.values())
    kinds = Counter(module.rpartition(".")[2] for module in adapter.modules)
    parameters = sum(f.A.numel() + f.B.numel() for f in factors)
    report = AdapterReport(
        name=adapter.name,
        base=adapter.base,
        rank=_extremes(f.rank for f in factors),
        scaling=_extremes(f.scaling for f in factors),
        kinds=tuple(sorted(kinds.items())),
        parameters=parameters,
        size=4 * parameters,
        dtype="F32",
        notes=adapter.notes,
    )
    if folder is None:
        return report
    rslora = bool(read_config(folder).get("use_rslora"))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}
    return replace(
        report,
        alpha=_extremes(round(f.scaling * (f.rank**0.5 if rslora else f.rank), 6) for f in factors),
        rslora=rslora,
        size=(folder / WEIGHTS).stat().st_size,
        dtype=", ".join(sorted(dtypes)),
    )


def inspect(
    sources: Sequence[str | Path], *, names: Sequence[str | None] | None = None, base: str | None = None
) -> tuple[SetReport, list[LoraAdapter]]:
    """Read adapters (folders or Hub ids); the report, also of those that cannot be read, and the readable ones.

    names: instead of the folders' own. base: check the shapes against this base model ("embedded", folder or Hub id;
    no weights are read), on which the adapters count as trained when they name different ones. Raises LabError when
    the base is not there.
    """
    layout = base_layout(base) if base else None
    described, adapters = [], []
    for source, name in zip(sources, names or [None] * len(sources), strict=True):
        name = name or Path(source).expanduser().resolve().name
        try:
            folder = find_folder(source)
            adapter = load(folder, name=name)
            described.append(describe(adapter, folder))
            adapters.append(adapter)
        except LabError as error:
            described.append(_unreadable(source, name, str(error)))
    if base:
        adapters = on_one_base(adapters, base, note=lambda text: print(f"note: {text}", file=sys.stderr))
    return report(adapters, layout, described=described), adapters


def on_one_base(
    adapters: Sequence[LoraAdapter], base: str, note: Callable[[str], None] | None = None
) -> list[LoraAdapter]:
    """The adapters as ones of `base`: as they are when they all state one, else with this name.

    note: told, in a sentence each, whose stated base could not be compared with this one. Raises LabError for an adapter whose
    stated base is here and has other weights.
    """
    for adapter in adapters:
        same = same_base(adapter.base, base) if adapter.base else True
        if same is False:
            raise LabError(
                f"Adapter {adapter.name!r} was trained on {adapter.base}, whose weights are not those of {base}; give its own base."
            )
        if same is None and note:
            note(f"{adapter.name} states the base {adapter.base}, which cannot be compared here; it is taken for {base}, as you say.")
    agree = len({adapter.base for adapter in adapters if adapter.base}) == 1
    return list(adapters) if agree else [replace(adapter, base=base) for adapter in adapters]


def report(
    adapters: Sequence[LoraAdapter], base_model: nn.Module | None = None, *, described: Sequence[AdapterReport] = ()
) -> SetReport:
    """What fits among the adapters (and with the base model), and what every method says to them.

    described: reports of the adapters, when they are known already, and of others that cannot be read.
    """
    described = tuple(described) or tuple(describe(adapter) for adapter in adapters)
    problems = [f"{d.name!r} cannot be read: {d.problem}" for d in described if d.problem]
    problems += compatibility_problems(adapters, base_model)
    fits = _fits(adapters, base_model) if adapters and not problems else []
    if problems:
        reasons = dict.fromkeys(METHODS, problems[0])
    else:
        reasons = {name: _refusal(method, adapters) for name, method in METHODS.items()}
    methods = [MethodReport(name, group(METHODS[name]), reason) for name, reason in reasons.items()]
    methods.sort(key=lambda method: (GROUPS.index(method.group), method.name))
    return SetReport(described, tuple(fits), tuple(problems), tuple(methods))


def base_config(source: str):
    """The configuration of "embedded", a folder or a Hub id. Raises LabError when it is not there, or quantised."""
    from transformers import AutoConfig

    folder = base_folder(source)
    local = source != str(folder) or folder.exists() or source.startswith((".", "/", "~"))
    if local and not (folder / "config.json").is_file():
        raise LabError(f"The base model {source} is not there: it is no folder with a config.json.")
    try:
        config = AutoConfig.from_pretrained(folder if local else source)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabError(f"The base model {source!r} could not be looked at: {reason}") from error
    refuse_quantised(config, source)
    return config


def base_layout(source: str) -> nn.Module:
    """The base's modules without weights. Raises LabError as `base_config` does, and for other than causal models."""
    from transformers import AutoModelForCausalLM

    config = base_config(source)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        kind = config.model_type
        raise LabError(f"The base model {source!r} is of type {kind}, not a causal language model.") from error


def _unreadable(source: str | Path, name: str, problem: str) -> AdapterReport:
    """What the config alone tells, when there is one."""
    try:
        config = read_config(find_folder(source))
    except LabError:
        return AdapterReport(name, "", problem)

    def number(key: str) -> Span | None:
        value = config.get(key)
        return (value, value) if isinstance(value, int | float) and abs(value) < 1e300 else None

    base = str(config.get("base_model_name_or_path") or "")[:200]
    rslora = bool(config.get("use_rslora"))
    return AdapterReport(name, base, problem, rank=number("r"), alpha=number("lora_alpha"), rslora=rslora)


def _fits(adapters: Sequence[LoraAdapter], base_model: nn.Module | None) -> list[str]:
    lines = []
    bases = sorted({adapter.base for adapter in adapters if adapter.base})
    silent = [repr(adapter.name) for adapter in adapters if not adapter.base]
    if bases:
        lines.append(f"base: {bases[0]}" + (f" ({', '.join(silent)} state none)" if silent else ""))
    if base_model is not None:
        lines.append("shapes: every module is a linear layer of the base model, of the same size")
    if len(adapters) < 2:
        return lines
    modules = module_names(adapters)
    shared = sum(all(module in adapter.modules for adapter in adapters) for module in modules)
    lines.append(
        f"modules: all {len(modules)} are changed by every adapter"
        if shared == len(modules)
        else f"modules: {shared} of {len(modules)} are changed by every adapter; elsewhere a missing update is zero"
    )
    ranks = [_span(_extremes(f.rank for f in adapter.modules.values())) for adapter in adapters]
    total = max(sum(a.modules[m].rank for a in adapters if m in a.modules) for m in modules)
    lines.append(f"ranks: {', '.join(ranks)}; a merge without loss has rank {total} at most")
    return lines


def _refusal(method: Method, adapters: Sequence[LoraAdapter]) -> str:
    """In the method's own words. Asked only where its limits are passed: it then refuses before any work."""
    ranks = [{a.modules[m].rank for a in adapters if m in a.modules} for m in module_names(adapters)]
    too_many = method.max_skills is not None and len(adapters) > method.max_skills
    uneven = method.equal_ranks and any(len(found) > 1 for found in ranks)
    try:
        check_several(adapters)
        if too_many or uneven:
            if method.kind == "search":
                search(method.name, adapters, lambda adapter: None, 1)
            else:
                merge(method.name, adapters)
    except LabError as error:
        return str(error)
    return ""


def _extremes(values) -> Span:
    values = list(values)
    return min(values), max(values)


def _span(span: Span) -> str:
    low, high = (f"{value:.6g}" for value in span)
    return low if low == high else f"{low} to {high}"


def _bytes(count: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000
    return f"{count:.3g} GB"
