"""The shape of a base, counted on its modules on the meta device: any architecture, no weights, no network."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.errors import LabError
from lab.lora.base import base_folder
from lab.lora.module_names import MLP, parse

# Bases of the Hub whose configuration is known here, so that a plan fetches nothing.
CONFIGS = {
    "huggyllama/llama-7b": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
CLOSING = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2", "w2")  # back to the layer's width


@dataclass(frozen=True)
class Linear:
    """A linear module of the base and its widths."""

    name: str
    inside: int
    outside: int

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def closing(self) -> bool:
        return self.kind in CLOSING


@dataclass(frozen=True)
class Shape:
    """What decides a base's cost. Widths in numbers. multiplied: parameters that multiply each token, so all but the embedding,
    which is looked up (a tied one is the head too). linear: the modules inside the layers."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    parameters: int
    multiplied: int
    linear: tuple[Linear, ...]

    def targeted(self, targets: Iterable[str]) -> list[Linear]:
        """The modules that a LoRA on these targets changes. Raises LabError for a target that the base does not have."""
        kinds = {module.kind for module in self.linear}
        for target in targets:
            if target not in kinds:
                raise LabError(f"The base has no module called {target!r}; it has {', '.join(sorted(kinds))}.")
        return [module for module in self.linear if module.kind in set(targets)]

    def lora(self, targets: Iterable[str], rank: int) -> int:
        """Parameters of a LoRA."""
        return sum(rank * (module.inside + module.outside) for module in self.targeted(targets))

    def kept(self, targets: Sequence[str], rank: int, dropout: bool, size: float) -> float:
        """Bytes per token that a training step keeps in the layers for its backward pass. size: bytes of a number.

        Kept are the residuals before both norms, what comes out of each module and goes into a closing one, and what goes into each
        LoRA and comes out of its A. With dropout each LoRA has its input to itself, and a mask of a byte for each number.
        """
        adapted = self.targeted(targets)
        numbers = 2 * self.hidden * self.layers + rank * len(adapted)
        numbers += sum(module.inside if module.closing else module.outside for module in self.linear)
        if dropout:
            inputs = sum(module.inside for module in adapted)
            return (numbers + inputs) * size + inputs
        # Modules of a group that read the same share it; attention's closing one reads what is kept anyway.
        shared = {(parse(m.name).block, parse(m.name).group): m.inside for m in adapted if not m.closing}
        own = [m.inside for m in adapted if m.closing and parse(m.name).group == MLP]
        return (numbers + sum(shared.values()) + sum(own)) * size


@functools.cache
def shape_of(base: str) -> Shape:
    """Of a base that is known, or of a folder with its config.json. Raises LabError for another."""
    from transformers import AutoConfig

    if base in CONFIGS:
        return count(AutoConfig.for_model(**CONFIGS[base]))
    path = base_folder(base) / "config.json"
    if not path.is_file():
        raise LabError(f"The shape of {base!r} is not known without fetching it; give --base with a folder that holds its config.json.")
    try:
        return count(AutoConfig.for_model(**json.loads(path.read_text())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{path} is not the config of a causal language model: {' '.join(str(error).split())}.") from error


def count(config) -> Shape:
    """The shape of a model of this configuration (transformers), built on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    from lab.lora.compatibility import linear_shape

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    own = config.get_text_config()
    heads = getattr(own, "num_attention_heads", 0)  # none in a state space model, which keeps no keys and values
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    shapes = {name: linear_shape(module) for name, module in model.named_modules()}
    linear = [Linear(name, shape[1], shape[0]) for name, shape in shapes.items() if shape and parse(name).layer is not None]
    return Shape(
        own.hidden_size, own.num_hidden_layers, heads, getattr(own, "num_key_value_heads", None) or heads,
        getattr(own, "head_dim", None) or (own.hidden_size // heads if heads else 0), own.vocab_size, parameters,
        parameters - (0 if head is embedding else embedding.numel()), tuple(linear),
    )  # fmt: skip
