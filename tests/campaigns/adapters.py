"""Damaged and hostile adapter folders against the reader: `python -m tests.campaigns.adapters [FOLDERS [SEED [FIRST]]]`
(default 5000, 0, 0: the folders that the seed gives, from which number on).

Each folder is one that PEFT wrote, changed at random: its configuration, its keys, its tensors or its bytes. The lab reads, reports,
merges and writes it, and PEFT loads both the folder and what the lab wrote. The two have the same logits, or both refuse, or the
difference is listed below, on purpose. Prints folders tried, other exceptions than the one sentence, folders that took over 2 s,
and silent differences; exits with 1 if any of the last three is not zero.
"""

import contextlib
import copy
import json
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lab.errors import LabError
from lab.export.report import describe, report
from lab.lora.compatibility import check_compatible
from lab.lora.peft_io import CONFIG, WEIGHTS, find_folder, load, save
from lab.merging import merge
from tests.tiny_models import llama, logits, peft_model

SLOW = 2.0  # seconds of processor time: others may use the machine
GIVEN_UP = 2.5  # seconds of processor time after which a folder is interrupted

ENDLESS = "takes too long to match"
# What the lab refuses and PEFT loads: a part of the lab's sentence, and why.
REFUSED = {
    "is no name of a module": "PEFT drops what it does not find",
    "names its modules as a wrapped model": "PEFT drops what it does not find",
    "which the base model does not have": "PEFT drops what it does not find",
    "not a linear layer": "PEFT drops what it does not find",
    "only linear layers": "PEFT drops what it does not find, or reshapes it",
    "is not a plain LoRA factor": "PEFT drops it",
    "carries whole weights": "PEFT drops it, or changes the base",
    "on an embedding": "PEFT drops it where the configuration does not ask for it",
    "DoRA": "variants are refused by name", "lora_bias": "variants are refused by name", "which plain LoRA factors": "variants",
    "not known to the installed PEFT": "PEFT ignores what it does not know, which may change the update",
    "holds only lora_": "half an update: PEFT fills the other half with its initial values",
    "under two adapter names": "PEFT drops both",
    "no LoRA weights": "PEFT loads an update of zero",
    "leaves out every module": "PEFT loads an update of zero",
    "holds empty tensors": "PEFT skips them", "stores ": "PEFT rounds integers and 8-bit floats into factors",
    "NaN or infinite": "PEFT computes NaN", "which no training gives": "PEFT overflows",
    "do not belong together": "PEFT skips factors of another rank", "do not fit together": "the same",
    "export the adapter again": "a setting of another kind than PEFT writes, which PEFT casts, ignores or guesses",
    "not for a causal language model": "an adapter for another head", "is of PEFT type": "PEFT drops factors of another method",
    ENDLESS: "PEFT would hang", "is larger than": "no settings are that large",
    "has no adapter_model.safetensors": "pickles are not read", "base model's is": "PEFT skips other shapes",
}  # fmt: skip
# What PEFT refuses and the lab reads: a part of PEFT's message, and why.
ACCEPTED = {
    "is not supported. Currently, only the following modules": "the expression also names modules of which the file has no factors",
    "hangs": "the lab's engine answers, or is stopped, where Python's does not end",
}


@dataclass
class Tally:
    tried: int = 0
    equal: int = 0
    both_refuse: int = 0
    said: int = 0
    listed: Counter = field(default_factory=Counter)
    exceptions: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.exceptions or self.slow or self.different)

    def text(self) -> str:
        counts = f"{self.equal} equal, {self.both_refuse} refused by both, {self.said} read with a note, {self.listed.total()} listed"
        lines = [
            f"{self.tried} folders: {counts}", f"other exceptions {len(self.exceptions)}, over {SLOW:g} s {len(self.slow)}, "
            f"silent differences {len(self.different)}",
        ]  # fmt: skip
        return "\n".join([*lines, *self.exceptions[:20], *self.slow[:20], *self.different[:20]])


# The folders


def originals(root: Path) -> list[Path]:
    settings = {
        "plain": {},
        "patterns": {
            "target_modules": ["q_proj", "up_proj", "down_proj"], "use_rslora": True, "rank_pattern": {"layers.1.mlp.up_proj": 2},
            "alpha_pattern": {r"model\.layers\.\d+\.self_attn.*": 3},
        },
        "expression": {"target_modules": r".*\.layers\.[01]\..*(q_proj|gate_proj)"},
        "layers": {"target_modules": ["v_proj", "o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        "all-linear": {"target_modules": "all-linear", "exclude_modules": ["k_proj"], "r": 2},
    }  # fmt: skip
    folders = []
    for number, (name, changes) in enumerate(settings.items()):
        peft_model(llama(), number + 1, **changes).save_pretrained(root / name, save_embedding_layers=False)
        folders.append(root / name)
    return folders


HANGING = ["(([a-z._0-9]+)+)+!", r"(.*)*x?\1y", "(a|a|[a-z._0-9])*$^", r"((\w|\.)+)*-", r"(?:(?:[a-z]|[a-z._0-9])+)+[A-Z]$",
           r"((?:[a-z]|[a-z._0-9])+)+\1\1[A-Z]"]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 2, 4, -1, 1 << 40, 10**400, 1.5, 4.0, -0.0, 1e300, float("nan"), float("inf"), "", "x", "4", "(", "[z-a]",
    "a{9999999999}", "q_proj", "all-linear", "ALL-LINEAR", "(" * 3000, "a" * 100_000, [], {}, [1], ["q_proj"], [None], [["q_proj"]], [[]],
    {"q_proj": 4}, {"q_proj": "4"}, {"q_proj": None}, {"(": 1}, {"": 4}, {"q_proj": 4.0}, {"q_proj": True}, {"q_proj": 10**400}, {"a": {}},
    ["q_proj", "v_proj"], ["lm_head"], ["model.layers.0.self_attn.q_proj"], ["proj"], "layers", ["layers", "h"], 1, [0], [1, "1"], [True],
    *HANGING, {HANGING[0]: 4}, {HANGING[3]: 4}, [HANGING[0]], r".*q_proj", r".*\.0\..*", {r".*0\..*": 4}, {r".*(q|v)_proj": 2},
    "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "LORA", "IA3", "gaussian", "pissa", "eva", "orthogonal", "mica", "none", "all",
]  # fmt: skip
SETTINGS = [
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "use_rslora", "bias", "init_lora_weights", "base_model_name_or_path", "task_type", "peft_type", "fan_in_fan_out", "lora_dropout",
    "modules_to_save", "use_dora", "megatron_config", "megatron_core", "loftq_config", "eva_config", "revision", "auto_mapping",
    "inference_mode", "peft_version", "layer_replication", "trainable_token_indices", "runtime_config", "target_parameters",
    "qalora_group_size", "ensure_weight_tying", "arrow_config", "corda_config", "alora_invocation_tokens", "something_new",
]  # fmt: skip
PARTS = ["²", "9" * 5000, "९", "a" * 1000, "", " ", "\n", "_orig_mod", "module", "base_layer", "ü", "q-proj", "9", "..", "\0", "lora_A"]


def change_setting(draw: random.Random, folder: Path) -> str:
    config = json.loads((folder / CONFIG).read_text())
    name = draw.choice(SETTINGS[:9] if draw.random() < 0.6 else SETTINGS)
    if draw.random() < 0.1:
        config.pop(name, None)
        said = f"without {name}"
    else:
        value = draw.choice(VALUES)
        old = config.get(name)
        if draw.random() < 0.15 and isinstance(old, list):
            value = [*old[:-1], value]
        elif draw.random() < 0.15 and isinstance(old, dict):
            value = {**old, draw.choice([v for v in VALUES if isinstance(v, str)]): value}
        config[name] = value
        said = f"{name}={str(value)[:60] if not isinstance(value, int) or abs(value) < 1 << 64 else 'huge'}"
    (folder / CONFIG).write_text(json.dumps(config))
    return said


def change_text(draw: random.Random, folder: Path) -> str:
    path = folder / CONFIG
    data = path.read_bytes()
    kind = draw.choice(["cut", "flip", "deep", "deep value", "bom", "latin", "empty", "null", "list", "twice", "digits"])
    if kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "flip":
        place = draw.randrange(len(data))
        data = data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    elif kind == "deep":
        data = b"[" * 100_000
    elif kind == "deep value":
        data = data.rstrip()[:-1] + b', "auto_mapping": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    elif kind == "bom":
        data = b"\xef\xbb\xbf" + data
    elif kind == "latin":
        data = data[:1] + b'"\xff": 1,' + data[1:]
    elif kind == "twice":
        data = data.rstrip()[:-1] + b', "r": 3}'
    elif kind == "digits":
        data = data.rstrip()[:-1] + b', "lora_alpha": ' + b"9" * 5000 + b"}"
    else:
        data = {"empty": b"", "null": b"null", "list": b"[1]"}[kind]
    path.write_bytes(data)
    return f"text {kind}"


def change_keys(draw: random.Random, folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    kind = draw.choice(["no prefix", "adapter name", "wrapped", "wrapped inside", "part", "layer", "drop", "swap", "head", "one", "experts"])
    keys = sorted(tensors)
    one = draw.choice(keys)

    def rename(key: str) -> str:
        if kind == "no prefix":
            return key.removeprefix("base_model.model.")
        if kind == "adapter name":
            return key.replace(".weight", f".{draw_name}.weight")
        if kind == "wrapped":
            return key.replace("base_model.model.", f"base_model.model.{wrapper}.")
        if kind == "wrapped inside":
            return re.sub(r"layers\.(\d+)\.", rf"layers.\1.{wrapper}.", key)
        if kind == "layer":
            return key.replace("layers.1.", f"layers.{number}.")
        if kind == "head":
            return re.sub(r"base_model\.model\.model\.layers\.0\.[a-z_.]*\.(?=lora)", "base_model.model.lm_head.", key)
        if kind == "experts":
            return key.replace("mlp.up_proj", "block_sparse_moe.experts.0.w1")
        if kind == "part" and key.rpartition(".lora_")[0] == one.rpartition(".lora_")[0]:
            return key.replace("_proj", f"_proj.{part}", 1) if after else key.replace("layers.", f"layers.{part}.", 1)
        if kind == "one" and key == one:
            return key + draw_name
        return key

    draw_name, wrapper, number = draw.choice(["default", "x", "ü", "my-skill"]), draw.choice(["_orig_mod", "module", "base_model.model"]), 7
    wrapper = draw.choice([wrapper, "_fsdp_wrapped_module"])
    part, after = draw.choice(PARTS), draw.random() < 0.5
    if kind == "drop":
        del tensors[one]
    elif kind == "swap":
        tensors[one] = tensors[draw.choice(keys)].clone()
    else:
        tensors = {rename(key): tensor for key, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS)
    return f"keys {kind} {part[:12]!r} {wrapper}" if kind != "drop" else "keys drop"


def change_tensor(draw: random.Random, folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    key = draw.choice(sorted(tensors))
    tensor = tensors[key]
    kinds = {
        "nan": lambda t: torch.full_like(t, torch.nan), "inf": lambda t: t / 0, "3e38": lambda t: torch.full_like(t, 3e38),
        "1e20": lambda t: t * 1e20, "1e-45": lambda t: t * 1e-45, "zero": torch.zeros_like, "T": lambda t: t.T.contiguous(),
        "3d": lambda t: t[:, :, None].contiguous(), "1d": lambda t: t.reshape(-1), "0d": lambda t: t.sum(), "empty": lambda t: t[:0],
        "no columns": lambda t: t[:, :0].contiguous(), "cut": lambda t: t[:1].contiguous(), "int8": lambda t: t.to(torch.int8),
        "int64": lambda t: t.long(), "bool": lambda t: t > 0, "fp8": lambda t: t.to(torch.float8_e4m3fn), "f64": lambda t: t.double(),
        "f16": lambda t: t.half(), "bf16": lambda t: t.bfloat16(), "wide": lambda t: torch.cat([t, t], 1), "tall": lambda t: torch.cat([t, t]),
        "complex": lambda t: t.to(torch.complex64),
    }  # fmt: skip
    kind = draw.choice(sorted(kinds))
    if draw.random() < 0.3:
        tensors = {key: kinds[kind](tensor) for key, tensor in tensors.items()}
    else:
        tensors[key] = kinds[kind](tensor)
    if draw.random() < 0.1:
        extra = draw.choice(["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.lora_embedding_A", "x", "ü.lora_A.weight",
                             "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias"])  # fmt: skip
        tensors[extra] = torch.ones(2, 2)
    metadata = draw.choice([None, {"format": "pt"}, {"recipe": "[" * 100_000}, {"recipe": "{"}, {"recipe": '{"weights": 1}'}, {"recipe": "3"}])
    save_file(tensors, folder / WEIGHTS, metadata=metadata)
    return f"tensor {kind}"


def change_bytes(draw: random.Random, folder: Path) -> str:
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    kind = draw.choice(["cut", "flip", "length", "header"])
    length = int.from_bytes(data[:8], "little")
    if kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "flip":
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(8, 8 + length)] = draw.randrange(32, 127)
    elif kind == "length":
        data[:8] = draw.choice([0, 1, length - 1, length + 1, 1 << 40, (1 << 64) - 1]).to_bytes(8, "little")
    else:
        old = data[8 : 8 + length].decode()
        pairs = [('"F32"', '"F4"'), ('"F32"', '"X"'), ("[4,16]", "[16,4]"), ("[4,16]", "[-4,-16]"), ("data_offsets", "data_offset"), ("}", "]")]
        new = old.replace(*draw.choice(pairs), draw.choice([1, 99])).encode()
        data = bytearray(len(new).to_bytes(8, "little") + new + data[8 + length :])
    path.write_bytes(data)
    return f"bytes {kind}"


def change_files(draw: random.Random, folder: Path) -> str:
    kind = draw.choice(["no config", "no weights", "pickle", "inside", "shards"])
    if kind == "no config":
        (folder / CONFIG).unlink()
    elif kind == "no weights":
        (folder / WEIGHTS).unlink()
    elif kind == "pickle":
        (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    elif kind == "shards":
        (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")
    else:
        inside = folder / "checkpoint-10"
        inside.mkdir()
        for name in (CONFIG, WEIGHTS):
            (folder / name).rename(inside / name)
    return f"files {kind}"


# Such that what breaks a file comes after what edits it.
CHANGES = {change_setting: 55, change_keys: 18, change_tensor: 15, change_text: 5, change_bytes: 6, change_files: 1}


def mutate(draw: random.Random, folder: Path) -> str:
    """Change a folder in place, once to three times; what was done."""
    chosen = draw.choices(list(CHANGES), list(CHANGES.values()), k=draw.choice([1, 1, 1, 2, 3]))
    order = [change for change in CHANGES for _ in range(chosen.count(change) if change is change_setting else change in chosen)]
    return "; ".join(change(draw, folder) for change in order)


# What both make of one


class _Interrupted(BaseException):
    pass


@contextlib.contextmanager
def _interrupted_after(seconds: float):
    def stop(*_):
        raise _Interrupted

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peft_logits(base, folder: Path) -> tuple[torch.Tensor | None, str, bool]:
    """(logits or None, PEFT's refusal, whether factors were missing in the file)."""
    try:
        with warnings.catch_warnings(record=True) as said, _interrupted_after(GIVEN_UP):
            warnings.simplefilter("always")
            found = logits(PeftModel.from_pretrained(copy.deepcopy(base), folder).eval())
            return found, "", any("missing adapter keys" in str(warning.message) for warning in said)
    except _Interrupted:
        return None, "hangs", False
    except Exception as error:  # whatever PEFT raises, it refuses
        return None, f"{type(error).__name__}: {error}", False


def attempt(base, good, folder: Path, written: Path):
    """What the lab does with a folder; the adapter it read. Raises LabError where it refuses."""
    adapter = load(folder, name="other")
    described = describe(adapter, find_folder(folder))
    report([adapter, good], base, described=[described, describe(good)]).text()
    check_compatible([adapter], base)
    save(written / "one", adapter)
    if not report([adapter, good], base).problems:
        save(written / "both", merge("cat_static", [adapter, good]))
    return adapter


def judge(tally: Tally, base, good, folder: Path, what: str, written: Path) -> None:
    tally.tried += 1
    start = time.process_time()
    adapter, refusal = None, ""
    try:
        with _interrupted_after(GIVEN_UP):
            adapter = attempt(base, good, folder, written)
    except LabError as error:
        refusal = str(error)
    except _Interrupted:
        refusal = "takes too long"
    except Exception as error:  # counted, not hidden
        tally.exceptions.append(f"exception: {what}: {type(error).__name__}: {str(error)[:200]}")
        return
    if time.process_time() - start > SLOW:
        tally.slow.append(f"slow: {what}: {time.process_time() - start:.1f} s, {refusal[:100]}")
    if ENDLESS in refusal:  # PEFT would take its time to hang
        tally.listed[ENDLESS] += 1
        return
    theirs, reason, missing = peft_logits(base, folder)
    if adapter is None:
        if theirs is None:
            tally.both_refuse += 1
            return
        why = next((part for part in REFUSED if part in refusal), None)
        if why:
            tally.listed[why] += 1
        else:
            tally.different.append(f"refused: {what}: {refusal[:200]}")
        return
    ours, problem, _ = peft_logits(base, written / "one")
    if ours is None:
        tally.different.append(f"cannot be loaded by PEFT: {what}: {problem[:200]}")
    elif theirs is None:
        why = next((part for part in ACCEPTED if part in reason), None)
        if why:
            tally.listed[why] += 1
        else:
            tally.different.append(f"accepted: {what}: {reason[:200]}")
    elif torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True):
        tally.equal += 1
    elif adapter.notes and any("which PEFT drops" in note or "taken off" in note for note in adapter.notes):
        tally.said += 1
    elif missing:
        tally.listed["factors missing in the file are zero here, and PEFT's initial values there"] += 1
    else:
        tally.different.append(f"other logits: {what}: {float((ours - theirs).norm() / theirs.norm()):.3g}; notes {adapter.notes}")


def campaign(count: int, seed: int = 0, first: int = 0, every: int = 0) -> Tally:
    tally, draw, base = Tally(), random.Random(seed), llama()
    with tempfile.TemporaryDirectory() as root:
        folders = originals(Path(root) / "originals")
        good = load(folders[0], name="good")
        attempt(base, good, folders[0], Path(root) / "first")  # what is imported late is no folder's fault
        for number in range(first + count):
            with tempfile.TemporaryDirectory(dir=root) as place:
                folder = Path(place) / "skill"
                source = draw.choice(folders)
                folder.mkdir()
                for name in (CONFIG, WEIGHTS):
                    (folder / name).write_bytes((source / name).read_bytes())
                what = f"#{number} {source.name}: {mutate(draw, folder)}"
                if number < first:
                    continue
                judge(tally, base, good, folder, what, Path(place))
            if every and (number + 1) % every == 0:
                print(tally.text().splitlines()[1], f"after {number + 1}", flush=True)
    return tally


if __name__ == "__main__":
    found = campaign(*(int(text) for text in sys.argv[1:4] or ["5000"]), every=100)
    print(found.text())
    print("listed:", dict(found.listed))
    sys.exit(not found.clean)
