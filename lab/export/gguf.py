"""A LoRA adapter as a GGUF file, which llama.cpp and Ollama take as it is; sources: llama.cpp `convert_lora_to_gguf.py`, `llama-adapter.cpp`."""


import numpy as np
import torch
from torch import Tensor

from lab.errors import LabError
from lab.files import temporary_folder
from lab.lora.adapter import LoraAdapter

FILE = "adapter.gguf"
# transformers' model_type: (llama.cpp's architecture, whether it keeps the rows of q and k in another order).
ARCHITECTURES = {
    "llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False),
    "gemma": ("gemma", False), "gemma2": ("gemma2", False), "gemma3_text": ("gemma3", False), "phi3": ("phi3", False),
}  # fmt: skip


def adapter_gguf(adapter: LoraAdapter, config, *, dtype: str = "float32", base_name: str = "") -> bytes:
    """The file's content. config: the base's, as transformers reads it. dtype: float32 or float16 (GGUF's own; else float32).

    Every module is padded to one rank, which is also alpha, since the file knows one alpha only; the scaling is in B. Raises
    LabError for an architecture or module that llama.cpp has no name for, and for a head that shares its weight with the embedding.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFType, GGUFWriter, Keys, get_tensor_name_map

    if config.model_type not in ARCHITECTURES:
        raise LabError(f"A base of type {config.model_type} is not written as GGUF here; known are {', '.join(ARCHITECTURES)}.")
    architecture, reordered = ARCHITECTURES[config.model_type]
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    number = np.float16 if dtype == "float16" else np.float32
    rank = adapter.rank
    with temporary_folder("gguf") as folder:
        file = folder / FILE
        writer = GGUFWriter(file, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(adapter.name)
        if base_name:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, base_name)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
        for module, factors in adapter.modules.items():
            name = names.get_name(module)
            if name is None:
                raise LabError(f"llama.cpp has no name for module {module!r} of a {config.model_type} base; give the PEFT folder instead.")
            if name == "output" and config.tie_word_embeddings:
                raise LabError(f"{module!r} shares its weight with the embedding, which llama.cpp cannot adapt; leave it out of the merge.")
            A, B = torch.zeros(rank, factors.shape[1]), torch.zeros(factors.shape[0], rank)
            A[: factors.rank], B[:, : factors.rank] = factors.A, factors.scaling * factors.B
            if reordered and name.endswith(("attn_q", "attn_k")):
                heads = config.num_attention_heads if name.endswith("attn_q") else config.num_key_value_heads
                B = _rotary_pairs_apart(B, heads)
            writer.add_tensor(f"{name}.weight.lora_a", A.numpy().astype(number))
            writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(B.numpy().astype(number)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _rotary_pairs_apart(B: Tensor, heads: int) -> Tensor:
    """Rows of B (out, r) in the order of llama.cpp's q and k: within a head, the two halves alternate."""
    return B.view(heads, 2, B.shape[0] // heads // 2, B.shape[1]).transpose(1, 2).reshape(B.shape)
