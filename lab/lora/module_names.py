"""The one parser of module names: in which layer a module stands, in which group, and which projection it is.

Read off the names of Llama, Mistral, Qwen, Gemma (nested ones too), GPT-2, GPT-NeoX, Phi (fused q/k/v and gate/up), Mamba, Mixtral and the
fused experts of transformers 5; a name of another architecture is kept longer, never confused with another.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBER = re.compile("[0-9]{1,18}")  # no more: a name is anybody's text
ATTENTION, MLP, MIXER, EMBEDDING, OTHER = "attention", "mlp", "mixer", "embedding", "other"
_CONTAINERS = {
    ATTENTION: ("self_attn", "attn", "attention", "self_attention", "SelfAttention", "cross_attn", "encoder_attn", "linear_attn"),
    MLP: ("mlp", "feed_forward", "ffn", "block_sparse_moe", "DenseReluDense", "experts", "shared_expert"),
    MIXER: ("mixer", "mamba", "ssm"),
}  # fmt: skip
# Names that stand in one group only, so that they need no container before them; in the order in which people list them.
_OWN = {
    ATTENTION: ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value"),
    MLP: ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2"),
}  # fmt: skip
_EMBEDDINGS = ("embed_tokens", "embed_in", "embeddings", "word_embeddings", "wte", "wpe")
_USUAL = ("self_attn", "attn", "attention", "self_attention", "mlp")  # a layer has one of each at most
_ORDER = [name for names in _OWN.values() for name in names]


@dataclass(frozen=True)
class Place:
    """stack: what stands before the layer's number ("model.layers"; "" outside the layers). layer: None outside. group: "attention",
    "mlp", "mixer", "embedding" or "other". projection: its name inside the layer, no two of a layer alike; the whole name outside."""

    stack: str
    layer: int | None
    group: str
    projection: str

    @property
    def block(self) -> str:
        """The layer's own module name; of a module outside the layers, its own."""
        return f"{self.stack}.{self.layer}".lstrip(".") if self.layer is not None else self.projection


@functools.lru_cache(maxsize=100_000)
def parse(module: str) -> Place:
    """The place of a module, by its name as in `model.named_modules()`. The first number with something behind it is the layer's."""
    parts = module.split(".")
    at = next((i for i, part in enumerate(parts[:-1]) if _NUMBER.fullmatch(part)), None)
    if at is None:
        return Place("", None, EMBEDDING if parts[-1] in _EMBEDDINGS else OTHER, module)
    inner = parts[at + 1 :]
    group = next((g for part in inner for g, names in _CONTAINERS.items() if part in names), None)
    group = group or next((g for g, names in _OWN.items() if inner[-1] in names), OTHER)
    own = len(inner) == 2 and inner[0] in _USUAL and any(inner[1] in names for names in _OWN.values())
    nested = len(inner) > 2 and inner[0] in (*_USUAL, "block_sparse_moe", "feed_forward")  # experts.3.w1, shared_expert.up_proj
    return Place(".".join(parts[:at]), int(parts[at]), group, ".".join(inner[1:] if own or nested else inner))


def usual_order(projection: str) -> tuple:
    """Sort key of projections: q, k, v, o, gate, up, down, then the others by name, experts by their number."""
    known = _ORDER.index(projection) if projection in _ORDER else len(_ORDER)
    return known, natural_order(projection)


def natural_order(module: str) -> tuple:
    """Sort key under which `layers.2` comes before `layers.10`."""
    return tuple((0, int(part), "") if _NUMBER.fullmatch(part) else (1, 0, part) for part in module.split("."))


def places_of(modules: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """(layer, projection) of each module, all different: where they are of several stacks (a vision tower beside a language model),
    a projection carries its stack's name."""
    places = {module: parse(module) for module in modules}
    several = len({place.stack for place in places.values() if place.layer is not None}) > 1
    return {m: (p.layer, f"{p.stack}: {p.projection}" if several and p.layer is not None else p.projection) for m, p in places.items()}


def grid(modules: Iterable[str]) -> tuple[list[int], list[str], dict[str, tuple[int, int]]]:
    """Modules as layers × projections: the layers, the projections, and for each module its row and column.

    A module outside the layers counts as one of the first layer.
    """
    places = places_of(modules)
    layers = sorted({layer or 0 for layer, _ in places.values()})
    projections = sorted({projection for _, projection in places.values()}, key=usual_order)
    return layers, projections, {m: (layers.index(layer or 0), projections.index(name)) for m, (layer, name) in places.items()}
