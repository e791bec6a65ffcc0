"""PEFT folders and live PEFT models: read them into adapters, write adapters as them; plain LoRA only."""

import dataclasses
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.errors import LabError
from lab.files import atomic_folder, could_not_write, write_atomic
from lab.lora.adapter import LoraAdapter, LoraFactors, some_of
from lab.lora.compatibility import check_compatible
from lab.lora.module_names import parse
from lab.lora.targets import Expressions, left_out, pattern_value

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank

# Initialisations that change the base weight: the saved factors mean nothing on the original base.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of PEFT that leave the update s·B·A, and of which nothing depends on another: PEFT, which takes seconds to import, is asked
# about the others only.
_PLAIN_SETTINGS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "megatron_core", "qalora_group_size",
}  # fmt: skip
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
_LARGEST_CONFIG = 16 << 20  # bytes
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIX = "base_model.model."


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
    name. What PEFT would drop of the file is left out, and what it would not find under its name is read; the
    adapter's notes say so. Raises LabError for everything that plain factors cannot represent (DoRA, lora_bias,
    modules_to_save, …), naming it, and for missing, truncated, non-finite or inconsistent content.
    """
    folder = find_folder(source, revision)
    config = read_config(folder)
    refuse_variants(config, str(folder))
    tensors, metadata = _read_weights(folder)
    factors, notes = _factors(tensors, config, folder)
    return LoraAdapter(
        name=name or Path(source).expanduser().resolve().name,
        base=base if base is not None else config.get("base_model_name_or_path") or "",
        modules=factors,
        recipe=_read_recipe(metadata),
        notes=notes,
    )


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The adapter's folder here, after fetching it where `source` is a Hub id. Raises LabError where there is none."""
    try:
        folder = Path(source).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or of a home that nobody has
        there, is_folder = True, False
    if is_folder:
        return folder
    if (
        isinstance(source, Path)
        or there
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
        inside = sorted((f.parent.name for f in folder.glob(f"*/{CONFIG}")), key=lambda name: (len(name), name))
        if inside:
            raise LabError(f"{folder} has no {CONFIG}, but adapters in its folders {some_of(inside)}; give one of these.")
        raise LabError(f"{folder} has no {CONFIG}; give the folder that PEFT's save_pretrained wrote.")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise LabError(f"{path} is larger than {_LARGEST_CONFIG >> 20} MiB, as no adapter's settings are; export it again.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise LabError(f"{path} cannot be read as JSON; copy or export the adapter again.") from error
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise LabError(
            f"{path} has no peft_type, so it is not a PEFT adapter; export the adapter again with PEFT."
        )
    return config


def refuse_variants(config: Mapping, where: str) -> None:
    """Raise LabError, naming the variant, when a PEFT config describes anything but plain LoRA factors."""
    def refuse(variant: str):
        raise LabError(
            f"{where} uses {variant}, which plain LoRA factors cannot represent; give a plain LoRA adapter."
        )

    peft_type = _shortened(str(getattr(config["peft_type"], "value", config["peft_type"])))
    if peft_type != "LORA":
        raise LabError(f"{where} is of PEFT type {peft_type}, not LORA; give a LoRA adapter.")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise LabError(f"{where} is an adapter for {_brief(task)}, not for a causal language model; give one of task_type CAUSAL_LM.")
    for setting, value in config.items():
        if not value or setting in _PLAIN_SETTINGS or setting in _HARMLESS_SETTINGS:
            continue
        if setting in _REFUSED_SETTINGS:
            refuse(_REFUSED_SETTINGS[setting])
        from peft import LoraConfig

        known = {f.name: f for f in dataclasses.fields(LoraConfig)}
        if setting not in known:
            refuse(f"the setting {_shortened(setting)!r} (not known to the installed PEFT)")
        elif known[setting].metadata.get("is_lora_variant"):
            refuse(_VARIANT_NAMES.get(setting, setting))
    if config.get("bias", "none") != "none":
        refuse(f"bias={_shortened(repr(config['bias']))} (trained biases)")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        refuse(
            f"init_lora_weights={_shortened(init)!r} (a changed base; convert it with "
            f"path_initial_model_for_weight_conversion)"
        )
    _check_settings(config, where)


def _check_settings(config: Mapping, where: str) -> None:
    """Raise LabError for a setting of another kind than PEFT writes: what PEFT makes of it is nobody's intention."""
    for setting, (fits, wanted) in _KINDS.items():
        if setting in config and not fits(config[setting]):
            raise LabError(f"{where} gives {_brief(config[setting])} as {setting}, not {wanted}; export the adapter again.")
    if not config.get("target_modules"):
        raise LabError(f"{where} states no target_modules, so it is not known which factors it means; export the adapter again.")
    if not {setting for setting, value in config.items() if not _is_nothing(setting, value)} - _PLAIN_SETTINGS - _HARMLESS_SETTINGS:
        return
    from peft import LoraConfig

    known = {f.name for f in dataclasses.fields(LoraConfig)} - _HARMLESS_SETTINGS
    settings = {name: value for name, value in config.items() if name in known}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LoraConfig(**settings)
    except (TypeError, ValueError, AttributeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{where} has settings that PEFT itself refuses ({reason}); export the adapter again.") from error


def _is_nothing(setting: str, value: object) -> bool:
    """Whether a value is what PEFT writes where nothing was asked for; of other empty ones it refuses some."""
    flag = not setting.endswith("_config") and setting != "use_bdlora"
    return value is None or (value is False and flag) or (setting == "loftq_config" and value == {})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


def _is_names(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, list | set) and all(isinstance(name, str) for name in value))


_KINDS = {
    "r": (_is_whole, "a whole number"),
    "lora_alpha": (_is_number, "a number"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "fan_in_fan_out": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool) or value in ("gaussian", "eva", "orthogonal"), "a known initialisation"
    ),
    "target_modules": (_is_names, "names or an expression"),
    "exclude_modules": (_is_names, "names or an expression"),
    "layers_pattern": (_is_names, "names"),
    "layers_to_transform": (
        lambda value: value is None or _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value))), "layer numbers"
    ),
    "rank_pattern": (lambda value: isinstance(value, Mapping) and all(map(_is_whole, value.values())), "whole numbers by module"),
    "alpha_pattern": (lambda value: isinstance(value, Mapping) and all(map(_is_number, value.values())), "numbers by module"),
    "base_model_name_or_path": (lambda value: value is None or (isinstance(value, str) and len(value) <= 4096), "a name"),
    "megatron_config": (lambda value: not value, "null"),
    "trainable_token_indices": (lambda value: value is None, "null"),  # PEFT looks for their weights for an empty list too
}  # fmt: skip


def _brief(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a number of too many digits"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise LabError(
                f"{folder} holds its weights as a pickle (adapter_model.bin), which can run code; convert "
                f"it to {WEIGHTS}."
            )
        if any(folder.glob("adapter_model*.safetensors*")):
            raise LabError(f"{folder} holds its weights in several files, which PEFT does not read; save it as one {WEIGHTS}.")
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
    except (ValueError, RecursionError):  # another tool's metadata
        return {}
    return recipe if isinstance(recipe, dict) else {}


_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")


def _factors(tensors: Mapping[str, Tensor], config: Mapping, folder: Path) -> tuple[dict[str, LoraFactors], tuple[str, ...]]:
    """The factors by module, without those that PEFT drops, and what is to be said of how they were read."""
    pairs: dict[str, dict[str, Tensor]] = {}
    unprefixed, wrapped, named = [], [], set()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise LabError(f"{folder} {_unknown_key(key)}; give a plain LoRA adapter.")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise LabError(f"{folder} stores {_shortened(key)!r} as {tensor.dtype}; export it as fp32, fp16 or bf16.")
        if tensor.numel() == 0:
            raise LabError(
                f"{folder} holds empty tensors ({_shortened(key)!r}), as a save under ZeRO-3 leaves them; save it again with its weights "
                f"gathered (stage3_gather_16bit_weights_on_model_save)."
            )
        if tensor.ndim != 2:
            raise LabError(
                f"{folder} stores {_shortened(key)!r} with shape {tuple(tensor.shape)}; only linear layers are supported."
            )
        module = _module_name(match["module"], folder)
        if module != match["module"].removeprefix(_PREFIX):
            wrapped.append(key)
        elif not key.startswith(_PREFIX):
            unprefixed.append(key)
        if match["adapter"]:
            named.add(match["adapter"])
        pair = pairs.setdefault(module, {})
        if match["factor"] in pair:
            raise LabError(
                f"{folder} holds module {module!r} under two adapter names; export one adapter only."
            )
        pair[match["factor"]] = tensor.float()
    if not pairs:
        raise LabError(f"{folder}/{WEIGHTS} holds no LoRA weights; export the adapter again.")
    expressions = Expressions(str(folder))
    dropped = left_out(config, list(pairs), expressions)
    factors = {}
    for module, pair in pairs.items():
        if any(module in modules for modules in dropped.values()):
            continue
        if len(pair) < 2:
            raise LabError(
                f"{folder} holds only lora_{next(iter(pair))} of module {module!r}; copy or export the "
                f"adapter again."
            )
        rank, scaling = _rank_and_scaling(module, config, folder, expressions)
        if (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
            raise LabError(
                f"{folder} has rank {rank} for module {module!r} in {CONFIG}, but its factors have shapes A "
                f"{tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)}; the config and the weights do "
                f"not belong together."
            )
        factors[module] = LoraFactors(pair["A"], pair["B"], scaling)
    if not factors:
        raise LabError(
            f"{folder} leaves out every module of its file by {' and '.join(dropped)} (such as {some_of(pairs, 1)}); export it again."
        )
    notes = [
        f"{setting} leaves out {len(modules)} of the file's {len(pairs)} modules ({some_of(modules)}), as it does in PEFT"
        for setting, modules in dropped.items()
    ]
    if unprefixed:
        notes.append(f"keys without {_PREFIX!r}, which PEFT drops, are read ({some_of(map(_shortened, unprefixed), 1)})")
    if wrapped:
        notes.append(f"what torch.compile or FSDP put into the names is taken off ({some_of(map(_shortened, wrapped), 1)})")
    if named:
        notes.append(f"keys with an adapter's name in them, which PEFT drops, are read ({some_of(sorted(named))})")
    return factors, tuple(notes)


def _module_name(text: str, folder: Path) -> str:
    """The module's name in the base model. Raises LabError for what can be no module of one."""
    module = ".".join(part for part in text.split(".") if part not in _WRAPPERS).removeprefix(_PREFIX)
    if len(module) > 512 or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", module, re.ASCII) or ".base_layer" in module:
        raise LabError(f"{folder} holds factors of {_shortened(text)}, which is no name of a module; export the adapter again.")
    if _PREFIX in module or module.startswith(("module.", "base_model.")):
        raise LabError(f"{folder} names its modules as a wrapped model does ({_shortened(text)}); unwrap the model and save it again.")
    if ".block_sparse_moe.experts." in module:
        raise LabError(
            f"{folder} changes experts one by one ({_shortened(text)}), as transformers 4 had them; since version 5 a layer's experts are "
            f"one tensor, which plain LoRA factors cannot represent."
        )
    return module


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"


def _unknown_key(key: str) -> str:
    if "lora_embedding" in key:
        return f"has LoRA on an embedding ({_shortened(key)!r}), which is not supported"
    if "lora_magnitude_vector" in key:
        return f"uses DoRA ({_shortened(key)!r}), which plain LoRA factors cannot represent"
    if re.search(r"\.lora_[AB]\b.*\.bias$", key):
        return f"uses lora_bias ({_shortened(key)!r}), which plain LoRA factors cannot represent"
    if "lora_" not in key:
        return (
            f"carries whole weights besides its factors ({_shortened(key)!r}, e.g. modules_to_save or resized embeddings)"
        )
    return f"holds {_shortened(key)!r}, which is not a plain LoRA factor"


def _rank_and_scaling(module: str, config: Mapping, folder: Path, expressions: Expressions) -> tuple[int, float]:
    def resolve(patterns: str, default: str):
        if config.get(default) is None:
            raise LabError(f"{folder}/{CONFIG} gives no number for {default} (module {module!r}); export the adapter again.")
        return pattern_value(config.get(patterns) or {}, module, config[default], expressions)

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
    patterns, target_modules as `targets` gives them.

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
        write_atomic(temporary / CONFIG, json.dumps(_uniform_config(adapter, rank, short=True), indent=2) + "\n")
        write_atomic(temporary / "recipe.json", recipe_text + "\n")
        for name, content in beside.items():
            write_atomic(temporary / name, content)
        try:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt", "recipe": recipe_text})
        except SafetensorError as error:
            raise could_not_write(folder, error) from error
        os.chmod(temporary / WEIGHTS, 0o644)  # safetensors leaves it to the owner alone
        with open(temporary / WEIGHTS, "rb+") as file:
            _order_metadata(file)
            os.fsync(file.fileno())


def _order_metadata(file: BinaryIO) -> None:
    """Put the metadata of a safetensors file into alphabetical order: its writer takes another at random in every process."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:  # as it is, since both write JSON alike
        file.seek(8)
        file.write(text.ljust(size))


def _uniform_tensors(adapter: LoraAdapter, rank: int) -> dict[str, Tensor]:
    tensors = {}
    for module, factors in adapter.modules.items():
        A = torch.zeros(rank, factors.shape[1])
        B = torch.zeros(factors.shape[0], rank)
        A[: factors.rank] = factors.A
        B[:, : factors.rank] = factors.scaling * factors.B
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = A
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = B
    return tensors


def targets(modules: Iterable[str]) -> list[str]:
    """What names the modules in a configuration: their kinds, which every engine reads, where every layer has each; else whole names."""
    modules = list(modules)
    layers: dict[str, set[int]] = {}
    for module in modules:
        layer, kind = parse(module).layer, module.rpartition(".")[2]
        if layer is None:
            return modules
        layers.setdefault(kind, set()).add(layer)
    every = set(range(max(set().union(*layers.values())) + 1))
    return sorted(layers) if all(found == every for found in layers.values()) else modules


def _uniform_config(adapter: LoraAdapter, rank: int, short: bool = False) -> dict:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": targets(adapter.modules) if short else list(adapter.modules),
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
        module = module.removeprefix(_PREFIX)
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
