"""What a module's dotted name says: its layer, its group (attention, mlp, …) and its projection. The one parser of such names.

    model.layers.3.self_attn.q_proj                       3     attention  q_proj
    transformer.h.3.attn.c_proj                           3     attention  attn.c_proj
    transformer.h.3.mlp.c_proj                            3     mlp        mlp.c_proj
    model.layers.3.block_sparse_moe.experts.7.w1          3     mlp        block_sparse_moe.experts.7.w1
    model.vision_tower.encoder.layers.3.self_attn.q_proj  3     attention  vision_tower.encoder.q_proj
    lm_head                                               None  other      lm_head

A projection is the last part of the name where that alone says what it belongs to, in any model; else it is the whole way from
the layer to the module. So it does not depend on which modules an adapter has, and no two of a layer share one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

# Projections whose own name says what they belong to, as figures and tables list them.
_PROJECTIONS = {
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "o_proj", "dense"),
    "mixer": ("in_proj", "x_proj", "dt_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc_in", "fc1", "down_proj", "dense_4h_to_h", "fc_out", "fc2"),
}
# The parts of a layer that hold them, in the families that are known.
_HOLDERS = {
    "attention": ("self_attn", "self_attention", "attention", "attn"),
    "mixer": ("mixer", "mamba"),
    "mlp": ("mlp", "feed_forward", "ffn"),
}
_EMBEDDINGS = ("embed_tokens", "embed_in", "embed_positions", "embeddings", "word_embeddings", "wte", "wpe")
GROUPS = ("attention", "mixer", "mlp", "embedding", "other")
_GROUP_OF = {projection: group for group, projections in _PROJECTIONS.items() for projection in projections}
_USUAL = tuple(_GROUP_OF)
# Before a layer's number these parts say nothing; any other (vision_tower, encoder) tells a second stack of layers from the first.
_STACKS = {"base_model", "model", "language_model", "text_model", "transformer", "gpt_neox", "backbone", "decoder",
           "layers", "layer", "h", "blocks", "block"}  # fmt: skip


@dataclass(frozen=True)
class ModuleName:
    """layer: its number, None outside the layers. group: one of GROUPS. projection: see the head of this file; outside the layers
    the whole name. block: the name of the layer that holds the module (`model.layers.3`); outside the layers the module's."""

    layer: int | None
    group: str
    projection: str
    block: str


@cache
def parse(module: str) -> ModuleName:
    """What a module's dotted name says. The first number with something behind it is the layer's; an expert's is the second."""
    parts = module.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), None)
    if number is None:
        return ModuleName(None, _group(parts), module, module)
    within = parts[number + 1 :]
    group = _group(within)
    if len(within) == 2 and _GROUP_OF.get(within[1]) == group and within[0] in _HOLDERS[group]:
        within = within[1:]
    stack = [part for part in parts[:number] if part not in _STACKS]
    return ModuleName(int(parts[number]), group, ".".join([*stack, *within]), ".".join(parts[: number + 1]))


def natural_order(module: str) -> tuple:
    """Sort key under which `layers.2` comes before `layers.10`."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in module.split("."))


@dataclass(frozen=True)
class Layout:
    """Modules as layers × projections. places: (layer, projection) of each module, all different. layers: their numbers, ascending,
    last None where a module is outside them. projections: attention's first, and as they are usually listed."""

    places: tuple[tuple[int | None, str], ...]
    layers: tuple[int | None, ...]
    projections: tuple[str, ...]


def layout(modules: Sequence[str]) -> Layout:
    """Modules as layers × projections. Should two of an unknown model come to lie on one place, they go by their whole names."""
    parsed = [parse(module) for module in modules]
    shared = Counter((name.layer, name.projection) for name in parsed)
    places = tuple(
        (name.layer, name.projection if shared[name.layer, name.projection] == 1 else module)
        for name, module in zip(parsed, modules, strict=True)
    )
    layers = sorted({layer for layer, _ in places}, key=lambda layer: (layer is None, layer))
    return Layout(places, tuple(layers), tuple(sorted({projection for _, projection in places}, key=_order)))


def matching(modules: Iterable[str], target: str) -> list[str]:
    """The modules that a LoRA's target names, by PEFT's rule: those whose name is it, or ends with a dot and it."""
    return [module for module in modules if module == target or module.endswith(f".{target}")]


def _group(parts: Sequence[str]) -> str:
    """By the last part, else by the part of the layer that holds it."""
    if parts[-1] in _GROUP_OF:
        return _GROUP_OF[parts[-1]]
    if parts[-1] in _EMBEDDINGS:
        return "embedding"
    for group, holders in _HOLDERS.items():
        if any(part in holders for part in parts):
            return group
    words = ".".join(parts[:-1])
    return "attention" if "attn" in words or "attention" in words else "mlp" if "moe" in words or "expert" in words else "other"


def _order(projection: str) -> tuple:
    group, last = parse(projection).group, projection.rpartition(".")[2]
    return (GROUPS.index(group), projection.count("."), _USUAL.index(last) if last in _USUAL else len(_USUAL), natural_order(projection))
