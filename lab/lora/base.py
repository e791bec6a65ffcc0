"""The base model: an embedded one, one from a wheel, a local folder or GGUF file, or a Hub id."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lab.errors import LabError
from lab.files import PROJECT, content_hash
from lab.lora.gguf import converted, is_gguf

DTYPES = ("float32", "float16", "bfloat16")
# Endings of what quantised weights have beside them: fp8, compressed-tensors, GPTQ and AWQ, bitsandbytes, mxfp4.
_SCALES = ("weight_scale_inv", "weight_scale", "weight_packed", ".qweight", ".qzeros", ".SCB", ".absmax", "_blocks")
_WORLD = PROJECT / "lab" / "world"
# The bases that ship: of Section 5.1, of the reading sections (5.2, 5.3), of the prompt formats (5.4).
EMBEDDED = {
    "embedded": _WORLD / "base", "embedded-reading": _WORLD / "reading" / "base", "embedded-letters": _WORLD / "letters" / "base",
}  # fmt: skip


def load_base(source: str, *, revision: str | None = None, dtype: str = "float32", device: str | None = None):
    """(model, tokenizer) of an EMBEDDED base, one of lab.lora.gguf.PACKED, a folder with a causal language model (safetensors), a GGUF
    file, or a Hub id.

    Raises LabError when it is not there, is no causal language model, has only pickled weights, or cannot be reached.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, local = _place(source)
    if local:
        _check_folder(folder)
    name = str(folder) if local else source
    options = {} if local else {"revision": revision}
    if dtype not in DTYPES:
        raise LabError(f"dtype is {dtype!r}; choose {', '.join(DTYPES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LabError(f"The device is {device}, but no GPU is available here; choose cpu.")
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except _failures() as error:
        raise _not_loaded(source, local, error) from error
    quantisation = refuse_quantised(config, source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), use_safetensors=True, **options)
    except _failures() as error:
        raise _not_loaded(source, local, error) from error
    if tokenizer.eos_token_id is None:
        raise LabError(f"The tokenizer of {source!r} has no end-of-text token; set one in its tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = source
    return (model if quantisation else model.to(device)).eval(), tokenizer  # what is quantised was put in place when loaded


def check_base(source: str, *, folding: bool = False) -> None:
    """Raise LabError, as load_base would, for a base whose configuration is missing, quantised or cannot be reached. Reads no weights.

    folding: an update is to be added to its weights, so that no quantisation is allowed.
    """
    folder, local = _place(source)
    if local:
        _check_folder(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder if local else source)
    except _failures() as error:
        raise _not_loaded(source, local, error) from error
    refuse_quantised(config, source, folding=folding)


def refuse_quantised(config, source: str, *, folding: bool = False) -> str:
    """The name of the base's quantisation, "" for none. Raises LabError, naming it, for all but bitsandbytes where that is
    installed, and for every one where `folding`.
    """
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return ""
    settings = settings if isinstance(settings, Mapping) else vars(settings)
    method = settings.get("quant_method") or "an unnamed method"
    method = str(getattr(method, "value", method))
    if folding:
        raise LabError(
            f"The base model {source!r} is quantised ({method}), and sums cannot be written into such weights; fold into the unquantised "
            f"model that it was made from, and quantise the result again."
        )
    if method != "bitsandbytes":
        raise LabError(f"The base model {source!r} is quantised ({method}), which is not read here; give the unquantised model.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabError(
            f"The base model {source!r} is quantised by bitsandbytes, which is not installed; install it, or give the unquantised model."
        )
    return method


def _failures() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HTTPError  # httpx2's, or httpx's: whichever the Hub's client is made with

    return (OSError, ValueError, KeyError, SafetensorError, HTTPError)


def _not_loaded(source: str, local: bool, error: Exception) -> LabError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return LabError(f"The base model {source!r} could not be loaded from {'the folder' if local else 'the Hub'}: {reason}")


def _place(source: str) -> tuple[Path, bool]:
    """(folder, whether the base is read from there and not from the Hub)."""
    folder = base_folder(source)
    return folder, source in EMBEDDED or is_gguf(source) or folder.exists() or source.startswith((".", "/", "~"))


def base_folder(source: str) -> Path:
    """Where a base lies: one that ships, by its name; what a GGUF file was converted to, now where it is new; else the source as
    a path."""
    return converted(source) if is_gguf(source) else EMBEDDED.get(source, Path(source))


def base_hash(source: str, revision: str | None = None) -> str:
    """What names the base in keys and records: the content of a folder, or Hub id and revision."""
    folder = base_folder(source)
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer*"), folder / "config.json"])
        return content_hash(*files)
    return content_hash(source, revision)


def same_base(stated: str, given: str) -> bool | None:
    """Whether two names mean one base: by name, or by the weights where both can be read here; None where that cannot be told."""
    if stated == given or base_folder(stated).resolve() == base_folder(given).resolve():
        return True
    folders = [base_folder(source) for source in (stated, given)]
    if not all(folder.is_dir() and any(folder.glob("*.safetensors")) for folder in folders):
        return None
    return content_hash(*sorted(folders[0].glob("*.safetensors"))) == content_hash(*sorted(folders[1].glob("*.safetensors")))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LabError(f"The base model folder {folder} does not exist.")
    if not (folder / "config.json").is_file():
        raise LabError(f"{folder} is no model folder: config.json is missing.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise LabError(
            f"{folder} holds only pickled weights, which can run code when loaded; convert them to safetensors first."
            if pickled
            else f"{folder} holds no weights (*.safetensors)."
        )
    _check_scales(folder)


def _check_scales(folder: Path) -> None:
    """Raise LabError for quantised weights whose configuration does not say so: they would be read without their scales."""
    if "quantization_config" in (folder / "config.json").read_text(encoding="utf-8", errors="replace"):
        return
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as weights:
                scale = next((key for key in weights.keys() if key.endswith(_SCALES)), None)
        except SafetensorError as error:
            raise LabError(f"The base model {str(folder)!r} could not be loaded from the folder: {file.name} is cut off or damaged.") from error
        if scale:
            raise LabError(f"{folder} holds quantised weights ({scale}), of which its config.json says nothing; give the unquantised model.")
