"""Where an adapter folder can be served: the rules of each engine, read from its source, and the commands for what was written."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from lab.export.gguf import FILE
from lab.lora.base import EMBEDDED
from lab.lora.module_names import parse
from lab.lora.peft_io import ENGINE_RANKS, WEIGHTS, engine_rank, find_folder, read_config


@dataclass(frozen=True)
class Serving:
    """What one engine says to a folder. reason: why it does not take it, "" when it does. note: what to mind when it does."""

    engine: str
    reason: str = ""
    note: str = ""

    def text(self) -> str:
        return f"{self.engine:10} " + (f"no: {self.reason}" if self.reason else f"yes{f': {self.note}' if self.note else ''}")


def engines(source: str | Path) -> tuple[Serving, ...]:
    """What each engine says to an adapter folder (or Hub id), by its configuration and the shapes of its tensors.

    Raises LabError as `find_folder` and `read_config` do.
    """
    folder = find_folder(source)
    config = read_config(folder)
    shapes = _shapes(folder)
    rank = max((shape[0] for key, shape in shapes.items() if ".lora_A." in key), default=0)
    found = {
        "PEFT": "", "vLLM": _vllm(config, shapes, rank), "SGLang": _sglang(config, shapes), "LoRAX, TGI": _lorax(config, shapes),
        "llama.cpp": _llama_cpp(config, folder), "Ollama": _ollama(config, shapes, folder),
    }  # fmt: skip
    notes = {
        "vLLM": f"--max-lora-rank {_next_rank(rank)}" if rank <= ENGINE_RANKS[-1] else "",
        "LoRAX, TGI": "a rank above 128 leaves the fast path" if rank > 128 else "",
        "llama.cpp": f"{FILE} as it is" if (folder / FILE).is_file() else "after convert_lora_to_gguf.py",
        "Ollama": f"by {FILE}" if (folder / FILE).is_file() else "on bases of Llama and Gemma 2 only; others by --gguf",
    }
    return tuple(Serving(engine, reason, "" if reason else notes.get(engine, "")) for engine, reason in found.items())


def serving_commands(base: str, rank: int, *, gguf: bool, suffixes: bool) -> str:
    """Markdown: how to serve what was exported. suffixes: target_modules are names that every engine reads."""
    model = json.dumps(base) if base and base not in EMBEDDED else "BASE_MODEL"
    adapter = "path/to/this/folder"
    lines = [
        "```sh",
        "# vLLM",
        f"vllm serve {model} --enable-lora --max-lora-rank {_next_rank(rank)} --lora-modules merged={adapter}",
        "# SGLang" if suffixes else "# SGLang, from the versions on that read whole module names",
        f"python -m sglang.launch_server --model-path {model} --lora-paths merged={adapter} --max-loras-per-batch 1",
    ]
    if gguf:
        lines += [
            "# llama.cpp, on the base's GGUF file",
            f"llama-server -m base.gguf --lora {adapter}/{FILE}",
            "# Ollama",
            f"printf 'FROM ./base.gguf\\nADAPTER {adapter}/{FILE}\\n' > Modelfile && ollama create merged -f Modelfile",
        ]
    else:
        lines += [
            "# llama.cpp and Ollama: export with --gguf, or convert",
            f"python convert_lora_to_gguf.py --base BASE_FOLDER {adapter} --outfile adapter.gguf",
            "llama-server -m base.gguf --lora adapter.gguf",
        ]
    note = "" if model != "BASE_MODEL" else "\n\nBASE_MODEL is the folder or Hub id of the base."
    return "\n".join([*lines, "```"]) + note


def _next_rank(rank: int) -> int:
    return engine_rank(min(rank, ENGINE_RANKS[-1]))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    if not (folder / WEIGHTS).is_file():
        return {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


def _plain(config: Mapping, shapes: Mapping) -> str:
    if not shapes:
        return f"it reads {WEIGHTS} only, which is missing"
    for setting, name in (("use_dora", "DoRA"), ("modules_to_save", "modules_to_save"), ("lora_bias", "lora_bias")):
        if config.get(setting):
            return f"it does not take {name}"
    if config.get("bias", "none") != "none":
        return "it does not take trained biases"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "it reads one r and one lora_alpha and ignores rank_pattern and alpha_pattern, so the update would be another"
    return ""


def _vllm(config: Mapping, shapes: Mapping, rank: int) -> str:
    if rank > ENGINE_RANKS[-1]:
        return f"its largest rank is {ENGINE_RANKS[-1]}, this has {rank}"
    foreign = next((key for key in shapes if not key.startswith("base_model.model.")), None)
    return _plain(config, shapes) or (f"it finds modules by keys that begin with base_model.model., unlike {foreign}" if foreign else "")


def _sglang(config: Mapping, shapes: Mapping) -> str:
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return "it wants target_modules as a list of names"
    whole = next((name for name in targets if "." in name), None)
    reason = f"versions before the end of 2025 want names without dots in target_modules, not {whole}; fill the layers" if whole else ""
    return _plain(config, shapes) or reason


def _lorax(config: Mapping, shapes: Mapping) -> str:
    found: dict[str, set[int]] = defaultdict(set)
    for key in shapes:
        module = key.partition(".lora_")[0]
        layer, kind = parse(module).layer, module.rpartition(".")[2]
        if layer is not None:
            found[kind].add(layer)
    every = set().union(*found.values())
    lacking = sorted(kind for kind, layers in found.items() if layers != set(range(max(every) + 1)))
    reason = f"a layer lacks {lacking[0]}, so it ignores {lacking[0]} everywhere, without an error; fill the layers" if lacking else ""
    return _plain(config, shapes) or reason


def _llama_cpp(config: Mapping, folder: Path) -> str:
    if (folder / FILE).is_file():
        return ""
    base = config.get("base_model_name_or_path")
    if not base or base in EMBEDDED:
        return f"base_model_name_or_path names no base that it can find ({base}); give --base to its converter, or export with --gguf"
    return "its converter reads one alpha and ignores the patterns" if config.get("rank_pattern") or config.get("alpha_pattern") else ""


def _ollama(config: Mapping, shapes: Mapping, folder: Path) -> str:
    if (folder / FILE).is_file():
        return ""
    narrow = [shape[0] > shape[1] for key, shape in shapes.items() if ".lora_A." in key and len(shape) == 2]
    narrow += [shape[1] > shape[0] for key, shape in shapes.items() if ".lora_B." in key and len(shape) == 2]
    if any(narrow):
        return "it transposes factors whose rank is above a module's width, without an error; export with --gguf"
    return _plain(config, shapes)
