"""PEFT folders and live PEFT models: read them into adapters, write adapters as them; plain LoRA only."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.errors import LabError
from lab.files import atomic_folder, write_atomic
from lab.lora.adapter import LoraAdapter, LoraFactors, some_of
from lab.lora.compatibility import check_compatible

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank

# Initialisations that change the base weight: the saved factors mean nothing on the original base.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings besides PEFT's own "is_lora_variant" fields that make the update something else than s·B·A on known
# modules.
_REFUSED_SETTINGS = {
    "use_qalora": "QALoRA",
    "lora_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable tokens (trainable_token_indices)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
}
_VARIANT_NAMES = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
# Written by early PEFT versions and tools; without meaning for the weights.
_HARMLESS_SETTINGS = {"enable_lora", "merge_weights", "runtime_config"}


def engine_rank(rank: int) -> int:
    """The next rank that serving engines accept (ENGINE_RANKS). Raises LabError above the largest."""
    for legal in ENGINE_RANKS:
        if rank <= legal:
            return legal
    raise LabError(
        f"Rank {rank} is above {ENGINE_RANKS[-1]}, the largest that serving engines accept; truncate the "
        f"merge."
    )


# Reading


def load(
    source: str | Path, *, name: str | None = None, base: str | None = None, revision: str | None = None
) -> LoraAdapter:
    """Read a PEFT LoRA folder, or a Hub id when no such folder exists; only safetensors, never a pickle.

    name: default the folder's name. base: replaces base_model_name_or_path, for the same model under another
    name. Raises LabError for everything that plain factors cannot represent (DoRA, lora_bias,
    modules_to_save, …), naming it, and for missing, truncated, non-finite or inconsistent content.
    """
    folder = find_folder(source, revision)
    config = read_config(folder)
    refuse_variants(config, str(folder))
    tensors, metadata = _read_weights(folder)
    factors = _factors(tensors, config, folder)
    return LoraAdapter(
        name=name or Path(source).expanduser().resolve().name,
        base=base if base is not None else config.get("base_model_name_or_path") or "",
        modules=factors,
        recipe=_read_recipe(metadata),
    )


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The adapter's folder here, after fetching it where `source` is a Hub id. Raises LabError where there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if (
        isinstance(source, Path)
        or folder.exists()
        or not re.fullmatch(r"[\w.-]+/[\w.-]+", source)
        or source.startswith(".")
    ):
        raise LabError(
            f"{source} is not a folder; give the folder of a PEFT adapter or a Hub id such as owner/name."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise LabError(
            f"{source} is neither a folder here nor an adapter on the Hub; check the name."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise LabError(
            f"{source} is not a folder here and the Hub cannot be reached; give a local folder or connect "
            f"to the network."
        ) from error


def read_config(folder: Path) -> dict:
    """adapter_config.json as it is. Raises LabError when it is missing, no JSON or without a peft_type."""
    path = folder / CONFIG
    if not path.is_file():
        raise LabError(f"{folder} has no {CONFIG}; give the folder that PEFT's save_pretrained wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LabError(f"{path} cannot be read as JSON; copy or export the adapter again.") from error
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise LabError(
            f"{path} has no peft_type, so it is not a PEFT adapter; export the adapter again with PEFT."
        )
    return config


def refuse_variants(config: Mapping, where: str) -> None:
    """Raise LabError, naming the variant, when a PEFT config describes anything but plain LoRA factors."""
    from peft import LoraConfig

    def refuse(variant: str):
        raise LabError(
            f"{where} uses {variant}, which plain LoRA factors cannot represent; give a plain LoRA adapter."
        )

    peft_type = str(getattr(config["peft_type"], "value", config["peft_type"]))
    if peft_type != "LORA":
        raise LabError(f"{where} is of PEFT type {peft_type}, not LORA; give a LoRA adapter.")
    known = {f.name: f for f in dataclasses.fields(LoraConfig)}
    for setting, value in config.items():
        if not value or setting in _HARMLESS_SETTINGS:
            continue
        if setting in _REFUSED_SETTINGS:
            refuse(_REFUSED_SETTINGS[setting])
        elif setting not in known:
            refuse(f"the setting {setting!r} (not known to the installed PEFT)")
        elif known[setting].metadata.get("is_lora_variant"):
            refuse(_VARIANT_NAMES.get(setting, setting))
    if config.get("bias", "none") != "none":
        refuse(f"bias={config['bias']!r} (trained biases)")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        refuse(
            f"init_lora_weights={init!r} (a changed base; convert it with "
            f"path_initial_model_for_weight_conversion)"
        )


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise LabError(
                f"{folder} holds its weights as a pickle (adapter_model.bin), which can run code; convert "
                f"it to {WEIGHTS}."
            )
        raise LabError(
            f"{folder} has no {WEIGHTS} (pickled weights are never read); export the adapter with "
            f"safetensors."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise LabError(
            f"{path} is truncated or not a safetensors file; copy or export the adapter again."
        ) from error


def _read_recipe(metadata: Mapping[str, str]) -> dict:
    try:
        recipe = json.loads(metadata.get("recipe", "{}"))
    except ValueError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight")


def _factors(tensors: Mapping[str, Tensor], config: Mapping, folder: Path) -> dict[str, LoraFactors]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise LabError(f"{folder} {_unknown_key(key)}; give a plain LoRA adapter.")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise LabError(f"{folder} stores {key!r} as {tensor.dtype}; export it as fp32, fp16 or bf16.")
        if tensor.ndim != 2:
            raise LabError(
                f"{folder} stores {key!r} with shape {tuple(tensor.shape)}; only linear layers are supported."
            )
        pair = pairs.setdefault(match["module"], {})
        if match["factor"] in pair:
            raise LabError(
                f"{folder} holds module {match['module']!r} under two adapter names; export one adapter only."
            )
        pair[match["factor"]] = tensor.float()
    factors = {}
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise LabError(
                f"{folder} holds only lora_{next(iter(pair))} of module {module!r}; copy or export the "
                f"adapter again."
            )
        rank, scaling = _rank_and_scaling(module, config, folder)
        if (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
            raise LabError(
                f"{folder} has rank {rank} for module {module!r} in {CONFIG}, but its factors have shapes A "
                f"{tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)}; the config and the weights do "
                f"not belong together."
            )
        factors[module] = LoraFactors(pair["A"], pair["B"], scaling)
    if not factors:
        raise LabError(f"{folder}/{WEIGHTS} holds no LoRA weights; export the adapter again.")
    return factors


def _unknown_key(key: str) -> str:
    if "lora_embedding" in key:
        return f"has LoRA on an embedding ({key!r}), which is not supported"
    if "lora_magnitude_vector" in key:
        return f"uses DoRA ({key!r}), which plain LoRA factors cannot represent"
    if re.search(r"\.lora_[AB]\b.*\.bias$", key):
        return f"uses lora_bias ({key!r}), which plain LoRA factors cannot represent"
    if "lora_" not in key:
        return (
            f"carries whole weights besides its factors ({key!r}, e.g. modules_to_save or resized embeddings)"
        )
    return f"holds {key!r}, which is not a plain LoRA factor"


def _rank_and_scaling(module: str, config: Mapping, folder: Path) -> tuple[int, float]:
    from peft.utils.other import get_pattern_key

    def resolve(patterns: str, default: str):
        table = config.get(patterns) or {}
        value = table.get(get_pattern_key(table.keys(), module), config.get(default))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LabError(
                f"{folder}/{CONFIG} gives no number for {default} (module {module!r}); export the adapter "
                f"again."
            )
        return value

    rank, alpha = resolve("rank_pattern", "r"), resolve("alpha_pattern", "lora_alpha")
    if rank < 1:
        raise LabError(f"{folder}/{CONFIG} gives rank {rank} for module {module!r}; a rank is at least 1.")
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


# Writing


def save(
    folder: str | Path,
    adapter: LoraAdapter,
    *,
    recipe: Mapping[str, object] | None = None,
    dtype: str = "float32",
    pad_to_rank: int | None = None,
    beside: Mapping[str, str | bytes] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Write an ordinary PEFT folder that any engine reads: one global r (the largest rank or `pad_to_rank`;
    smaller modules are padded with zeros), lora_alpha = r, the scaling folded into B, no rsLoRA, empty
    patterns, explicit target_modules.

    recipe: replaces adapter.recipe; written as recipe.json and into the safetensors metadata. dtype: one of
    DTYPES. beside: content of further files in the folder, by name. Raises LabError when the folder exists
    (unless `overwrite`), for a full disk, a dtype that overflows, a rank too small.
    """
    if dtype not in DTYPES:
        raise LabError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    rank = adapter.rank if pad_to_rank is None else pad_to_rank
    if rank < adapter.rank:
        raise LabError(
            f"Adapter {adapter.name!r} has rank {adapter.rank}, which does not fit into rank {rank}; "
            f"truncate it first."
        )
    tensors = {key: tensor.to(DTYPES[dtype]) for key, tensor in _uniform_tensors(adapter, rank).items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise LabError(
                f"{key} of adapter {adapter.name!r} overflows {dtype}; choose float32 or bfloat16."
            )
    recipe_text = json.dumps(dict(adapter.recipe if recipe is None else recipe), indent=2, ensure_ascii=False)
    with atomic_folder(folder, overwrite) as temporary:
        write_atomic(temporary / CONFIG, json.dumps(_uniform_config(adapter, rank), indent=2) + "\n")
        write_atomic(temporary / "recipe.json", recipe_text + "\n")
        for name, content in beside.items():
            write_atomic(temporary / name, content)
        try:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt", "recipe": recipe_text})
        except SafetensorError as error:
            raise LabError(
                f"Could not write {folder}: {error}; free some space or choose another folder."
            ) from error
        os.chmod(temporary / WEIGHTS, 0o644)  # safetensors leaves it to the owner alone
        with open(temporary / WEIGHTS, "rb+") as file:
            os.fsync(file.fileno())


def _uniform_tensors(adapter: LoraAdapter, rank: int) -> dict[str, Tensor]:
    tensors = {}
    for module, factors in adapter.modules.items():
        A = torch.zeros(rank, factors.shape[1])
        B = torch.zeros(factors.shape[0], rank)
        A[: factors.rank] = factors.A
        B[:, : factors.rank] = factors.scaling * factors.B
        tensors[f"base_model.model.{module}.lora_A.weight"] = A
        tensors[f"base_model.model.{module}.lora_B.weight"] = B
    return tensors


def _uniform_config(adapter: LoraAdapter, rank: int) -> dict:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(adapter.modules),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


# Live PEFT models


def from_peft(model: nn.Module, adapter_name: str = "default", *, name: str | None = None) -> LoraAdapter:
    """The factors of one adapter of a live PEFT model, copied to the CPU. Raises LabError as `load` does."""
    from peft.tuners.lora import LoraLayer

    if adapter_name not in getattr(model, "peft_config", {}):
        raise LabError(
            f"The model has no adapter {adapter_name!r}; it has {some_of(getattr(model, 'peft_config', {}))}."
        )
    config = model.peft_config[adapter_name].to_dict()
    refuse_variants(config, f"Adapter {adapter_name!r}")
    modules = {}
    for module, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        module = module.removeprefix("base_model.model.")
        if adapter_name in layer.lora_embedding_A:
            raise LabError(
                f"Adapter {adapter_name!r} has LoRA on an embedding ({module!r}), which is not supported."
            )
        if adapter_name in layer.lora_A:
            A, B = (
                f[adapter_name].weight.detach().float().cpu().clone() for f in (layer.lora_A, layer.lora_B)
            )
            modules[module] = LoraFactors(A, B, float(layer.scaling[adapter_name]))
    return LoraAdapter(name or adapter_name, config.get("base_model_name_or_path") or "", modules)


def to_peft(model: nn.Module, adapter: LoraAdapter, adapter_name: str = "default") -> nn.Module:
    """Put the adapter onto a base model, or beside the others of a PEFT model; returns the PEFT model.

    Raises LabError when the name is taken or the adapter does not fit the base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    settings = _uniform_config(adapter, adapter.rank)
    del settings["peft_type"]
    config = LoraConfig(**settings)
    if isinstance(model, PeftModel):
        if adapter_name in model.peft_config:
            raise LabError(f"The model has an adapter {adapter_name!r} already; choose another name.")
        model.add_adapter(adapter_name, config)
    else:
        check_compatible([adapter], model)
        model = get_peft_model(model, config, adapter_name=adapter_name)
    set_peft_model_state_dict(model, _uniform_tensors(adapter, adapter.rank), adapter_name=adapter_name)
    return model
