"""Shared by the benchmarks: interleaved timing, peak memory, the record that is kept, and real layer shapes."""

import argparse
import copy
import gc
import itertools
import json
import multiprocessing
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

# `python benchmarks/step.py` also where the package is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.files import write_atomic
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.compatibility import linear_shape
from lab.merging.registry import seeded_generator

RESULTS = Path(__file__).resolve().parent / "results"
ADAPTED = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # the paper's target modules
Variant = Callable[[], object]


# Arguments and machine


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="how often every variant is timed, in turns")
    parser.add_argument("--quick", action="store_true", help="toy size: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON record")
    return parser


def start(main: Callable[[], None]) -> None:
    """Run a benchmark as a program: bad input is one line and exit code 1."""
    try:
        main()
    except LabError as error:
        sys.exit(str(error))


def find_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise LabError(f"There is no device {name!r} here; give auto or cpu.")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def slug(device: torch.device) -> str:
    """The device in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", device_name(device).lower())).strip("-")


# Time


def interleave(variants: Mapping[str, Variant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call, by variant: one call each to warm up, then A B C, A B C, …"""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            elapsed = seconds_of(run, device)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def seconds_of(run: Variant, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def recorded(run: Variant, device: torch.device) -> Variant:
    """The same work, recorded once as a CUDA graph and replayed: without what Python and the launches of kernels take.

    Shapes and addresses stay those of the recording. Raises LabError on a CPU, and where something in it cannot be recorded.
    """
    if device.type != "cuda":
        raise LabError("CUDA graphs need a GPU.")
    try:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # what is set up at first use must not be recorded
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        raise LabError(f"This cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}") from error
    return graph.replay


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# Memory


@dataclass(frozen=True)
class Usage:
    """Bytes held before the run, bytes at its peak (both above an empty process), its seconds and its result.

    processor: seconds of processor time, of all threads together: steadier than the clock's where others work beside.
    """

    held: int
    peak: int
    seconds: float
    processor: float
    result: object


def measure_alone(build: Callable[[], Variant], device: torch.device) -> Usage:
    """Build a variant and run it once: on a CPU in a process of its own, on a GPU by its allocator's counters.

    On a CPU the result must be plain data. The process is forked: call this before the present process has run
    any operation on several threads, which a forked process could not run any more.
    """
    if device.type == "cuda":
        gc.collect()  # models and their hooks hold each other
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = build()
        held = torch.cuda.memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        start, processor = time.perf_counter(), time.process_time()
        result = run()
        torch.cuda.synchronize()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        return Usage(held, torch.cuda.max_memory_allocated() - before, seconds, processor, result)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_here, args=(build, sender))
    child.start()
    sender.close()
    try:
        usage = receiver.recv()
    except EOFError:
        raise LabError("The process that measures memory was killed; is there enough memory?") from None
    finally:
        child.join()
    if isinstance(usage, Exception):
        raise usage
    return usage


def _measure_here(build: Callable[[], Variant], sender) -> None:
    try:
        before = _resident("VmRSS")
        run = build()
        held = _resident("VmRSS") - before
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")  # the peak starts again from what is held
        start, processor = time.perf_counter(), time.process_time()
        result = run()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        sender.send(Usage(held, _resident("VmHWM") - before, seconds, processor, result))
    except Exception as error:  # raised again by the parent
        sender.send(error)


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: the peak of the whole process
    return int(re.search(rf"{field}:\s*(\d+)", status.read_text())[1]) * 1024


# Correctness


def relative_error(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
    return ((ours - reference).norm() / reference.norm()).item()


def check(what: str, ours: Tensor, reference: Tensor, tolerance: float) -> dict:
    """A record of the comparison. Raises LabError when the relative error is above the tolerance."""
    error = relative_error(ours, reference)
    if not error <= tolerance:
        raise LabError(f"{what} differ by {error:.2e} (relative), more than {tolerance:g}: the timings mean nothing.")
    return {"check": what, "relative_error": error, "tolerance": tolerance}


# The record


def report(
    name: str,
    device: torch.device,
    arguments: argparse.Namespace,
    rows: Sequence[dict],
    checks: Sequence[dict],
    notes: Sequence[str],
) -> Path:
    """Print the rows and the notes, and write <out>/<name>-<device>.json."""
    for columns, group in itertools.groupby(rows, key=tuple):
        print("\n" + table(list(group), columns))
    print("\n" + "\n".join(notes))
    for c in checks:
        print(f"Checked: {c['check']}, relative error {c['relative_error']:.1e}.")
    record = {
        "benchmark": name,
        "device": device_name(device),
        "versions": {p: version(p) for p in ("torch", "transformers", "peft")} | {"python": platform.python_version()},
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("out", "device")},
        "rows": list(rows),
        "checks": list(checks),
        "notes": list(notes),
    }
    path = arguments.out / f"{name}-{slug(device)}.json"
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"Written to {path}.")
    return path


def table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    cells = [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def timing(seconds: Sequence[float]) -> dict:
    return {"median s": statistics.median(seconds), "min s": min(seconds)}


def megabytes(count: int) -> int:
    return round(count / 2**20)


# Models and adapters of real shapes


def intermediate_size(hidden: int) -> int:
    """That of the Llamas: 11008 at hidden 4096, 5504 at 2048."""
    return hidden * 43 // 16


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random weights of norm-keeping size from a short repeated stream: quick at any size, the same for everybody."""
    stream = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for parameter in module.parameters():
        if parameter.ndim == 1:  # norms
            parameter.fill_(1.0)
            continue
        flat, here = parameter.view(-1), stream.to(parameter)
        for start in range(0, flat.numel(), len(stream)):
            part = flat[start : start + len(stream)]
            part.copy_(here[: len(part)])
        flat.mul_(parameter.shape[1] ** -0.5)


def random_adapters(shapes: Mapping[str, tuple[int, int]], skills: int, rank: int) -> list[LoraAdapter]:
    """Adapters named skill1, skill2, …; each update gives outputs a fifth as large as those of `fill`'s weights."""
    return [
        LoraAdapter(
            name,
            "",
            {
                module: LoraFactors(
                    torch.randn(rank, n_in, generator=generator).mul_(n_in**-0.5),
                    torch.randn(n_out, rank, generator=generator).mul_(0.2 / rank**0.5),
                )
                for module, (n_out, n_in) in shapes.items()
            },
        )
        for name in (f"skill{i + 1}" for i in range(skills))
        for generator in [seeded_generator(0, name)]
    ]


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules with the very same parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def adapted_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) by name of every module that an adapter of the paper changes."""
    return {n: linear_shape(m) for n, m in model.named_modules() if n.rpartition(".")[2] in ADAPTED}


def skeleton(hidden: int, layers: int, device: torch.device | str = "cpu") -> nn.Module:
    """The adapted linear layers of a Llama under their names; their weights are zeros that take no memory."""
    wide = intermediate_size(hidden)
    shapes = {name: (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj")}
    shapes |= {"up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Module() for _ in range(layers))
    for layer in model.layers:
        for name, (n_out, n_in) in shapes.items():
            linear = nn.Linear(n_in, n_out, bias=False, device="meta")
            linear.weight = nn.Parameter(torch.zeros(1, device=device).expand(n_out, n_in), requires_grad=False)
            setattr(layer, name, linear)
    return model


def peft_of(model: nn.Module, adapters: Sequence[LoraAdapter]):
    """The model with all adapters active in PEFT, frozen, sharing our factors' memory where dtype and device allow."""
    from peft import LoraConfig, get_peft_model

    for adapter in adapters:
        rank = adapter.rank
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(adapter.modules), lora_dropout=0.0)
        if adapter is adapters[0]:
            peft = get_peft_model(model, config, adapter_name=adapter.name, autocast_adapter_dtype=False)
        else:
            peft.add_adapter(adapter.name, config, autocast_adapter_dtype=False)
        for module, factors in adapter.modules.items():
            layer = peft.get_base_model().get_submodule(module)
            weight = layer.get_base_layer().weight
            layer.lora_A[adapter.name].weight = nn.Parameter(factors.A.to(weight.device, weight.dtype))
            layer.lora_B[adapter.name].weight = nn.Parameter(factors.B.to(weight.device, weight.dtype))
            layer.scaling[adapter.name] = factors.scaling
    peft.base_model.set_adapter([adapter.name for adapter in adapters])
    return peft.requires_grad_(False).eval()
