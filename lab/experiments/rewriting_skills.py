"""The rewriting skills that ship for the real base, and their merge: `python -m lab.experiments.rewriting_skills` makes them again."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from lab.experiments import rewriting
from lab.experiments.candidates import find
from lab.experiments.context import RunContext, open_contexts
from lab.files import PROJECT, write_atomic
from lab.lora import peft_io
from lab.merging.recipe import inputs_of

CHANGES = ("past", "passive")  # a shipped skill is called as its change
SECTION = rewriting.section(CHANGES)
SETTINGS = {"rank": 8, "lora_alpha": 16}  # half the preset's rank: what ships must stay small
MERGE = "cat"
FOLDER = PROJECT / "lab" / "world" / "rewriting" / "skills"  # a PEFT folder for each skill
RECIPE = FOLDER / f"{MERGE}.json"  # the merge: its coefficients, no weights


def preset():
    return SECTION.preset("laptop", settings=SETTINGS)


def ship(context: RunContext, folder: Path) -> None:
    """Write skills and merge into `folder`: trained in this context, or found in its store.

    Skills are rounded to bfloat16. The coefficients were learned before that; their recipe names the rounded skills' digests.
    """
    shipped = []
    for change, task in zip(CHANGES, SECTION.skills, strict=True):
        entry = context.skill(task)
        adapter, facts = entry.load()
        beside = {"key.json": _json(entry.key), "training.json": _json(facts)}
        peft_io.save(folder / change, dataclasses.replace(adapter, name=change), dtype="bfloat16", beside=beside, overwrite=True)
        shipped.append(peft_io.load(folder / change, name=change))
    _, facts = find(MERGE, SECTION).make(context).load()
    recipe = dict(facts["recipe"])
    names = dict(zip((task.name for task in SECTION.skills), CHANGES, strict=True))
    recipe |= {"skills": [names[skill] for skill in recipe["skills"]], "inputs": inputs_of(shipped)}
    recipe["base"] = context.preset.base
    recipe |= {"rows": len(context.coefficient_examples), **{name: facts[name] for name in ("steps", "learning_rate", "sweep")}}
    write_atomic(folder / RECIPE.name, _json(recipe))


def _json(content: Mapping) -> str:
    return json.dumps(content, default=str) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write them (default where they ship)")
    parser.add_argument("--artifacts", type=Path, default=PROJECT / "artifacts", help="folder of what is trained (default artifacts)")
    options = parser.parse_args()
    (context,) = open_contexts(SECTION, preset(), [0], options.artifacts)
    ship(context, options.out)


if __name__ == "__main__":
    main()
