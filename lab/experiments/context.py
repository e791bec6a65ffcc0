"""The run context: one section, preset and seed over a store. It makes or finds what the candidates ask for.

Identity. A key names everything that decides an artifact and nothing else. Training rows stand in it by the digest of what the
model reads and writes, so a changed row or template is another skill, and the same rows are the same skill in whichever section.
What is made of skills names each by the digest of its key.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lab.errors import LabError
from lab.evaluation.evaluate import Decoding, Evaluation, Remember, evaluate
from lab.evaluation.generate import further_ends
from lab.experiments.presets import Preset
from lab.experiments.section import Section
from lab.experiments.store import Store
from lab.files import PROJECT, content_hash, write_atomic
from lab.lora import peft_io
from lab.lora.adapter import LoraAdapter
from lab.lora.base import base_hash, load_base
from lab.lora.stacked import attach
from lab.merging import build
from lab.merging.registry import complete_parameters, get_method
from lab.merging.routing import Router, check_router, load_router, save_router
from lab.tasks import Example, Task
from lab.training.loop import Encoded
from lab.training.lora import VERSION, encode_examples, train_lora

SHIPPED = PROJECT / "lab" / "world" / "skills"  # of seed 0, for all embedded bases, used while their keys fit


@dataclass(frozen=True)
class Entry:
    """What a candidate brings to the test.

    key: everything that decides it. load: makes it, or finds it in the store, and gives the adapter or the router (None: the base
    itself) and facts about it (loss, sweep, learning_rate, steps, seconds, …). shots: worked examples before each question.
    before: what stands before each question otherwise, such as passages found for it.
    """

    key: Mapping
    load: Callable[[], tuple["LoraAdapter | Routed | None", Mapping]]
    shots: tuple[tuple[str, str], ...] = ()
    before: Callable[[Example], str] | None = None


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


class RunContext:
    """One section, preset and seed."""

    def __init__(self, section: Section, preset: Preset, seed: int, store: Store, model, tokenizer):
        self.section, self.preset, self.seed, self.store = section, preset, seed, store
        self.model, self.tokenizer = model, tokenizer

    def change(self, **changes) -> "RunContext":
        """The same with other values of the preset's fields."""
        return RunContext(self.section, self.preset.change(**changes), self.seed, self.store, self.model, self.tokenizer)

    # Data

    def source(self, task: Task) -> str:
        return self.preset.source(task.folder)

    def examples(self, task: Task, split: str, count: int | None, seed: int | None = None) -> list[Example]:
        return list(load_rows(task, self.source(task), split, count, self.seed if seed is None else seed))

    def encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        return encode_examples(self.tokenizer, examples, self.preset.max_tokens, self.preset.chat)

    def rows(self, task: Task) -> list[Encoded]:
        """The skill's training rows."""
        return self.encoded(self.examples(task, "train", self.preset.train_rows))

    @cached_property
    def coefficient_examples(self) -> list[Example]:
        """The small mix: as many calibration rows of each skill, the minimum of the preset's share of each training set."""
        tasks = self.section.skills
        sizes = [len(self.examples(task, "train", self.preset.train_rows)) for task in tasks]
        count = max(2, int(min(sizes) * self.preset.coefficient_share))
        parts = [self.examples(task, "calibration", count) for task in tasks]
        least = min(map(len, parts))
        named = [(task.name, example) for task, part in zip(tasks, parts, strict=True) for example in part[:least]]
        return [dataclasses.replace(e, metadata={**e.metadata, "skill": name}) for name, e in named]

    @cached_property
    def coefficient_rows(self) -> list[Encoded]:
        return self.encoded(self.coefficient_examples)

    def target_examples(self, count: int) -> list[Example]:
        """Examples of the target with their completions, for the methods that are allowed to see some."""
        task = self.section.target
        if task.demonstrations is None:
            raise LabError(f"Task {task.name} has no demonstrations, which methods that see the target learn from.")
        shown = task.demonstrations(self.source(task), count)
        return [Example(f"shown-{i}", task.template.format(text=text), done) for i, (text, done) in enumerate(shown)]

    # Identity

    @cached_property
    def base(self) -> str:
        return base_hash(self.preset.base, self.preset.revision)

    @property
    def on_base(self) -> dict:
        """What the base, as it is computed with, brings into a key."""
        return {"base": self.base, "dtype": self.preset.dtype, **({"chat": True} if self.preset.chat else {})}

    def training_key(self, *tasks: Task, **more) -> dict:
        """Of a LoRA trained on these tasks' rows."""
        rows = [[t.name, rows_digest(t, self.source(t), "train", self.preset.train_rows, self.seed)] for t in tasks]
        training = dataclasses.asdict(self.preset.training)
        return {**self.on_base, "training": training, "rows": rows, "seed": self.seed, "version": VERSION, **more}

    def coefficient_key(self, examples: Sequence[Example] | None = None, **more) -> dict:
        """Of something learned on the small mix, or on other examples."""
        learned_on = self.coefficient_examples if examples is None else examples
        names = ("coefficient_epochs", "coefficient_batch", "max_tokens", "precision")
        settings = {name: getattr(self.preset, name) for name in names}
        return {**self.on_base, "settings": settings, "rows": digest_of(learned_on), "seed": self.seed, **more}

    def method_key(self, method: str, parameters: Mapping) -> dict:
        """Of a merge of this context's skills by a method: its version, all its parameters, and the skills by their keys."""
        found = get_method(method)
        return {"method": method, "version": found.version, "parameters": complete_parameters(found, parameters), "inputs": self.inputs}

    @cached_property
    def inputs(self) -> list[list[str]]:
        """Names of the skills, in order, each with the digest of all that made it.

        Not of its weights: these differ in their last bits from one kind of processor to another, and a record made on one must be
        found on the other without training every skill first. A record tells its adapter's digest beside the key.
        """
        return [[task.name, content_hash(self.skill(task).key)] for task in self.section.skills]

    @property
    def decoding_key(self) -> dict:
        """What decides answers, beside model and prompts, and is the preset's or the base's."""
        p = self.preset
        key = {"temperature": p.temperature, "top_p": p.top_p, "max_new_tokens": p.max_new_tokens}
        if p.temperature:
            key["generation_batch"] = p.generation_batch  # each batch draws from its own seed
        if ends := further_ends(self.model, self.tokenizer):
            key["ends"] = ends
        return key

    # Artifacts

    def trained(self, kind: str, key: dict, rows: Callable[[], Sequence[Encoded]], **options) -> Entry:
        """A LoRA trained in this context, from the store or anew."""

        def make(folder: Path, checkpoint: Path) -> None:
            train_lora(self.model, self.tokenizer, rows(), self.preset.training, name=kind, base=self.preset.base, seed=self.seed,
                       folder=folder, checkpoint=checkpoint, **options)  # fmt: skip

        def load() -> tuple[LoraAdapter, Mapping]:
            def read(folder: Path) -> tuple[LoraAdapter, Mapping]:
                facts = json.loads((folder / "training.json").read_text())
                return peft_io.load(folder, name=kind, base=self.preset.base), facts

            return self.store.get(kind, key, make if self.preset.train_missing else None, read)

        return Entry({"kind": kind, **key}, load)

    def skill(self, task: Task) -> Entry:
        return self.trained(f"skill-{task.name}", self.training_key(task), lambda: self.rows(task))

    @cached_property
    def skills(self) -> list[LoraAdapter]:
        return [dataclasses.replace(self.skill(task).load()[0], name=task.name) for task in self.section.skills]

    def router(self, method: str, parameters: Mapping, state: Mapping[str, torch.Tensor] = {}) -> Router:
        """A router for this context's skills, with what it has learned; not on the model any more."""
        with attach(self.model, self.skills) as stack:
            router = build(method, stack, **parameters)
            router.load_state_dict(state)
        return router

    def made(self, kind: str, key: dict, build: Callable[[Path], tuple[LoraAdapter | Router, dict]]) -> Entry:
        """A merge of this context, from the store or anew; `build(checkpoint)` gives the adapter or router, and facts about it."""

        def make(folder: Path, checkpoint: Path) -> None:
            _ = self.skills  # trained now where they are missing: their time is not the merge's
            started = time.monotonic()
            merged, facts = build(checkpoint)
            (save_router if isinstance(merged, Router) else peft_io.save)(folder, merged, overwrite=True)
            write_atomic(folder / "facts.json", json.dumps({**facts, "seconds": round(time.monotonic() - started, 2)}) + "\n")

        def load() -> tuple[LoraAdapter | Routed, Mapping]:
            def read(folder: Path) -> tuple[LoraAdapter | Path, Mapping]:
                facts = json.loads((folder / "facts.json").read_text())
                if (folder / "router.safetensors").exists():
                    check_router(folder)
                    return folder, facts
                adapter = peft_io.load(folder, name=kind, base=self.preset.base)
                return adapter, {**facts, "recipe": dict(adapter.recipe)}

            found, facts = self.store.get(kind, key, make, read)
            return (Routed(self.skills, found) if isinstance(found, Path) else found), facts

        return Entry({"kind": kind, **key}, load)

    # Asking

    @property
    def decoding(self) -> Decoding:
        p = self.preset
        return Decoding(p.max_new_tokens, p.temperature, p.top_p, p.generation_batch, self.seed, p.chat)

    def ask(self, what: LoraAdapter | Routed | None, task: Task, examples: Sequence[Example], label: str) -> Evaluation:
        """The examples answered by the base with this adapter or router and scored; what was answered before is in the store."""
        remember = remembering(self.store, self.model, what, self.on_base)
        return evaluate(self.model, self.tokenizer, task, examples, self.decoding, remember=remember, label=label)


def remembering(store: Store, model, what: LoraAdapter | Routed | None, on_base: Mapping) -> Remember:
    """What keeps the answers of the model with this adapter or router in a store. on_base: all that decides them beside these."""
    adapter = what.digest() if what else ""

    def remember(kind: str, asked: Mapping, make: Callable[[Path | None], list]) -> list:
        def keep(folder: Path, checkpoint: Path) -> None:
            with applied(model, what):
                write_atomic(folder / f"{kind}.json", json.dumps(make(checkpoint)))

        def read(folder: Path) -> list:
            return json.loads((folder / f"{kind}.json").read_text())

        return store.get(kind, {**on_base, "adapter": adapter, **asked}, keep, read)

    return remember


def open_contexts(section: Section, preset: Preset, seeds: Sequence[int], artifacts: Path) -> list[RunContext]:
    """One per seed, over one store and with one base."""
    model, tokenizer = load_base(preset.base, revision=preset.revision, dtype=preset.dtype)
    return [RunContext(section, preset, seed, Store(artifacts, shipped=SHIPPED), model, tokenizer) for seed in seeds]


def digest_of(examples: Sequence[Example]) -> str:
    """What names examples to learn from: all that the model reads and is to write, in order."""
    return content_hash([(e.prompt, e.completion) for e in examples])


@functools.lru_cache(maxsize=64)
def load_rows(task: Task, source: str, split: str, count: int | None, seed: int) -> tuple[Example, ...]:
    """A task's rows, generated or read once: every candidate of a run asks for the same."""
    return tuple(task.load(source, split, count, seed))


@functools.cache
def rows_digest(task: Task, source: str, split: str, count: int | None, seed: int) -> str:
    """What names a task's rows of a split: the rows themselves, or the Hub's revisions, from which nothing is fetched for a key."""
    if source == "hub" and task.hub:
        return content_hash([dataclasses.asdict(found) for found in task.hub], task.name, task.template, split, count, seed)
    return digest_of(load_rows(task, source, split, count, seed))


def asked_digest(examples: Sequence[Example]) -> str:
    """What names examples to be answered and scored: everything but what a skill would be taught to write."""
    return content_hash([dataclasses.asdict(dataclasses.replace(example, completion="")) for example in examples])
