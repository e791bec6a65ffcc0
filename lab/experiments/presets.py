"""Presets: everything a run depends on, checked when it is made."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.training.lora import LoraTraining

# The smallest value of whole numbers, and the range of others.
LEAST = {
    "rank": 1, "lora_alpha": 1, "train_rows": 1, "epochs": 1, "batch_size": 1, "accumulation": 1, "warmup": 0, "max_tokens": 2,
    "coefficient_epochs": 1, "coefficient_batch": 1, "generation_batch": 1, "own_test": 1, "max_new_tokens": 1, "shots": 0,
}
BETWEEN = {
    "dropout": (0, 0.99), "learning_rate": (1e-9, 10), "coefficient_share": (1e-6, 1), "temperature": (0, 10), "top_p": (1e-6, 1),
}
PAPER_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Preset:
    """base: an embedded base (lab.lora.base.EMBEDDED), a folder or a Hub id. data: "world" (generated), "hub", or a folder that holds
    the tasks' folders (Task.folder); "FOLDER+hub" takes from the Hub what the folder does not hold.
    Sizes are rows; learning rates are peaks."""

    name: str
    base: str
    data: str
    revision: str | None = None
    dtype: str = "float32"
    precision: str = "no"
    # skills: ordinary LoRA (paper, Appendix B.1)
    rank: int = 16
    lora_alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = PAPER_TARGETS
    train_rows: int | None = 8000
    epochs: int = 1
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 3e-3
    warmup: int = 20
    max_tokens: int = 256
    # coefficients: learned on the minimum of this share of each skill's rows (paper, Section 4)
    coefficient_share: float = 0.05
    coefficient_epochs: int = 1
    coefficient_batch: int = 8
    coefficient_rates: tuple[float, ...] = (1e-4, 1e-2, 1e-1)  # the sweep; held-out loss decides
    # decoding: temperature 0 is greedy
    temperature: float = 0.0
    top_p: float = 1.0
    generation_batch: int = 100
    own_test: int = 100  # problems of each skill's own test
    max_new_tokens: int | None = None  # None: what each task needs
    shots: int = 0  # worked examples before each question of the target, for methods that bring none (paper, Appendix B.2: one)
    chat: bool = False  # every prompt as a user's turn in the tokenizer's chat template, for an instruction-tuned base
    train_missing: bool = True  # False: a LoRA that is not in the store is an error

    def __post_init__(self):
        for name, low in LEAST.items():
            value = getattr(self, name)
            optional = name in ("train_rows", "max_new_tokens") and value is None
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise LabError(f"Preset {self.name}: {name} is {value!r}; give a whole number of {low} or more.")
        for name, (low, high) in BETWEEN.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise LabError(f"Preset {self.name}: {name} is {value!r}; give a number from {low:g} to {high:g} (write 3e-4 as 0.0003).")
        rates = self.coefficient_rates
        if not isinstance(rates, tuple) or not rates or not all(isinstance(r, (int, float)) and 0 < r <= 10 for r in rates):
            raise LabError(f"Preset {self.name}: coefficient_rates is {rates!r}; give a list of learning rates above 0.")
        if not isinstance(self.targets, tuple) or not self.targets or not all(isinstance(t, str) for t in self.targets):
            raise LabError(f"Preset {self.name}: targets is {self.targets!r}; give a list of module names.")
        for name, choices in {"precision": ("no", "bf16", "fp16"), "dtype": ("float32", "float16", "bfloat16")}.items():
            if getattr(self, name) not in choices:
                raise LabError(f"Preset {self.name}: {name} is {getattr(self, name)!r}; choose {', '.join(choices)}.")
        for name in ("chat", "train_missing"):
            if not isinstance(getattr(self, name), bool):
                raise LabError(f"Preset {self.name}: {name} is {getattr(self, name)!r}; give True or False.")
        if not isinstance(self.data, str) or not self.data:
            raise LabError(f"Preset {self.name}: data is {self.data!r}; give 'world', 'hub' or a folder.")

    @property
    def training(self) -> LoraTraining:
        """How its skills are trained."""
        return LoraTraining(**{field.name: getattr(self, field.name) for field in dataclasses.fields(LoraTraining)})

    def source(self, folder: str) -> str:
        """Where a task finds its rows: "world", "hub", or its own folder in the preset's folder of data."""
        if self.data in ("world", "hub"):
            return self.data
        own = Path(self.data.removesuffix("+hub")) / folder
        return "hub" if self.data.endswith("+hub") and not own.is_dir() else str(own)

    def change(self, **changes) -> "Preset":
        """A preset with other values. Raises LabError for a field that it does not have."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise LabError(f"A preset has no field {name!r}; did you mean {_nearest(name, names)}?")
        return dataclasses.replace(self, **changes)


def _nearest(name: str, names) -> str:
    found = difflib.get_close_matches(name, list(names), 1, 0.0)
    return repr(found[0])


PRESETS = {
    preset.name: preset
    for preset in (
        # All linear layers: with the paper's five, the tiny base learns its skills markedly slower.
        Preset("embedded", "embedded", "world", targets=ALL_LINEAR),
        # A modern open base that one 24 GB GPU trains in an evening. Batches of 4: predictions over 151,936 tokens fill its memory.
        Preset(
            "small", "Qwen/Qwen2.5-0.5B", "hub", revision="060db6499f32faf8b98477b0a26969ef7d8b9987", dtype="float32",
            precision="bf16", rank=32, lora_alpha=64, dropout=0.05, train_rows=20000, epochs=1, batch_size=4, accumulation=8,
            learning_rate=3e-4, warmup=100, max_tokens=512, coefficient_batch=6, generation_batch=64,
            max_new_tokens=200,
        ),
        # The paper's settings (Sections 4, B.1). It trained on all of MetaMathQA and Code Alpaca.
        Preset(
            "paper", "huggyllama/llama-7b", "hub", revision="4782ad278652c7c71b72204d462d6d01eaaf7549", dtype="float16",
            precision="fp16", rank=32, lora_alpha=64, dropout=0.05, train_rows=None, epochs=3, batch_size=8, accumulation=4,
            learning_rate=3e-4, warmup=100, max_tokens=512, coefficient_batch=6, coefficient_rates=(1e-4,), temperature=0.01,
            top_p=0.95, generation_batch=16, max_new_tokens=200, shots=1,
        ),
        # A real language model on any machine: SmolLM2-135M-Instruct from a wheel (make real-base). Short rows, few of them.
        Preset(
            "laptop", "smollm2-135m", "world", targets=ALL_LINEAR, train_rows=1200, learning_rate=5e-4, warmup=10,
            coefficient_rates=(1e-2, 3e-2, 1e-1), generation_batch=50, own_test=60,
        ),
    )
}  # fmt: skip


def get_preset(name: str, **changes) -> Preset:
    """A preset by name, with other values where given. Raises LabError for an unknown name."""
    if name not in PRESETS:
        raise LabError(f"There is no preset {name!r}; did you mean {_nearest(name, PRESETS)}? ({', '.join(PRESETS)})")
    return PRESETS[name].change(**changes)


def preset_for(base: str, *, dtype: str = "float32", chat: bool = False) -> Preset:
    """The preset of a base; one called "own", of these facts and longer rows, for a base that none is for."""
    found = next((preset for preset in PRESETS.values() if preset.base == base), None)
    return found or Preset("own", base, "world", dtype=dtype, targets=ALL_LINEAR, max_tokens=512, chat=chat)


def configure(
    name: str, base: str = "", data: str = "", settings: Mapping[str, object] | None = None, section: Mapping[str, Mapping] = {}
) -> Preset:
    """A preset as a notebook's parameters ask for it.

    base: a folder or Hub id in place of the preset's. data: a folder of real data in place of the preset's.
    settings: other values of the preset's fields. "" and {} leave it as it is. section: what a section of the paper changes in
    each preset, by the preset's name.
    """
    changes = dict(section.get(name, {})) | dict(settings or {})
    if base:
        changes |= {"base": base, "revision": None}
    if data:
        changes["data"] = data
    return get_preset(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
