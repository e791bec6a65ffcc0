"""The comparison: every contender made through the store, asked the same questions, scored, and recorded once.

A contender is a function of a Bench that gives an Entry. To add one, write the function and name it in CONTENDERS; every
static method of lab.merging is a contender by its own name already.
"""

import dataclasses
import difflib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from lab.errors import LabError
from lab.evaluation.generate import generate
from lab.evaluation.likelihood import most_likely
from lab.evaluation.sandbox import isolation_level
from lab.evaluation.scorers import Verdict
from lab.experiments.presets import Preset, configure
from lab.experiments.store import Store
from lab.files import PROJECT, content_hash, write_atomic
from lab.lora import adapter as adapters_of
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.base import base_hash, load_base
from lab.lora.stacked import attach
from lab.merging import METHODS, build, learn, merge
from lab.merging.routing import Router, load_router, save_router
from lab.records import results
from lab.tasks import Example, Task
from lab.tasks.prompts import demonstrate
from lab.training.loop import Encoded, collate, encode
from lab.training.lora import encode_examples, train_lora


@dataclass(frozen=True)
class Section:
    """One section of the paper: skills, and a target that needs them.

    presets: what it changes in a preset, by the preset's name. contenders: its own, by name; they go before the usual ones.
    homes: skills (by name) that are another section's, trained once for all that use them. passed_on: False for rows whose text
    may not be shipped: records then leave out the prompts.
    """

    name: str
    skills: tuple[Task, ...]
    target: Task
    presets: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    contenders: Mapping[str, "Callable[[Bench], Entry]"] = dataclasses.field(default_factory=dict)
    homes: Mapping[str, "Section"] = dataclasses.field(default_factory=dict)
    passed_on: bool = True

    def preset(self, name: str, base: str = "", data: str = "", settings: Mapping[str, object] | None = None) -> Preset:
        """A preset as this section has it, with a notebook's parameters (see lab.experiments.presets.configure)."""
        return configure(name, base, data, settings, self.presets)


@dataclass(frozen=True)
class Entry:
    """What a contender brings to the test.

    key: everything that decides it. load: makes it, or finds it in the store, and gives the adapter or the router (None: the base
    itself) and facts about it (loss, sweep, learning_rate, steps, seconds, …). shots: worked examples before each question.
    context: what stands before each question otherwise, such as passages found for it.
    """

    key: Mapping
    load: Callable[[], tuple["LoraAdapter | Routed | None", Mapping]]
    shots: tuple[tuple[str, str], ...] = ()
    context: Callable[[Example], str] | None = None


@dataclass(frozen=True)
class Routed:
    """Skills with a router between them, which no single adapter can stand for. folder: the router's (lab.merging.routing)."""

    adapters: Sequence[LoraAdapter]
    folder: Path

    @property
    def rank(self) -> int:
        """Of all the factors that a token may meet."""
        return sum(adapter.rank for adapter in self.adapters)

    def digest(self) -> str:
        return content_hash(self.folder / "router.safetensors", self.folder / "recipe.json")  # which names the skills' digests


@contextmanager
def applied(model, what: LoraAdapter | Routed | None) -> Iterator[None]:
    """The model with an adapter or a router on it, inside the block."""
    if what is None:
        yield
    elif isinstance(what, Routed):
        with attach(model, what.adapters) as stack:
            load_router(what.folder, stack)
            yield
    else:
        with attach(model, [what]) as stack:
            stack.set_coefficients(torch.ones(1, len(stack.modules)))
            yield


class Bench:
    """One section, preset and seed: makes or finds what the contenders ask for."""

    def __init__(self, section: Section, preset: Preset, seed: int, store: Store, model, tokenizer):
        self.section, self.preset, self.seed, self.store = section, preset, seed, store
        self.model, self.tokenizer = model, tokenizer

    @cached_property
    def base(self) -> str:
        return base_hash(self.preset.base, self.preset.revision)

    def examples(self, task: Task, split: str, count: int | None, seed: int | None = None) -> list[Example]:
        return task.load(self.preset.source(task.folder), split, count, self.seed if seed is None else seed)

    def rows(self, task: Task) -> list[Encoded]:
        """The skill's training rows."""
        return encode_examples(self.tokenizer, self.examples(task, "train", self.preset.train_rows), self.preset.max_tokens)

    @cached_property
    def coefficient_rows(self) -> list[Encoded]:
        """The small mix: as many calibration rows of each skill, the minimum of the preset's share of each training set."""
        tasks = self.section.skills
        sizes = [len(self.examples(task, "train", self.preset.train_rows)) for task in tasks]
        count = max(2, int(min(sizes) * self.preset.coefficient_share))
        parts = [self.examples(task, "calibration", count) for task in tasks]
        mixed = [e for part in parts for e in part[: min(map(len, parts))]]
        return encode_examples(self.tokenizer, mixed, self.preset.max_tokens)

    def key(self, **more) -> dict:
        """What any artifact of this bench depends on, with `more`."""
        p = self.preset
        training = {
            name: getattr(p, name)
            for name in ("rank", "lora_alpha", "dropout", "targets", "train_rows", "epochs", "batch_size", "accumulation",
                         "learning_rate", "warmup", "max_tokens", "precision")
        }  # fmt: skip
        if p.dtype != "float32":
            training["dtype"] = p.dtype
        data = {task.name: (task.version, task.template, data_hash(task, p.source(task.folder))) for task in self.section.skills}
        return {"base": self.base, "training": training, "data": data, "seed": self.seed, **more}

    def coefficient_key(self, **more) -> dict:
        p = self.preset
        names = ("coefficient_share", "coefficient_epochs", "coefficient_batch", "coefficient_rates")
        return self.key(coefficients={name: getattr(p, name) for name in names}, **more)

    def trained(self, kind: str, key: dict, rows: Callable[[], Sequence[Encoded]], **options) -> Entry:
        """A LoRA trained by this bench, from the store or anew."""

        def make(folder: Path, checkpoint: Path) -> None:
            train_lora(self.model, self.tokenizer, rows(), self.preset, name=kind, seed=self.seed, folder=folder,
                       checkpoint=checkpoint, **options)  # fmt: skip

        def load() -> tuple[LoraAdapter, Mapping]:
            folder = self.store.get(kind, key, make if self.preset.train_missing else None)
            facts = json.loads((folder / "training.json").read_text())
            return adapters_of.load(folder, name=kind, base=self.preset.base), facts

        return Entry({"kind": kind, **key}, load)

    def skill(self, task: Task) -> Entry:
        if home := self.section.homes.get(task.name):
            return Bench(home, self.preset, self.seed, self.store, self.model, self.tokenizer).skill(task)
        return self.trained(f"skill-{task.name}", self.key(skill=task.name), lambda: self.rows(task))

    def target_rows(self, count: int) -> list[Encoded]:
        """Examples of the target with their completions, for the methods that are allowed to see some."""
        task = self.section.target
        if task.demonstrations is None:
            raise LabError(f"Task {task.name} has no demonstrations, which methods that see the target learn from.")
        shown = task.demonstrations(self.preset.source(task.folder), count)
        examples = [Example(f"shown-{i}", task.template.format(text=text), done, "") for i, (text, done) in enumerate(shown)]
        return encode_examples(self.tokenizer, examples, self.preset.max_tokens)

    def router(self, method: str, parameters: Mapping, state: Mapping[str, torch.Tensor] = {}) -> Router:
        """A router for this bench's skills, with what it has learned; not on the model any more."""
        with attach(self.model, self.skills) as stack:
            router = build(method, stack, **parameters)
            router.load_state_dict(state)
        return router

    @cached_property
    def skills(self) -> list[LoraAdapter]:
        return [dataclasses.replace(self.skill(task).load()[0], name=task.name) for task in self.section.skills]

    def made(self, kind: str, key: dict, build: Callable[[Path], tuple[LoraAdapter | Router, dict]]) -> Entry:
        """A merge of this bench, from the store or anew; `build(checkpoint)` gives the adapter or router, and the facts about it."""

        def make(folder: Path, checkpoint: Path) -> None:
            _ = self.skills  # trained now where they are missing: their time is not the merge's
            started = time.time()
            merged, facts = build(checkpoint)
            (save_router if isinstance(merged, Router) else adapters_of.save)(folder, merged, overwrite=True)
            write_atomic(folder / "facts.json", json.dumps({**facts, "seconds": round(time.time() - started, 2)}) + "\n")

        def load() -> tuple[LoraAdapter | Routed, Mapping]:
            folder = self.store.get(kind, key, make)
            facts = json.loads((folder / "facts.json").read_text())
            if (folder / "router.safetensors").exists():
                return Routed(self.skills, folder), facts
            adapter = adapters_of.load(folder, name=kind, base=self.preset.base)
            return adapter, {**facts, "recipe": dict(adapter.recipe)}

        return Entry({"kind": kind, **key}, load)


# Contenders


def base(bench: Bench) -> Entry:
    return Entry({"base": bench.base, "dtype": bench.preset.dtype}, lambda: (None, {}))


def base_few_shot(bench: Bench) -> Entry:
    """The base with worked programs in its prompt (the paper's 8-shot PAL; the demonstrations are the task's)."""
    task = bench.section.target
    if task.demonstrations is None:
        raise LabError(f"Task {task.name} has no demonstrations, so there is no few-shot baseline.")
    return dataclasses.replace(base(bench), shots=tuple(task.demonstrations(bench.preset.source(task.folder))))


def data_mix(bench: Bench) -> Entry:
    """One LoRA of rank k·r on all skills' data together (paper, Section 3.1)."""
    return bench.trained(
        "data_mix", bench.key(mix=[t.name for t in bench.section.skills]),
        lambda: [row for task in bench.section.skills for row in bench.rows(task)], rank_factor=len(bench.section.skills),
    )  # fmt: skip


def learned(bench: Bench, method: str, *, rates: Sequence[float] = (), kind: str = "", adapters=None, start: Mapping = {}) -> Entry:
    """A method of lab.merging that learns, on the skills' own data unless its recipe asks for examples of the target.

    rates: the preset's sweep, unless given. start: the method's parameters. adapters: gives others than the skills. Steps and
    batch are the preset's for all methods, so that each sees as much data as CAT.
    """
    preset = bench.preset
    kind = kind or method
    rates = rates or preset.coefficient_rates
    recipe = METHODS[method].recipe
    search = METHODS[method].kind == "search"

    def build_it(checkpoint: Path) -> tuple[LoraAdapter | Router, dict]:
        rows = bench.target_rows(recipe.rows) if recipe.data == "target" else bench.coefficient_rows
        found = learn.learn(
            method, bench.model, adapters() if adapters else bench.skills, rows, bench.tokenizer.pad_token_id, rates=rates,
            batch_size=preset.coefficient_batch, epochs=None if search else preset.coefficient_epochs, seed=bench.seed,
            precision=preset.precision, parameters=start, checkpoint=checkpoint,
        )  # fmt: skip
        facts = {"loss": found.losses, "sweep": found.sweep, "learning_rate": found.learning_rate, "steps": found.steps}
        return found.adapter or bench.router(method, start, found.router_state), facts

    return bench.made(kind, bench.coefficient_key(method=method, kind=kind, rates=rates, parameters=start), build_it)


def cat_released(bench: Bench) -> Entry:
    """The released code's start and rate: logits from N(0, 1), 1e-4. Batch size and epochs are the preset's, as for `cat`."""
    released = METHODS["cat_released"]
    return learned(bench, "cat_released", rates=(released.recipe.learning_rate,), start={"seed": bench.seed})


def static(bench: Bench, method: str, **parameters) -> Entry:
    """A static method of lab.merging with its default weights, or a router that learns nothing."""
    if "seed" in {p.name for p in METHODS[method].parameters}:
        parameters.setdefault("seed", bench.seed)

    def build_it(_: Path) -> tuple[LoraAdapter | Router, dict]:
        if METHODS[method].kind == "router":
            return bench.router(method, parameters), {}
        return merge(method, bench.skills, **parameters), {}

    return bench.made(method, bench.key(method=method, parameters=parameters), build_it)


def new_lora(bench: Bench, compute: bool = False) -> Entry:
    """Control: a new LoRA on the coefficients' data, for the steps of one learning of CAT, or (compute) of its whole sweep."""
    preset = bench.preset
    sweeps = len(preset.coefficient_rates) if compute else 1
    training, _ = learn.split_held_out(bench.coefficient_rows, bench.seed)
    steps = -(-len(training) // preset.coefficient_batch) * preset.coefficient_epochs * sweeps
    return bench.trained(
        f"new_lora-{sweeps}", bench.coefficient_key(new_lora=sweeps), lambda: training, steps=steps, batch_size=preset.coefficient_batch
    )


def random_adapters(adapters: Sequence[LoraAdapter], seed: int) -> list[LoraAdapter]:
    """LoRAs of Gaussian noise around 0 whose factors have the spread (std) of the given ones, module by module."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * like.std()

    return [
        dataclasses.replace(a, modules={m: LoraFactors(noise(f.A), noise(f.B), f.scaling) for m, f in a.modules.items()})
        for a in adapters
    ]


def random_loras(bench: Bench, method: str = "cat", kind: str = "random_loras") -> Entry:
    """Control: a method learned on noise in place of the skills (arXiv 2602.12323)."""
    return learned(bench, method, adapters=lambda: random_adapters(bench.skills, bench.seed), kind=kind)


def rescale_one(bench: Bench, scales: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)) -> Entry:
    """Control: one skill alone, rescaled; skill and scale by the loss on the coefficients' data."""

    def build(_: Path) -> tuple[LoraAdapter, dict]:
        _, held_out = learn.split_held_out(bench.coefficient_rows, bench.seed)
        found = []
        for adapter in bench.skills:
            with attach(bench.model, [adapter]) as stack:
                for scale in scales:
                    stack.set_coefficients(torch.full((1, len(stack.modules)), scale))
                    found.append((learn.held_out_loss(bench.model, held_out, bench.tokenizer.pad_token_id), adapter.name, scale))
        _, name, scale = min(found)
        adapter = next(a for a in bench.skills if a.name == name)
        modules = {m: LoraFactors(f.A, f.B * scale, f.scaling) for m, f in adapter.modules.items()}
        return dataclasses.replace(adapter, modules=modules), {"skill": name, "scale": scale, "tried": found}

    return bench.made("rescale_one", bench.coefficient_key(method="rescale_one", scales=list(scales)), build)


CONTENDERS: dict[str, Callable[[Bench], Entry]] = {
    "base": base,
    "few_shot": base_few_shot,
    "data_mix": data_mix,
    "cat": partial(learned, method="cat"),
    "cat_sigmoid": partial(learned, method="cat", kind="cat_sigmoid", start={"parametrisation": "sigmoid"}),
    "cat_free": partial(learned, method="cat", kind="cat_free", start={"parametrisation": "free"}),
    "cat_layer": partial(learned, method="cat", kind="cat_layer", start={"granularity": "layer"}),
    "cat_released": cat_released,
    "new_lora": new_lora,
    "new_lora_compute": partial(new_lora, compute=True),
    "random_loras": random_loras,
    "random_loras_per_rank": partial(random_loras, method="rank_cat", kind="random_loras_per_rank"),
    "rescale_one": rescale_one,
}
SHIPPED = PROJECT / "lab" / "world" / "skills"  # of seed 0, for all embedded bases, used while their hash fits
SEEDLESS = ("base", "few_shot")  # the same for every seed


def get_contender(name: str, section: Section) -> Callable[[Bench], Entry]:
    """By name: a contender, a method of lab.merging, or a skill of the section. Raises LabError for another."""
    for named in (section.contenders, CONTENDERS):
        if name in named:
            return named[name]
    for task in section.skills:
        if name == task.name:
            return lambda bench: bench.skill(task)
    if name in METHODS:
        return partial(static if METHODS[name].recipe is None else learned, method=name)
    known = [*section.contenders, *CONTENDERS, *(t.name for t in section.skills), *METHODS]
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise LabError(f"There is no method {name!r}; did you mean {near!r}? ({', '.join(dict.fromkeys(known))})")


def check(section: Section, preset: Preset, methods: Sequence[str], needs: Sequence[str] = ()) -> None:
    """Raise LabError for what would fail after hours: an unknown method, missing rows, or a method that the page needs."""
    for name in methods:
        get_contender(name, section)
    missing = [name for name in needs if name not in methods]
    if missing:
        raise LabError(f"The tables and figures need the method {missing[0]!r} too; add it to methods.")
    for task in (*section.skills, section.target):
        if preset.source(task.folder) != "hub" or not task.hub:  # the Hub is not asked before it must be
            task.load(preset.source(task.folder), "test", 1, 0)


@functools.cache
def data_hash(task: Task, source: str) -> str:
    """What names a task's data in keys: generated data by the generators' own text, a folder by its files, or the Hub's revisions."""
    if source == "world":
        world = PROJECT / "lab" / "world"
        return content_hash(*(world / name for name in task.world))
    if source == "hub":
        return content_hash([dataclasses.asdict(found) for found in task.hub])
    return content_hash(Path(source)) if Path(source).is_dir() else source


def compare(
    section: Section, preset: Preset, methods: Sequence[str], seeds: Sequence[int], problems: int, *, out: Path, artifacts: Path
) -> list[results.RunRecord]:
    """Make, ask, score and record every method for every seed; what is on record already is not done again.

    problems: test problems of the target. out: folder of the records. artifacts: folder of the store.
    """
    if problems < 1:
        raise LabError(f"problems is {problems}; give 1 or more.")
    if not seeds:
        raise LabError("There are no seeds; give at least one.")
    makers = {name: get_contender(name, section) for name in methods}
    model, tokenizer = load_base(preset.base, revision=preset.revision, dtype=preset.dtype)
    records = []
    for seed in seeds:
        bench = Bench(section, preset, seed, Store(artifacts, shipped=SHIPPED), model, tokenizer)
        for name, make in makers.items():
            if name in SEEDLESS and seed != seeds[0]:
                continue
            records.append(_record(bench, name, make, problems, out))
    return records


def _record(bench: Bench, name: str, make: Callable[[Bench], Entry], problems: int, out: Path) -> results.RunRecord:
    section, preset, target = bench.section, bench.preset, bench.section.target
    entry = make(bench)
    tasks = (*section.skills, target)
    decoding = {f: getattr(preset, f) for f in ("temperature", "top_p", "max_new_tokens", "own_test")}
    if preset.temperature:  # each batch draws from its own seed
        decoding["generation_batch"] = preset.generation_batch
    data = content_hash({t.name: data_hash(t, preset.source(t.folder)) for t in tasks})
    versions = [(t.name, t.version, t.template) for t in tasks]
    shots = entry.shots or (base_few_shot(bench).shots[: preset.shots] if preset.shots and target.demonstrations else ())
    key = content_hash(section.name, name, bench.seed, versions, data, problems, decoding, dict(entry.key), list(shots))
    found = results.find_record(out, section.name, key)
    if found is not None:
        return found
    adapter, facts = entry.load()
    hashes = {"base": bench.base, "adapter": adapter.digest() if adapter else "", "data": data}
    seconds = {"make": facts.get("seconds", 0.0)}
    started = time.time()
    # The same test problems for every seed and method, so that methods can be compared problem by problem.
    examples = bench.examples(target, "test", problems, seed=0)
    if entry.context:
        examples = [dataclasses.replace(e, prompt=entry.context(e) + e.prompt) for e in examples]
    if shots:
        shown = demonstrate(target.template, shots)
        examples = [dataclasses.replace(e, prompt=shown + e.prompt) for e in examples]
    answers = answer(bench, adapter, target, examples, f"{name}, seed {bench.seed}")
    seconds["answer"] = round(time.time() - started, 2)
    started = time.time()
    verdicts = target.score(answers, [e.answer for e in examples])
    if any(e.choices for e in examples):
        verdicts = with_likelihood(bench, adapter, examples, verdicts, f"{name}, seed {bench.seed}, choices")
    seconds["score"] = round(time.time() - started, 2)
    started = time.time()
    own = {}
    for task in () if entry.shots or entry.context else section.skills:  # worked examples of the target say nothing about the skills' tests
        tests = [e for e in bench.examples(task, "test", preset.own_test, seed=0) if e.answer]
        if tests:  # Code Alpaca's rows have no answer that a program could be checked against
            own_answers = answer(bench, adapter, task, tests, f"{name}, {task.name} test")
            scores = [v.score for v in task.score(own_answers, [e.answer for e in tests]) if v.score is not None]
            own[task.name] = sum(scores) / len(scores) if scores else None
    seconds["own tests"] = round(time.time() - started, 2)
    recipe = facts.get("recipe", {})
    coefficients = None
    if "coefficients" in recipe:
        values = [[round(value, 5) for value in row] for row in recipe["coefficients"]]
        coefficients = {"skills": recipe["skills"], "modules": recipe["modules"], "values": values}
    parameters = {
        "preset": dataclasses.asdict(preset.change(train_missing=True)), "problems": problems,
        **{f: facts[f] for f in ("learning_rate", "steps", "sweep", "skill", "scale") if f in facts},
        **({"rank": adapter.rank} if adapter else {}),
        **({"effective_support": effective_support(bench, adapter, examples, answers)} if isinstance(adapter, Routed) else {}),
    }  # fmt: skip
    rows = results.completion_rows(examples, answers, verdicts)
    if not section.passed_on:
        rows = [{**row, "prompt": ""} for row in rows]
    record = results.make_record(
        rows, section=section.name, preset=preset.name, method=name, seed=bench.seed, task=target.name, task_version=target.version,
        own=own, parameters=parameters, hashes=hashes, coefficients=coefficients, loss=facts.get("loss"),
        seconds=seconds, sandbox=isolation_level().name, key=key,
    )  # fmt: skip
    return results.save_record(record, rows, out)


@torch.no_grad()
def effective_support(bench: Bench, routed: Routed, examples: Sequence[Example], answers: Sequence[str], count: int = 50) -> float:
    """How many skills share a token, in effect (lab.merging.routing.Support), over the first examples and their answers."""
    rows = [encode(bench.tokenizer, e.prompt, text, bench.preset.max_tokens) for e, text in zip(examples[:count], answers, strict=False)]
    batch = collate(rows, bench.tokenizer.pad_token_id)
    device = next(bench.model.parameters()).device
    with attach(bench.model, routed.adapters) as stack, load_router(routed.folder, stack).effective_support() as support:
        bench.model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False)
    return support.mean


def with_likelihood(
    bench: Bench, adapter: LoraAdapter | Routed | None, examples: Sequence[Example], verdicts: Sequence[Verdict], label: str
) -> list[Verdict]:
    """The verdicts with one more score, 'likelihood': whether the choice that the model finds most likely is right."""
    prompts, choices = [e.prompt for e in examples], [e.choices for e in examples]

    def make(folder: Path, _: Path) -> None:
        with applied(bench.model, adapter):
            places = most_likely(bench.model, bench.tokenizer, prompts, choices, batch_size=bench.preset.generation_batch, label=label)
        write_atomic(folder / "places.json", json.dumps(places))

    key = {
        "base": bench.base, "adapter": adapter.digest() if adapter else "", "dtype": bench.preset.dtype,
        "prompts": content_hash(prompts, choices),
    }  # fmt: skip
    places = json.loads((bench.store.get("choices", key, make) / "places.json").read_text())
    chosen = [given[place] for given, place in zip(choices, places, strict=True)]
    scored = bench.section.target.score(chosen, [e.answer for e in examples])
    return [
        dataclasses.replace(verdict, extras={**verdict.extras, "likelihood": by_likelihood.score})
        for verdict, by_likelihood in zip(verdicts, scored, strict=True)
    ]


def answer(bench: Bench, adapter: LoraAdapter | Routed | None, task: Task, examples: Sequence[Example], label: str) -> list[str]:
    """The completions of the examples' prompts by the base with this adapter; from the store, or continued where they stopped."""
    preset = bench.preset
    prompts = [e.prompt for e in examples]
    options = dict(
        max_new_tokens=preset.max_new_tokens or task.max_new_tokens, stop=task.stop, temperature=preset.temperature, top_p=preset.top_p,
        batch_size=preset.generation_batch, seed=bench.seed, label=label,
    )  # fmt: skip

    def make(folder: Path, checkpoint: Path) -> None:
        with applied(bench.model, adapter):
            texts = generate(bench.model, bench.tokenizer, prompts, partial=checkpoint, **options)
        write_atomic(folder / "answers.json", json.dumps(texts))

    key = {
        "base": bench.base, "adapter": adapter.digest() if adapter else "", "dtype": preset.dtype, "prompts": content_hash(prompts),
        "decoding": {name: value for name, value in options.items() if name not in ("label", "batch_size")},
    }  # fmt: skip
    if preset.temperature:
        key["batch_size"] = preset.generation_batch
    folder = bench.store.get("answers", key, make)
    return json.loads((folder / "answers.json").read_text())
