"""Every method on a section: what it scores, and what it costs to make and to hold."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from lab.experiments.candidates import CANDIDATES
from lab.experiments.section import Section
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.base import load_base
from lab.lora.compatibility import linear_shape
from lab.lora.stacked import attach
from lab.merging import METHODS, build
from lab.records import tables
from lab.records.record import RunRecord


def section_of(section: Section) -> Section:
    """The section as the atlas records it, apart from its own records: one seed, and methods that it does not have."""
    return replace(section, name="x3_methods" if section.name == "s5_1_math_code" else f"x3_methods_{section.name}")


def methods(section: Section, wanted: Sequence[str] = ()) -> list[str]:
    """The base, each skill, controls, and the wanted (default all) methods of the library that the section can serve."""
    shown = {name for name, method in METHODS.items() if method.recipe and method.recipe.data == "target"}  # see some of the target
    served = [name for name in wanted or METHODS if section.target.demonstrations or name not in shown]
    mixes = [name for name in section.candidates if CANDIDATES[name].role == "data"]
    controls = ["data_mix", *mixes, "new_lora", "new_lora_compute", "random_loras", "rescale_one"]
    return list(dict.fromkeys(["base", *(task.name for task in section.skills), *controls, *served]))


def memory(record: RunRecord, section: Section, model) -> float:
    """Megabytes held beside the base to answer unfolded: the factors, and for a router all skills' and its own parameters.

    Counted from the rank on record and the base's shapes, in the base's dtype; a merge on record need not lie in the store.
    """
    rank = int(record.parameters.get("rank", 0))
    layers = {
        name: linear_shape(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in record.parameters["preset"]["targets"]
    }
    size = rank * sum(sum(shape) for shape in layers.values()) * model.dtype.itemsize
    if record.method in METHODS and METHODS[record.method].kind == "router":
        own = rank // len(section.skills)
        # What the skills have learned does not change a router's size.
        skill = {name: LoraFactors(torch.ones(own, inside), torch.ones(outside, own), 1.0) for name, (outside, inside) in layers.items()}
        with attach(model, [LoraAdapter(task.name, "", skill) for task in section.skills]) as stack:
            router = build(record.method, stack)
            held = [*router.parameters(), *(b for name, b in router.named_buffers() if name not in ("order", "present"))]
            size += sum(tensor.numel() * tensor.element_size() for tensor in held)
    return size / 1e6


def table(records: Sequence[RunRecord], section: Section) -> pd.DataFrame:
    """`tables.result_table` against the library's best method, with rank, seconds to make and memory (MB) of each."""
    best = max((r for r in records if r.method in METHODS), key=lambda r: r.scores["right"]).method
    found = tables.result_table(records, reference=best)
    preset = records[0].parameters["preset"]
    model, _ = load_base(preset["base"], revision=preset["revision"], dtype=preset["dtype"])
    first = {record.method: record for record in reversed(records)}
    costs = {
        method: {
            "rank": record.parameters.get("rank"), "make": record.seconds["make"], "memory": memory(record, section, model)
        }
        for method, record in first.items()
    }  # fmt: skip
    table = found.join(pd.DataFrame.from_dict(costs, orient="index").astype(float))
    table.attrs = dict(found.attrs)  # a join drops them
    return table


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it, best first: score with its interval, difference, and costs. Strings throughout."""
    shown = tables.format_table(table[[name for name in table if name not in ("rank", "make", "memory")]])
    shown = shown[[name for name in shown if name.startswith(("right", "difference", "p (", "n ×", "unscored"))]]
    shown["rank"] = ["" if pd.isna(value) else f"{value:.0f}" for value in table["rank"]]
    shown["seconds to make"] = [f"{value:.1f}" for value in table["make"]]
    shown["memory, MB"] = [f"{value:.2f}" for value in table["memory"]]
    return shown.iloc[table["score"].astype(float).to_numpy().argsort(kind="stable")[::-1]]
