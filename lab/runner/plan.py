"""What a preset will cost before anything is fetched or trained: downloads, disk, memory, steps, time. No network.

The arithmetic (N: parameters that multiply each token; D: tokens, padding included; L layers of width d; T tokens of a row):
  full training takes 6·N·D operations; LoRA, coefficients and routers 4·N·D, since frozen weights need no gradient of
  their own; attention 6·L·d·T·D more. Each new token of an answer reads weights and cache, or takes 2·N operations for
  each row of the batch, whichever is longer.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lab.errors import LabError
from lab.experiments.candidates import find
from lab.experiments.presets import Preset, get_preset
from lab.experiments.section import Section
from lab.experiments.sections import MATH_CODE, SECTIONS, TWO_PROMPTS, math_code
from lab.files import PROJECT
from lab.lora.base import base_folder
from lab.merging import METHODS
from lab.merging.learn import HELD_OUT
from lab.pages.site import duration
from lab.runner import notebooks
from lab.runner.shape import CONFIGS, Shape, shape_of
from lab.tasks import Task
from lab.tasks.rows import HubSet
from lab.tasks.splits import CALIBRATION_SHARE

CHARACTERS = 3.5  # a token, of English with numbers and code, where no tokenizer is at hand
PADDING = 1.1  # tokens of a batch to tokens of its rows, which are of like length
SAMPLE = 200  # rows read where they are at hand


@dataclass(frozen=True)
class Size:
    """Of a split of a Hub set. characters: of a row as the model reads it, about. megabytes: to fetch, about."""

    rows: int
    characters: int
    megabytes: float


HUB_SIZES = {
    ("meta-math/MetaMathQA", None, "train"): Size(395_000, 800, 396),
    ("openai/gsm8k", "main", "test"): Size(1_319, 530, 0.4),
    ("sahil2801/CodeAlpaca-20k", None, "train"): Size(20_022, 300, 8.2),
    ("reasoning-machines/gsm-hard", None, "train"): Size(1_319, 240, 1.1),
    ("tatsu-lab/alpaca", None, "train"): Size(52_002, 400, 24.2),
    ("rajpurkar/squad_v2", None, "train"): Size(130_319, 840, 16.4),
    ("rajpurkar/squad_v2", None, "validation"): Size(11_873, 900, 1.4),
    ("MedRAG/textbooks", None, "train"): Size(35_000, 800, 212),  # of 18 books with 125,847 pieces, five's, about
    ("lucadiliello/bioasqqa", None, "test"): Size(1_504, 1_000, 1.5),
    ("Lots-of-LoRAs/task161_count_words_containing_letter", None, "train"): Size(5_200, 230, 3),
    ("Lots-of-LoRAs/task161_count_words_containing_letter", None, "test"): Size(650, 230, 0.4),
    ("allenai/ai2_arc", "ARC-Easy", "train"): Size(2_251, 330, 0.3),
    ("allenai/ai2_arc", "ARC-Easy", "test"): Size(2_376, 330, 0.3),
    ("allenai/ai2_arc", "ARC-Challenge", "train"): Size(1_119, 380, 0.2),
    ("allenai/ai2_arc", "ARC-Challenge", "test"): Size(1_172, 380, 0.2),
    ("allenai/openbookqa", "main", "train"): Size(4_957, 260, 0.5),
    ("allenai/openbookqa", "main", "test"): Size(500, 260, 0.1),
    ("allenai/winogrande", "winogrande_xl", "train"): Size(40_398, 290, 2.1),
    ("allenai/winogrande", "winogrande_xl", "validation"): Size(1_267, 290, 0.1),
    ("Rowan/hellaswag", None, "train"): Size(39_905, 800, 24.4),
    ("Rowan/hellaswag", None, "validation"): Size(10_042, 900, 6.3),
    ("ybisk/piqa", None, "train"): Size(16_113, 400, 3.6),
    ("ybisk/piqa", None, "validation"): Size(1_838, 400, 0.5),
    ("allenai/social_i_qa", None, "train"): Size(33_410, 310, 4),
    ("allenai/social_i_qa", None, "validation"): Size(1_954, 310, 0.3),
}
MANUAL = Size(254, 350, 0)  # the paper's game manual, 25,427 tokens (Appendix B.3) in pieces of 100: it is on no Hub


@dataclass(frozen=True)
class Machine:
    """tflops: what training and batches of answers really reach, 10¹² operations a second. bandwidth: 10⁹ bytes a second.
    layer: milliseconds that a layer takes at least for one more token. memory: bytes, where they are few."""

    name: str
    tflops: float
    bandwidth: float
    layer: float
    memory: float = math.inf


# Of peak 71 (RTX 3090) to 165 (RTX 4090) in 16 bits, rows of a few hundred tokens reach about 30.
GPU = Machine("one 24 GB GPU", 30, 700, 1.0, 24e9)
CPU = Machine("two CPU cores", 0.05, 10, 0.5)
# LoRA steps of SmolLM2-135M: 138 tokens per second of one core's time (0.074), while others kept the machine busy.
LAPTOP = dataclasses.replace(CPU, tflops=0.1)
ON_CPU = {"embedded": CPU, "laptop": LAPTOP}  # presets that are made for it


@dataclass(frozen=True)
class Data:
    """Of a task. rows: to train on. tokens: of a row, in the mean, cut at max_tokens. known: read here, not from HUB_SIZES."""

    rows: int
    tokens: float
    known: bool


@dataclass(frozen=True)
class Job:
    """Something that is trained: so often, for so many steps of so many rows' tokens each time. seconds: in all."""

    name: str
    times: int
    steps: int
    tokens: float
    seconds: float


@dataclass(frozen=True)
class SectionPlan:
    """jobs: what is trained. prompts: to be answered, in all. loras: that are kept, in LoRAs of one skill's rank. memory: bytes by
    name."""

    section: Section
    preset: Preset
    jobs: tuple[Job, ...]
    prompts: int
    answering: float
    loras: int
    memory: Mapping[str, float]
    guessed: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(job.seconds for job in self.jobs) + self.answering


@functools.cache
def data_of(task: Task, preset: Preset) -> Data:
    """Rows and their length: read where the data are at hand, else from what is known of the Hub's sets."""
    source = preset.source(task.folder)
    if source == "hub" and not task.hub:
        found = MANUAL
    elif source == "hub":
        sets = [s for s in task.hub if s.split == "train"] or list(task.hub)
        sizes = [size_of(s) for s in sets]
        rows = sum(s.rows for s in sizes)
        found = Size(rows, round(sum(s.rows * s.characters for s in sizes) / rows), 0)
        found = dataclasses.replace(found, rows=int(rows * (1 - CALIBRATION_SHARE)))
    else:
        return _read(task, source, preset)
    rows = min(found.rows, preset.train_rows or found.rows)
    return Data(rows, min(found.characters / CHARACTERS, preset.max_tokens), False)


def _read(task: Task, source: str, preset: Preset) -> Data:
    """Of generated rows or a folder's: a sample of them, by the base's own tokenizer where it is at hand."""
    try:
        examples = task.load(source, "train", preset.train_rows, 0)
    except LabError as no_training:  # a target has only a test split
        try:
            examples = task.load(source, "test", SAMPLE, 0)
        except LabError:
            raise no_training from None
    sample = examples[:: max(1, len(examples) // SAMPLE)]
    folder = base_folder(preset.base)
    if (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        from lab.training.loop import encode

        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        lengths = [len(encode(tokenizer, e.prompt, e.completion, preset.max_tokens).ids) for e in sample]
    else:
        lengths = [min(len(e.prompt + e.completion) / CHARACTERS, preset.max_tokens) for e in sample]
    return Data(len(examples), sum(lengths) / len(lengths), True)


def size_of(source: HubSet) -> Size:
    """Raises LabError for a set of which nothing is known."""
    key = (source.id, source.config, source.split)
    if key not in HUB_SIZES:
        raise LabError(
            f"The size of {source.id}, {source.split}, is not known to the plan; write it into HUB_SIZES of lab/runner/plan.py."
        )
    return HUB_SIZES[key]


def training_seconds(shape: Shape, tokens: float, row: float, machine: Machine) -> float:
    """LoRA, coefficients or a router on so many tokens of rows of so many tokens."""
    operations = 4 * shape.multiplied + 6 * shape.layers * shape.heads * shape.head_dim * row
    return operations * tokens * PADDING / (machine.tflops * 1e12)


def answering_seconds(shape: Shape, preset: Preset, prompts: int, prompt: float, new: int, machine: Machine) -> float:
    """Of `prompts` prompts of so many tokens, `new` tokens each: all of them, since a whole batch seldom stops early."""
    batch = min(preset.generation_batch, prompts)
    read = shape.parameters * _bytes(preset.dtype) + batch * cache(shape, preset, prompt + new)
    token = 2 * shape.multiplied * batch / (machine.tflops * 1e12)  # of each row of the batch
    one = max(token, read / (machine.bandwidth * 1e9), shape.layers * machine.layer / 1e3)
    first = token * prompt
    return math.ceil(prompts / batch) * (first + new * one)


def cache(shape: Shape, preset: Preset, tokens: float) -> float:
    """Bytes of keys and values of one row."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * _bytes(preset.dtype)


def memory(shape: Shape, preset: Preset, skills: int, new: int) -> dict[str, float]:
    """Bytes at the fullest batch: weights; the adapter with its gradient and AdamW's two moments; what the backward pass
    keeps; the predictions of every token over the vocabulary, of which the loss holds about five copies (20 bytes); and
    all that answering needs, with the cache."""
    mixed = preset.precision != "no"
    tokens = preset.batch_size * preset.max_tokens
    copies = shape.multiplied * 2 if mixed and preset.dtype == "float32" else 0  # of each weight, in 16 bits
    weights = shape.parameters * _bytes(preset.dtype)
    adapter = shape.lora(preset.targets, preset.rank * skills)
    layers = shape.kept(preset.targets, preset.rank * skills, preset.dropout > 0, 2 if mixed else 4) * tokens
    row = cache(shape, preset, preset.max_tokens + new) + 8 * shape.vocabulary
    return {
        "weights": weights + copies, "adapter and optimizer": 16 * adapter, "activations": layers,
        "predictions": 20 * tokens * shape.vocabulary, "answering": weights + 4 * adapter + preset.generation_batch * row,
    }  # fmt: skip


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def coefficient_steps(section: Section, preset: Preset) -> tuple[int, int]:
    """(rows of the coefficients' data, steps of one learning on those that are not held out)."""
    each = max(2, int(min(data_of(task, preset).rows for task in section.skills) * preset.coefficient_share))
    rows = each * len(section.skills)
    training = rows - max(1, int(rows * HELD_OUT))
    return rows, math.ceil(training / preset.coefficient_batch) * preset.coefficient_epochs


def skill_of(task: Task, preset: Preset) -> tuple:
    """What tells a skill from others: two sections that ask for the same train it once."""
    return task.name, preset.training, preset.base, preset.source(task.folder), preset.train_rows


def plan_section(
    section: Section, preset: Preset, methods: Sequence[str], seeds: Sequence[int], problems: int, machine: Machine,
    trained: Collection[tuple] = (),
) -> SectionPlan:  # fmt: skip
    """What a section trains and asks: each skill, data-mix, what learns coefficients, and the new LoRAs, for each seed.

    trained: `skill_of` the skills that other sections of the plan train; they are found.
    """
    shape = shape_of(preset.base)
    data = {task.name: data_of(task, preset) for task in section.skills}
    jobs = []
    fresh = {task.name for task in section.skills if skill_of(task, preset) not in trained}
    candidates = [find(name, section) for name in methods]

    def job(name: str, steps: int, tokens: float, row: float) -> None:
        jobs.append(Job(name, len(seeds), steps, tokens, training_seconds(shape, tokens * len(seeds), row, machine)))

    for name, found in data.items():
        if name in fresh:
            tokens = preset.epochs * found.rows * found.tokens
            job(f"skill {name}", preset.training.steps(found.rows), tokens, found.tokens)
    for candidate in sorted((c for c in candidates if c.role == "data"), key=lambda c: c.name):
        if candidate.cost == "continual":
            last = list(data.values())[-1]
            steps = preset.change(epochs=1).training.steps(last.rows)
            job(f"{candidate.name}, after the text", steps, last.rows * last.tokens, last.tokens)
        else:
            rows, tokens = sum(d.rows for d in data.values()), sum(d.rows * d.tokens for d in data.values())
            job(candidate.name, preset.training.steps(rows), preset.epochs * tokens, tokens / rows)
    rows, steps = coefficient_steps(section, preset)
    row = sum(d.tokens for d in data.values()) / len(data)
    seen = (1 - HELD_OUT) * rows * row * preset.coefficient_epochs
    times = {"coefficients": len(preset.coefficient_rates), "one rate": 1}
    rates = {c.name: times[c.cost] for c in candidates if c.cost in times}
    for count in sorted(set(rates.values())):
        several = [name for name, found in rates.items() if found == count]
        label = f"{several[0]}: coefficients" if len(several) == 1 else f"{len(several)} that learn on the skills' rows"
        job(f"{label}, {count} rate{'s' * (count > 1)}", steps * count * len(several), seen * count * len(several), row)
    times = {"new lora": 1, "new loras": len(preset.coefficient_rates)}
    for candidate in (c for c in candidates if c.cost in times):
        job(candidate.name, steps * times[candidate.cost], seen * times[candidate.cost], row)
    target = data_of(section.target, preset)
    for candidate in (c for c in candidates if c.cost == "search"):
        recipe = METHODS[candidate.name].recipe
        read = recipe.steps * (recipe.rows or rows) * target.tokens
        job(f"{candidate.name}: search", recipe.steps, read / 2, target.tokens)  # nothing is passed back: half of training
    if not target.known:
        problems = min(problems, target.rows)
    runs_of = sum(1 if candidate.seedless else len(seeds) for candidate in candidates)
    asked = runs_of * (problems + preset.own_test * len(section.skills))
    new = preset.max_new_tokens or section.target.max_new_tokens
    answering = runs_of * sum(
        answering_seconds(shape, preset, count, d.tokens, new, machine)
        for count, d in [(problems, target), *((preset.own_test, d) for d in data.values())]
    )  # fmt: skip
    others = [c for c in candidates if c.role != "skill"]
    own, merged = (sum(c.keeps == what for c in others) for what in ("one", "all"))
    kept = len(seeds) * (len(fresh) + own + len(section.skills) * merged)
    guessed = tuple(name for name, found in {**data, section.target.name: target}.items() if not found.known)
    return SectionPlan(
        section, preset, tuple(jobs), asked, answering, kept, memory(shape, preset, len(section.skills), new), guessed
    )


def plan(
    name: str, only: Sequence[str] = (), base: str = "", data: str = "", full: bool = False,
    tflops: float | None = None, bandwidth: float | None = None,
) -> str:  # fmt: skip
    """The plan of a preset as text. only: beginnings of sections' names. base: a folder with another base's config.json.
    data: as the notebooks'. full: with the seeds and problems of the committed run. tflops, bandwidth: other than those of
    GPU (those of ON_CPU: CPU).

    Raises LabError for what it does not know.
    """
    get_preset(name)
    machine = ON_CPU.get(name, GPU)
    machine = dataclasses.replace(machine, tflops=tflops or machine.tflops, bandwidth=bandwidth or machine.bandwidth)
    plans, trained = [], set()
    for section in (math_code(name) if section is MATH_CODE else section for section in chosen(only)):
        *asked, settings = asked_of(section, full)
        if name != "embedded":
            settings = {field: value for field, value in settings.items() if field not in notebooks.TUNED}
        preset = section.preset(name, base, data, settings)
        plans.append(plan_section(section, preset, *asked, machine, trained))
        trained |= {skill_of(task, preset) for task in section.skills}
    run = "the committed run" if full else "the quick run (--full: the committed one)"
    return tell(plans, machine, run)


def chosen(only: Sequence[str]) -> list[Section]:
    """The sections whose names begin so. Raises LabError for a beginning that none has."""
    for name in only:
        if not any(section.startswith(name) for section in SECTIONS):
            raise LabError(f"There is no section {name!r}; choose {', '.join(SECTIONS)}.")
    return [section for name, section in SECTIONS.items() if not only or any(name.startswith(one) for one in only)]


def asked_of(section: Section, full: bool) -> tuple[list[str], list[int], int, dict[str, object]]:
    """(methods, seeds, problems, settings) of the section's notebook in the quick run, or with `full` in the committed one."""
    folder = PROJECT / "notebooks"
    stem = next((s for s in notebooks.SECTIONS if s == section.name or s[:5] == section.name[:5]), section.name)
    path = folder / f"{stem}.ipynb"
    own = notebooks.read_parameters(path) if path.is_file() else {}
    listed = notebooks.NOTEBOOKS.get(stem, notebooks.Listed())
    own |= listed.full if full else listed.quick
    wanted = own.get("choice_methods" if section is TWO_PROMPTS else "methods") or ["data_mix", "cat_static", "cat"]
    methods = dict.fromkeys(["base", *(task.name for task in section.skills), *wanted])
    return list(methods), list(own.get("seeds") or [0]), own.get("problems") or 200, dict(own.get("settings") or {})


def tell(plans: Sequence[SectionPlan], machine: Machine, run: str) -> str:
    """The plans as text. run: what it is that they plan."""
    preset = plans[0].preset
    speed = f"{machine.tflops:g} TFLOP/s and {machine.bandwidth:g} GB/s"
    lines = [f"Preset {preset.name}, {run}, on {machine.name} at {speed}", ""]
    fetched = downloads(plans)
    lines += [f"To fetch: {_bytes_said(sum(fetched.values()))}" if fetched else "To fetch: nothing"]
    lines += [f"  {name}  {_bytes_said(size)}" for name, size in fetched.items()]
    kept = 0.0
    for plan in plans:
        shape, p = shape_of(plan.preset.base), plan.preset
        lora = shape.lora(p.targets, p.rank)
        kept += 4 * plan.loras * lora
        what = f"{p.base}, {shape.parameters / 1e6:,.0f} M parameters, {p.dtype}"
        lines += ["", f"{plan.section.name}: {what}, LoRA of {lora / 1e6:,.1f} M, rows of at most {p.max_tokens} tokens"]
        for job in plan.jobs:
            steps, tokens = f"{job.times} × {job.steps:>8,} steps", f"{_count(job.tokens):>8} tokens"
            lines.append(f"  {job.name:44} {steps}  {tokens}  {duration(job.seconds):>10}")
        lines.append(f"  {'answers':44} {plan.prompts:>12,} prompts {'':17}{duration(plan.answering):>10}")
        parts = {name: size for name, size in plan.memory.items() if name != "answering"}
        training, answering = sum(parts.values()), plan.memory["answering"]
        of = ", ".join(f"{name} {_bytes_said(size)}" for name, size in parts.items())
        lines.append(f"  memory: training up to {_bytes_said(training)} ({of}); answering {_bytes_said(answering)}")
        if max(training, answering) > machine.memory:
            there = _bytes_said(machine.memory)
            lines.append(f"  that is more than the {there} here: take a larger GPU, or smaller batches or max_tokens")
        lines.append(f"  time: {duration(plan.seconds)}")
        if plan.guessed:
            lines.append(f"  rows and their length not read, but as known of the sets: {', '.join(plan.guessed)}")
    seconds = sum(plan.seconds for plan in plans)
    lines += ["", f"Disk: {_bytes_said(sum(fetched.values()) + kept)} ({_bytes_said(kept)} of skills and merges)"]
    lines += [f"In all: {duration(seconds)}; s4, 5.5 and the x… notebooks find these skills and take more", ""]
    return "\n".join([*lines, *__doc__.split("\n\n", 1)[1].strip().splitlines()])


def downloads(plans: Sequence[SectionPlan]) -> dict[str, float]:
    """What the Hub is asked for, with revisions, and bytes."""
    found: dict[str, float] = {}
    for plan in plans:
        p = plan.preset
        if p.base in CONFIGS:
            found[f"{p.base} at {p.revision or 'its newest revision'}"] = 2.0 * shape_of(p.base).parameters
    sets: dict[HubSet, Size] = {}
    for plan in plans:
        for task in (*plan.section.skills, plan.section.target):
            if plan.preset.source(task.folder) == "hub":
                sets |= {source: size_of(source) for source in task.hub}
                if not task.hub:
                    found[f"{task.name}: on no Hub, needs {task.folder}/ in a folder (data FOLDER+hub)"] = 0.0
    for source, size in sets.items():
        name = f"{source.id}{f', {source.config}' if source.config else ''} at {source.revision}"
        found[name] = found.get(name, 0.0) + 1e6 * size.megabytes
    return found


def _count(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f} M" if tokens >= 1e5 else f"{tokens / 1e3:,.1f} k"


def _bytes_said(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
