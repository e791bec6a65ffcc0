"""Learning alphas, weighing settings and layers: what the page's jobs do, by the library's own functions."""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lab.app.engine import Engine, shared_copy
from lab.app.jobs import Job
from lab.app.scratch import kept_folder
from lab.app.session import Routing, Session
from lab.app.showcase import Showcase
from lab.errors import LabError
from lab.experiments.presets import Preset
from lab.lora.adapter import LoraAdapter
from lab.lora.peft_io import load, save
from lab.lora.stacked import StackedLinear
from lab.merging import METHODS, Method, learn
from lab.merging.alphas import Grid, settle
from lab.merging.recipe import inputs_of
from lab.merging.registry import complete_parameters
from lab.tasks import Example
from lab.training.loop import Encoded
from lab.training.lora import encode_examples

HELD_OUT_ROWS = 40  # per skill, beyond the rows to learn on: for ΔNLL
SNAPSHOTS = 60  # pictures of the coefficients kept over a run


@dataclass(frozen=True)
class Material:
    """rows: to learn on, all skills mixed. held: label -> rows that are only measured on. name: for the recipe."""

    rows: list[Encoded]
    held: Mapping[str, list[Encoded]]
    name: str = "world"


def learnable() -> list[Method]:
    """The methods that learn, those of alphas first; a search asks for examples of the target (target_material)."""
    order = ("coefficients", "router", "solve", "search")
    return sorted((m for m in METHODS.values() if m.recipe is not None), key=lambda m: order.index(m.kind))


def skills_material(engine: Engine, preset: Preset, showcase: Showcase, names: Sequence[str], count: int, seed: int) -> Material:
    """`count` calibration rows of each skill that has a task of its name. Raises LabError when none has."""
    tasks = {name: task for name, task in showcase.tasks.items() if name in names and name != showcase.target}
    if not 1 <= count <= 20_000:
        raise LabError(f"rows is {count}; give a whole number from 1 to 20000.")
    if not tasks:
        raise LabError(f"No data is known for {', '.join(names)}; give your own rows as JSONL files, one per skill.")
    examples = {n: t.load(preset.source(t.folder), "calibration", count + HELD_OUT_ROWS, seed) for n, t in tasks.items()}
    return _material(engine, preset, examples, preset.data, count)


def own_material(engine: Engine, preset: Preset, pairs: Mapping[str, Sequence[tuple[str, str]]], seed: int) -> Material:
    """One's own (prompt, completion) rows by label."""
    examples = {
        label: [Example(f"{label}-{i}", *pair) for i, pair in enumerate(random.Random(seed).sample(list(rows), len(rows)))]
        for label, rows in pairs.items()
    }
    return _material(engine, preset, examples, " ".join(f"{label}.jsonl" for label in pairs))


def target_material(engine: Engine, preset: Preset, showcase: Showcase, count: int) -> Material:
    """The first `count` worked examples of the target. Raises LabError where none are known."""
    target = showcase.tasks[showcase.target]
    shown = target.demonstrations(preset.source(target.folder), count)
    examples = [Example(f"{i}", target.template.format(text=text), done) for i, (text, done) in enumerate(shown)]
    rows = encode_examples(engine.tokenizer, examples, preset.max_tokens, preset.chat)
    return Material(rows, {}, f"{target.name}.jsonl")


def _material(
    engine: Engine, preset: Preset, examples: Mapping[str, list[Example]], name: str, count: int | None = None
) -> Material:
    rows, held = [], {}
    for label, found in examples.items():
        encoded = encode_examples(engine.tokenizer, found, preset.max_tokens, preset.chat)
        encoded = [replace(row, skill=label) for row in encoded if row.prompt_length < len(row.ids)]
        if len(encoded) < 4:
            raise LabError(
                f"{label} has {len(encoded)} usable rows; give at least 4 that fit {preset.max_tokens} tokens."
            )
        least = min(HELD_OUT_ROWS, max(1, len(encoded) // 4))
        cut = min(count or len(encoded), len(encoded) - least)
        rows += encoded[:cut]
        held[label] = encoded[cut : cut + HELD_OUT_ROWS]
    return Material(rows, held, name)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave. alphas: (skills, modules), None when the result is no such table. held_out: nats per token.

    Its weights lie on disk, so that a run that nobody comes back for holds no memory. routing: the result of a router.
    """

    folder: tempfile.TemporaryDirectory
    grid: Grid
    recipe: Mapping[str, object]
    alphas: np.ndarray | None
    held_out: float | None
    routing: Routing | None = None

    @classmethod
    def of(cls, found: LoraAdapter | Routing, grid: Grid, held_out: float | None) -> "Outcome":
        folder = kept_folder()
        if isinstance(found, Routing):
            return cls(folder, grid, found.recipe, None, held_out, replace(found, adapters=()))
        save(Path(folder.name) / "adapter", found)
        return cls(folder, grid, found.recipe, _as_alphas(found.recipe, grid), held_out)

    def result(self, adapters: Sequence[LoraAdapter]) -> LoraAdapter | Routing:
        """The learned adapter, or the router for these adapters. Raises LabError when it was learned for others."""
        learned = {i["name"]: i["digest"] for i in self.recipe["inputs"]}
        if learned != {a.name: a.digest() for a in adapters}:
            raise LabError("That run was for other adapters; load those again.")
        if self.routing is not None:
            return replace(self.routing, adapters=tuple(adapters))
        return replace(load(Path(self.folder.name) / "adapter", base=adapters[0].base), recipe=self.recipe)


def learn_job(
    engine: Engine,
    adapters: Sequence[LoraAdapter],
    material: Material,
    *,
    method: str,
    parameters: Mapping,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Callable[[Job], Outcome]:
    """Work for Jobs: learn, telling losses and coefficients as it goes. Raises LabError at once for bad settings."""
    if not 1 <= steps <= 10_000:
        raise LabError(f"steps is {steps}; give a whole number from 1 to 10000.")
    if not 0 < learning_rate <= 10:
        raise LabError(f"The learning rate is {learning_rate}; give a number above 0, at most 10.")
    if not 1 <= batch_size <= 256:
        raise LabError(f"batch_size is {batch_size}; give a whole number from 1 to 256.")
    known = {m.name: m for m in learnable()}
    if method not in known:
        raise LabError(f"{method!r} learns no alphas; choose {', '.join(known)}.")
    complete = complete_parameters(known[method], parameters)
    grid = Grid.of(adapters)

    def work(job: Job) -> Outcome:
        losses: list[float] = []
        drift: list[tuple[int, np.ndarray]] = []
        job.view.update(losses=losses, drift=drift, steps=steps, grid=grid, method=method)
        model = shared_copy(engine.model)
        every = max(1, steps // SNAPSHOTS)

        def on_step(step: int, loss: float) -> bool:
            losses.append(loss)
            job.progress = min(1.0, (step + 1) / steps)
            if step % every == 0 or step == steps - 1:
                values = _present_coefficients(model, grid)
                if values is not None:
                    drift.append((step, values))
            engine.turns.rest()
            return job.wanted_stop.is_set()

        with engine.turns:
            found = learn.learn(
                method,
                model,
                adapters,
                material.rows,
                engine.tokenizer.pad_token_id,
                rates=(learning_rate,),
                batch_size=batch_size,
                steps=steps,
                seed=seed,
                parameters=parameters,
                on_step=on_step,
            )
        job.view["drawn"] = None
        facts = {"steps": steps, "seed": seed, "rows": len(material.rows), "data": material.name}
        if found.learning_rate is not None:
            facts |= {"learning_rate": learning_rate, "batch_size": batch_size}
        if material.held:
            facts["rows_each"] = len(material.rows) // len(material.held)
        if len(losses) < steps:
            facts["stopped_after"] = len(losses)
        if found.adapter is None:
            recipe = {"method": method, "parameters": complete, "inputs": inputs_of(adapters), "learning": facts}
            learned = Routing(method, tuple(adapters), recipe, found.router_state)
        else:
            learned = replace(found.adapter, recipe={**found.adapter.recipe, "learning": facts})
        job.progress = 1.0
        return Outcome.of(learned, grid, dict(found.sweep).get(learning_rate))

    return work


def _as_alphas(recipe: Mapping, grid: Grid) -> np.ndarray | None:
    """The recipe's coefficients, when they are one per skill and module; its skills may stand in another order.

    LoraHub's weights are such a table too where they are weights of the updates, not of the factors.
    """
    try:
        if recipe["method"] == "lorahub" and recipe["parameters"]["semantics"] == "delta":
            weights = [[recipe["weights"][skill]] for skill in grid.skills]
            return settle(np.broadcast_to(np.array(weights), grid.present.shape), grid)
        values = np.array(recipe["coefficients"], dtype=float)
        if values.shape != grid.present.shape or list(recipe["modules"]) != list(grid.modules):
            return None
        return settle(values[[list(recipe["skills"]).index(skill) for skill in grid.skills]], grid)
    except (KeyError, ValueError, TypeError):
        return None


@torch.no_grad()
def _present_coefficients(model, grid: Grid) -> np.ndarray | None:
    """The coefficients that the last forward pass used; None when they are not one per skill and module."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, StackedLinear)}
    columns = [getattr(layers.get(module), "coefficients", None) for module in grid.modules]
    if not all(isinstance(c, torch.Tensor) and c.shape == (len(grid.skills),) for c in columns):
        return None
    return torch.stack([c.detach().float() for c in columns], dim=1).cpu().numpy().astype(float)


def weigh(
    engine: Engine, session: Session, columns: Sequence[str], held: Mapping[str, Sequence[Encoded]]
) -> dict[str, dict[str, float]]:
    """column -> label -> loss on held-out rows (nats per token)."""
    found: dict[str, dict[str, float]] = {name: {} for name in columns}
    for part in session.parts(columns):
        lane = engine.lane(part.adapters, part.routing)
        for place, row in zip(part.places, part.rows, strict=True):
            for label, data in held.items():
                with engine.turns:
                    lane.use(row[None])
                    value = learn.held_out_loss(lane.model, data, engine.tokenizer.pad_token_id)
                found[columns[place]][label] = value
    return found


def layers_job(
    engine: Engine, session: Session, held: Mapping[str, Sequence[Encoded]], factor: float
) -> Callable[[Job], dict]:
    """Work for Jobs: what each skill loses (ΔNLL, nats per token) when one layer's alphas are multiplied by `factor`.

    The job's view has `layers`, `labels` and `costs` (layers, labels), NaN where it is not known yet.
    """
    if not 0 <= factor < 1:
        raise LabError(f"The factor is {factor}; give a number from 0 (take the layer out) to below 1.")
    grid, alphas, adapters = session.need(), session.alphas, session.adapters

    def work(job: Job) -> dict:
        lane, labels = engine.lane(adapters), list(held)
        costs = np.full((len(grid.layers), len(labels)), np.nan)
        job.view.update(layers=grid.layers, labels=labels, costs=costs, factor=factor)

        def loss(values: np.ndarray, label: str) -> float:
            with engine.turns:
                lane.use(torch.tensor(values, dtype=torch.float32)[None])
                return learn.held_out_loss(lane.model, held[label], engine.tokenizer.pad_token_id)

        whole = [loss(alphas, label) for label in labels]
        for i, layer in enumerate(grid.layers):
            here = np.array([at == layer for at, _ in grid.places])
            lowered = np.where(here, alphas * factor, alphas)
            for j, label in enumerate(labels):
                if job.wanted_stop.is_set():
                    return job.view
                costs[i, j] = loss(lowered, label) - whole[j]
                job.progress = (i * len(labels) + j + 1) / costs.size
        return job.view

    return work
