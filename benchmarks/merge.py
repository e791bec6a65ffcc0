"""Merging two adapters of the shape of Llama-7B (160 modules, rank 32): seconds and peak memory of every static method.

    python benchmarks/merge.py [--methods svd ties_factors]

Ours are whole calls of `lab.merging.merge`, records and hashes included; PEFT's are whole calls of
`add_weighted_adapter` on a model whose base weights take no memory. On a CPU every run has a process of its own. On a GPU PEFT's
factors lie there; ours start and end on the CPU, like adapters from files, and the methods that prune ΔW compute there: transfers
count. Memory is then the GPU's.

Methods that prune ΔW work on whole matrices: they are measured once, on one q_proj and one up_proj, and counted for all
(down_proj has as many elements as up_proj). TIES is measured without the truncation too ("lab, uncut"), beside the same
computation by mergekit's functions, where mergekit is installed. PEFT's `svd` and the dense
torch.linalg.svd are measured once, on one q_proj, and counted for every module, which is less than they would take,
since up_proj and down_proj are larger. The column "measured modules" says so.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import common  # before lab: it makes the package importable
import torch
from torch import Tensor

from lab.errors import LabError
from lab.lora.adapter import LoraAdapter
from lab.merging import METHODS, get_method, merge, merge_full_rank, schema

# What PEFT calls the same computation. Its DARE draws other masks, so that those results cannot be compared.
PEFT_TYPES = {
    "cat_static": "cat",
    "linear_factors": "linear",
    "ties_factors": "ties",
    "magnitude_prune_factors": "magnitude_prune",
    "dare_linear_factors": "dare_linear",
    "dare_ties_factors": "dare_ties",
    "svd": "svd",
}
SVD_FAMILY = ("svd", "knots", "core_space", "tsv", "iso_c", "pico")
WEIGHTS = [0.5, 0.5]
Probe = dict[str, list[float]]  # ΔW x for a fixed x, by module of the first layer
UNCUT = "lab, uncut"
SQUARE, WIDE = "layers.0.q_proj", "layers.0.up_proj"


def static_methods() -> list[str]:
    kinds = ("factors", "raw factors", "delta", "coefficients")
    return [name for name, method in METHODS.items() if method.kind in kinds and method.recipe is None]


def restrict(adapter: LoraAdapter, modules: Iterable[str]) -> LoraAdapter:
    return LoraAdapter(adapter.name, adapter.base, {m: adapter.modules[m] for m in modules})


def probe(A: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> Probe:
    first = [module for module in A if module.startswith("layers.0.")]
    return {m: (B[m] @ (A[m] @ torch.linspace(-1, 1, A[m].shape[1]).to(A[m]))).tolist() for m in first}


def merge_ours(name: str, adapters: Sequence[LoraAdapter]) -> Probe:
    merged = merge(name, adapters, None if get_method(name).kind == "coefficients" else WEIGHTS).modules
    return probe({m: f.A for m, f in merged.items()}, {m: f.scaling * f.B for m, f in merged.items()})


def merge_peft(name: str, model, skills: Sequence[str], modules: Iterable[str]) -> Probe:
    density = {parameter.name: parameter.default for parameter in schema(name)}.get("density")  # PEFT has no default
    kind = PEFT_TYPES[name]
    if "merged" in model.peft_config:  # of an earlier run in this process: PEFT would keep it without a word
        model.delete_adapter("merged")
    model.add_weighted_adapter(list(skills), WEIGHTS, "merged", combination_type=kind, density=density)
    layers = {m: model.get_base_model().get_submodule(m) for m in modules}
    A = {m: layer.lora_A["merged"].weight for m, layer in layers.items()}
    B = {m: layer.scaling["merged"] * layer.lora_B["merged"].weight for m, layer in layers.items()}
    return probe(A, B)


def ties_uncut(adapters: Sequence[LoraAdapter]) -> Probe:
    updates = merge_full_rank("ties", adapters, WEIGHTS).modules
    return {m: (update.delta_weight() @ torch.linspace(-1, 1, update.shape[1])).tolist() for m, update in updates.items()}


def ties_mergekit(adapters: Sequence[LoraAdapter]) -> Probe:
    """As mergekit's `ties` with `normalize`: its own functions, on the same updates."""
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask
    from mergekit.sparsify import SparsificationMethod, sparsify

    density = {parameter.name: parameter.default for parameter in schema("ties")}["density"]
    merged = {}
    for module in adapters[0].modules:
        deltas = [adapter.delta_weight(module) for adapter in adapters]
        deltas = torch.stack([sparsify(d, density=density, method=SparsificationMethod.magnitude) for d in deltas])
        weights = torch.tensor(WEIGHTS)[:, None, None]
        deltas *= weights
        mask = get_mask(deltas, method="sum", mask_dtype=deltas.dtype)
        divisor = (weights * mask).sum(0)
        divisor[divisor == 0] = 1
        merged[module] = (deltas * mask).sum(0) / divisor
    return {m: (update @ torch.linspace(-1, 1, update.shape[1])).tolist() for m, update in merged.items()}


def main(argv: Sequence[str] | None = None) -> Path:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=static_methods(), metavar="METHOD", help="some of ours")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.set_defaults(rounds=3, device="cpu")
    options = parser.parse_args(argv)
    for name in options.methods:
        if name not in static_methods():
            raise LabError(f"{name!r} is no static method; give some of {', '.join(static_methods())}.")
    if options.quick:
        options.hidden, options.layers, options.rank, options.rounds = 64, 1, 2, 1
    device = common.find_device(options.device)
    mergekit = importlib.util.find_spec("mergekit") is not None
    if "ties" in options.methods and not mergekit:
        print("mergekit is not installed: its ties is left out.", file=sys.stderr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # here; the runs, in processes forked from this one, have them all

    skeleton = common.skeleton(options.hidden, options.layers, device)
    shapes = common.adapted_shapes(skeleton)
    count, squares = len(shapes), sum(shape == shapes[SQUARE] for shape in shapes.values())
    adapters = common.random_adapters(shapes, 2, options.rank)
    names = [adapter.name for adapter in adapters]
    held = sum(4 * (f.A.numel() + f.B.numel()) for adapter in adapters for f in adapter.modules.values())
    peft = common.peft_of(skeleton, adapters)
    one = {module: [restrict(adapter, [module]) for adapter in adapters] for module in (SQUARE, WIDE)}
    peft_one = common.peft_of(common.skeleton(options.hidden, 1, device), one[SQUARE])

    def alone(run: Callable[[], Probe]) -> common.Usage:
        def build():
            torch.set_num_threads(threads)
            return run

        print(".", end="", file=sys.stderr, flush=True)
        return common.measure_alone(build, device)

    def svd_dense() -> Probe:
        U, S, Vh = torch.linalg.svd(sum(w * a.delta_weight(SQUARE).to(device) for w, a in zip(WEIGHTS, one[SQUARE], strict=True)))
        return probe({SQUARE: Vh[: options.rank]}, {SQUARE: U[:, : options.rank] * S[: options.rank]})

    # Of every run: the function, how many modules it merges, and how often they occur.
    whole: dict[tuple[str, str], Callable[[], Probe]] = {}
    sampled: dict[tuple[str, str], list[tuple[Callable[[], Probe], int]]] = {}
    for name in options.methods:
        if get_method(name).kind == "delta":
            times = ((SQUARE, squares), (WIDE, count - squares))
            sampled[name, "lab"] = [(lambda n=name, m=m: merge_ours(n, one[m]), number) for m, number in times]
            if name == "ties":
                sampled[name, UNCUT] = [(lambda m=m: ties_uncut(one[m]), number) for m, number in times]
            if name == "ties" and mergekit:
                sampled[name, "mergekit"] = [(lambda m=m: ties_mergekit(one[m]), number) for m, number in times]
            continue
        whole[name, "lab"] = lambda n=name: merge_ours(n, adapters)
        if name == "svd":
            sampled[name, "peft"] = [(lambda: merge_peft("svd", peft_one, names, [SQUARE]), count)]
        elif name in PEFT_TYPES:
            whole[name, "peft"] = lambda n=name: merge_peft(n, peft, names, shapes)
    if set(options.methods) & set(SVD_FAMILY):
        sampled["torch.linalg.svd", "dense"] = [(svd_dense, count)]

    usages = {key: [] for key in whole}
    for _ in range(options.rounds):
        for key, run in whole.items():
            usages[key].append(alone(run))
    seconds, processor, peaks, measured, results = {}, {}, {}, {}, {}
    for key, runs in usages.items():
        seconds[key] = common.timing([usage.seconds for usage in runs])
        processor[key] = common.timing([usage.processor for usage in runs])
        peaks[key], measured[key] = max(usage.peak for usage in runs), count
        results[key] = runs[0].result
    for key, parts in sampled.items():
        runs = [(alone(run), number) for run, number in parts]
        seconds[key] = common.timing([sum(usage.seconds * number for usage, number in runs)])
        processor[key] = common.timing([sum(usage.processor * number for usage, number in runs)])
        peaks[key], measured[key] = max(usage.peak for usage, _ in runs), len(parts)
        results[key] = runs[0][0].result
    print(file=sys.stderr)
    torch.set_num_threads(threads)

    checks = []
    for key, result in results.items():
        if not all(0 < torch.tensor(values).norm() < torch.inf for values in result.values()):
            raise LabError(f"{' of '.join(key)} gave NaN, infinite values or nothing but zeros.")
    comparisons = [((n, "lab"), (n, "peft")) for n in PEFT_TYPES if n in options.methods and "dare" not in n]
    if ("ties", "mergekit") in results:
        comparisons.append((("ties", UNCUT), ("ties", "mergekit")))
    if "svd" in options.methods:
        comparisons.append((("svd", "lab"), ("torch.linalg.svd", "dense")))
    for one_key, other_key in comparisons:
        modules = results[other_key].keys()
        ours, theirs = (torch.tensor([v for m in modules for v in results[key][m]]) for key in (one_key, other_key))
        what = f"updates of {' of '.join(one_key)} and {' of '.join(other_key)}"
        checks.append(common.check(what, ours, theirs, 1e-3))

    rows = []
    for name in [*options.methods, "torch.linalg.svd"]:
        for by in ("lab", UNCUT, "mergekit", "peft", "dense"):
            if (name, by) not in seconds:
                continue
            median = seconds[name, by]["median s"]
            theirs, dense = seconds.get((name, "peft")), seconds.get(("torch.linalg.svd", "dense"))
            rows.append(
                {"method": name, "by": by, "measured modules": measured[name, by], f"s for {count}": median}
                | {
                    f"processor s for {count}": processor[name, by]["median s"],
                    "peak MB": common.megabytes(held + peaks[name, by]),
                    "faster than peft": theirs["median s"] / median if theirs and by == "lab" else None,
                    "faster than dense svd": dense["median s"] / median if name in SVD_FAMILY and by == "lab" else None,
                }
            )
    return common.report(
        "merge", device, options, rows, checks,
        [
            f"Two adapters, {count} modules, hidden {options.hidden}, rank {options.rank}, fp32; whole merges: median "
            f"of {options.rounds} rounds in turns.",
            f"measured modules: where fewer than {count}, measured once on those and counted for all {count}; "
            "dense SVDs on the smallest shape, so theirs are lower bounds, and so are the ratios to them.",
            f"peak MB: with the two adapters ({common.megabytes(held)} MB); of a sample, without the growing result.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    common.start(main)
