"""LoRA adapters as data: read and write PEFT folders, check what fits together.

Notation: module m of an adapter has A (r × in), B (out × r) and a scaling s; its update is delta_weight =
s·B·A (out × in), whatever the orientation in which the base model stores its own weight.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.errors import LabError
from lab.files import atomic_folder, write_atomic

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank

# Initialisations that change the base weight: the saved factors mean nothing on the original base.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of PEFT that leave the update s·B·A, or whose values are looked at below: PEFT, which takes seconds to import, is asked
# about others only.
_PLAIN_SETTINGS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "init_lora_weights",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size",
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


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """One module's factors: A (r, in) and B (out, r) in fp32, and the scaling (lora_alpha/r, or lora_alpha/√r
    with rsLoRA).
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0

    def __post_init__(self):
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise LabError(
                f"LoRA factors of shapes A {tuple(self.A.shape)} and B {tuple(self.B.shape)} do not fit "
                f"together; A must be (rank, in) and B (out, rank)."
            )

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    def delta_weight(self) -> Tensor:
        """s·B·A, (out, in)."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """A LoRA adapter: plain factors per module of a base model.

    name: short and unique among the adapters of one merge. base: base_model_name_or_path, "" when unknown.
    modules: factors by module name (as in `base_model.named_modules()`), kept in natural order (layer 2
    before layer 10).
    recipe: how it was made (JSON-able), {} when unknown. Raises LabError for NaN or infinite factors.
    """

    name: str
    base: str
    modules: Mapping[str, LoraFactors]
    recipe: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if not self.modules:
            raise LabError(f"Adapter {self.name!r} changes no module; give an adapter with LoRA weights.")
        for module, factors in self.modules.items():
            if not (
                math.isfinite(factors.scaling) and factors.A.isfinite().all() and factors.B.isfinite().all()
            ):
                raise LabError(
                    f"Adapter {self.name!r} has NaN or infinite values in module {module!r}; train it or "
                    f"export it again."
                )
        ordered = {module: self.modules[module] for module in sorted(self.modules, key=natural_order)}
        object.__setattr__(self, "modules", MappingProxyType(ordered))

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(factors.rank for factors in self.modules.values())

    def delta_weight(self, module: str) -> Tensor:
        """The update of one module, (out, in), scaling included. Raises LabError for a module it lacks."""
        if module not in self.modules:
            raise LabError(
                f"Adapter {self.name!r} does not change module {module!r}; it changes {_some(self.modules)}."
            )
        return self.modules[module].delta_weight()

    def digest(self) -> str:
        """sha256 (hex) of base, module names, factors and scalings: the same weights give the same digest."""
        digest = hashlib.sha256(self.base.encode())
        for module, factors in self.modules.items():
            digest.update(
                f"\0{module}\0{tuple(factors.A.shape)}{tuple(factors.B.shape)}{factors.scaling!r}\0".encode()
            )
            for tensor in (factors.A, factors.B):
                digest.update(memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B"))
        return digest.hexdigest()


def natural_order(module: str) -> tuple:
    """Sort key under which `layers.2` comes before `layers.10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in module.split("."))


def module_names(adapters: Sequence[LoraAdapter]) -> list[str]:
    """The modules that any of the adapters changes, in natural order."""
    return sorted({module for adapter in adapters for module in adapter.modules}, key=natural_order)


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
    def refuse(variant: str):
        raise LabError(
            f"{where} uses {variant}, which plain LoRA factors cannot represent; give a plain LoRA adapter."
        )

    peft_type = str(getattr(config["peft_type"], "value", config["peft_type"]))
    if peft_type != "LORA":
        raise LabError(f"{where} is of PEFT type {peft_type}, not LORA; give a LoRA adapter.")
    for setting, value in config.items():
        if not value or setting in _PLAIN_SETTINGS or setting in _HARMLESS_SETTINGS:
            continue
        if setting in _REFUSED_SETTINGS:
            refuse(_REFUSED_SETTINGS[setting])
        from peft import LoraConfig

        known = {f.name: f for f in dataclasses.fields(LoraConfig)}
        if setting not in known:
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
    def resolve(patterns: str, default: str):
        value = config.get(default)
        if table := config.get(patterns):
            from peft.utils.other import get_pattern_key

            value = table.get(get_pattern_key(table.keys(), module), value)
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
            f"The model has no adapter {adapter_name!r}; it has {_some(getattr(model, 'peft_config', {}))}."
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


# What fits together


def linear_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(out, in) of an nn.Linear or a transformers Conv1D, None for any other module."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if is_conv1d(layer):
        return layer.weight.shape[1], layer.weight.shape[0]
    return None


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is a transformers Conv1D, the linear layer of GPT-2, whose weight is (in, out)."""
    if isinstance(layer, nn.Linear):
        return False
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def compatibility_problems(adapters: Sequence[LoraAdapter], base_model: nn.Module | None = None) -> list[str]:
    """What keeps the adapters from being merged (or put on `base_model`), one sentence each; [] if all fits.

    Unequal ranks and unequal sets of modules are fine. An adapter whose base is "" fits any base.
    """
    problems = []
    names = [adapter.name for adapter in adapters]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{names.count(name)} adapters are called {name!r}; give each its own name.")
    bases = {adapter.base: adapter.name for adapter in reversed(adapters) if adapter.base}
    if len(bases) > 1:
        stated = ", ".join(f"{name!r} on {base}" for base, name in reversed(bases.items()))
        problems.append(
            f"The adapters were trained on different bases ({stated}); if these are one model, load them "
            f"with base=…."
        )
    for module in module_names(adapters):
        shapes = {a.modules[module].shape: a.name for a in reversed(adapters) if module in a.modules}
        if len(shapes) > 1:
            stated = ", ".join(f"{name!r} {shape}" for shape, name in reversed(shapes.items()))
            problems.append(
                f"Module {module!r} has different shapes (out, in): {stated}; these adapters need different "
                f"bases."
            )
    for index, adapter in enumerate(adapters):
        others = set(module_names([*adapters[:index], *adapters[index + 1 :]]))
        if others and not others & set(adapter.modules):
            problems.append(
                f"Adapter {adapter.name!r} has no module in common with the others (its first is "
                f"{next(iter(adapter.modules))!r}, "
                f"theirs {min(others, key=natural_order)!r}); check that all were trained on the same base."
            )
    if base_model is not None:
        layers = dict(base_model.named_modules())
        for adapter in adapters:
            problems += _model_problems(adapter, layers)
    return problems


def _model_problems(adapter: LoraAdapter, layers: Mapping[str, nn.Module]) -> list[str]:
    missing = [module for module in adapter.modules if module not in layers]
    if missing:
        return [
            f"Adapter {adapter.name!r} changes {_some(missing)}, which the base model does not have; it is "
            f"for another base."
        ]
    problems = []
    for module, factors in adapter.modules.items():
        shape = linear_shape(layers[module])
        if shape is None:
            problems.append(
                f"Module {module!r} of the base is a {type(layers[module]).__name__}, not a linear layer."
            )
        elif shape != factors.shape:
            problems.append(
                f"Adapter {adapter.name!r} updates {module!r} with shape {factors.shape}, but the base "
                f"model's is {shape}; "
                f"it is for another base."
            )
    return problems


def check_compatible(adapters: Sequence[LoraAdapter], base_model: nn.Module | None = None) -> None:
    """Raise LabError with the first of `compatibility_problems`, and the count of the others, if any."""
    if not adapters:
        raise LabError("There is no adapter to merge; give at least one.")
    problems = compatibility_problems(adapters, base_model)
    if problems:
        more = f" ({len(problems) - 1} more problems of this kind.)" if len(problems) > 1 else ""
        raise LabError(problems[0] + more)


def _some(names, limit: int = 3) -> str:
    names = list(names)
    listed = ", ".join(repr(name) for name in names[:limit]) or "none"
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")
