"""The rewriting skills that ship for the real base: still those of their recipe, small, and the ones that their merge was learned for."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open

from lab.errors import LabError
from lab.experiments import rewriting_skills
from lab.experiments.context import RunContext
from lab.experiments.rewriting_skills import CHANGES, FOLDER, RECIPE, SECTION
from lab.experiments.store import Store
from lab.lora.adapter import module_names
from lab.lora.peft_io import WEIGHTS, load
from lab.merging.recipe import inputs_of


@pytest.fixture(scope="module")
def shipped():
    return [load(FOLDER / change, name=change) for change in CHANGES]


@pytest.mark.parametrize("change, task", zip(CHANGES, SECTION.skills, strict=True), ids=CHANGES)
def test_shipped_skills_are_those_of_their_recipe(change, task, tmp_path):
    """Change the rows, the prompt or the preset's training, and they must be made again; of the base only where its wheel is."""
    context = RunContext(SECTION, rewriting_skills.preset(), 0, Store(tmp_path), None, None)
    stated = json.loads((FOLDER / change / "key.json").read_text())
    try:
        _ = context.base
    except LabError:
        context = RunContext(SECTION, context.preset, 0, context.store, None, None)
        context.__dict__["base"] = stated["base"]
    assert json.loads(json.dumps(context.skill(task).key)) == stated


def test_the_shipped_merge_is_of_the_shipped_skills(shipped):
    recipe = json.loads(RECIPE.read_text())
    assert recipe["inputs"] == inputs_of(shipped) and recipe["skills"] == list(CHANGES) and recipe["base"] == shipped[0].base
    assert recipe["modules"] == module_names(shipped)
    values = np.array(recipe["coefficients"])
    assert values.shape == (len(CHANGES), len(recipe["modules"])) and (0 < values).all() and (values < 1).all()  # the paper's CAT


def test_shipped_rewriting_skills_are_small(shipped):
    assert [a.rank for a in shipped] == [rewriting_skills.preset().rank] * len(CHANGES)
    assert sum((FOLDER / change / WEIGHTS).stat().st_size for change in CHANGES) <= 12e6
    for change in CHANGES:
        with safe_open(FOLDER / change / WEIGHTS, framework="pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"BF16"}


def test_what_ships_is_what_the_recipe_writes(shipped, tmp_path):
    """From a store that has them already: nothing is trained; rounding rounded weights again changes nothing."""
    context = RunContext(SECTION, rewriting_skills.preset(), 0, Store(tmp_path / "store"), None, None)

    class Made:
        key = {"kind": "x"}

        def __init__(self, adapter=None, facts=None):
            self.load = lambda: (adapter, facts)

    given = {task.name: Made(dataclasses.replace(a, name=task.name), {"loss": [1.0]}) for task, a in zip(SECTION.skills, shipped, strict=True)}
    recipe = json.loads(RECIPE.read_text())
    facts = {"recipe": {**recipe, "skills": [task.name for task in SECTION.skills]}, "steps": 1, "learning_rate": 0.1, "sweep": []}
    context.skill = lambda task: given[task.name]
    context.__dict__["coefficient_examples"] = []
    merge = dataclasses.replace(rewriting_skills.find("cat", SECTION), make=lambda _: Made(facts=facts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting_skills, "find", lambda *_: merge)
        rewriting_skills.ship(context, tmp_path / "out")
    again = [load(tmp_path / "out" / change, name=change) for change in CHANGES]
    assert [a.digest() for a in again] == [a.digest() for a in shipped]
    written = json.loads((tmp_path / "out" / RECIPE.name).read_text())
    assert {k: written[k] for k in ("inputs", "skills", "modules", "coefficients", "base")} == {
        k: recipe[k] for k in ("inputs", "skills", "modules", "coefficients", "base")
    }
