"""What one takes home: an adapter or a model as a zip, the recipe, commands that repeat it, code that loads it."""

import json
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lab.app.engine import Engine, shared_copy
from lab.app.scratch import fresh_folder
from lab.app.session import Routing, Session
from lab.app.sources import clean_name, shipped_skills
from lab.errors import LabError
from lab.export.card import base_code
from lab.export.folders import export, fold_into
from lab.export.report import report
from lab.lora.peft_io import engine_rank, load, save
from lab.lora.stacked import attach
from lab.merging import METHODS
from lab.merging.routing import save_router

INPUTS = "adapters"  # folder of the adapters themselves, in their zip and in the commands


def inputs_zip(session: Session) -> Path:
    """The adapters that are loaded, as they are, as the zip of a folder INPUTS. Raises LabError."""
    parent = fresh_folder()
    session.need()
    try:
        for adapter in session.adapters:
            save(parent / INPUTS / adapter.name, adapter)
        return _packed(parent, INPUTS)
    except (LabError, OSError) as error:
        raise _not_written(parent, error) from error


def as_zip(
    engine: Engine, session: Session, column: str, *, dtype: str = "float32", pad: bool = False, folded: bool = False
) -> Path:
    """A column as a zip of a PEFT folder, or (folded) of the base with it folded in. Raises LabError.

    A router's zip holds the router and the skills that it routes between.
    """
    adapter = session.merged(column)
    if isinstance(adapter, Routing) and (folded or pad):
        raise LabError(f"{column} decides token by token, so it has no rank to pad and cannot be folded into the base.")
    name = clean_name(f"{column}-{'model' if folded else 'adapter'}")
    parent = fresh_folder()
    facts = report(session.adapters)
    try:
        if isinstance(adapter, Routing):
            _save_routing(engine, adapter, parent / name, dtype)
        elif folded:
            fold_into(session.base, adapter, parent / name, report=facts, dtype=dtype)
        else:
            export(
                parent / name,
                adapter,
                report=facts,
                dtype=dtype,
                pad_to_rank=engine_rank(adapter.rank) if pad else None,
            )
        return _packed(parent, name)
    except (LabError, OSError) as error:
        raise _not_written(parent, error) from error


def _packed(parent: Path, name: str) -> Path:
    packed = parent / f"{name}.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted((parent / name).rglob("*")):
            if file.is_file():
                archive.write(file, Path(name) / file.relative_to(parent / name))
    shutil.rmtree(parent / name)
    return packed


def _not_written(parent: Path, error: LabError | OSError) -> LabError:
    shutil.rmtree(parent, ignore_errors=True)
    if isinstance(error, LabError):
        return LabError(str(error).replace(str(parent), "the export"))
    return LabError(f"The export could not be written: {error.strerror}; free some space.")


def _save_routing(engine: Engine, routing: Routing, folder: Path, dtype: str) -> None:
    """folder/router and folder/skills/NAME."""
    skills = []
    for skill in routing.adapters:
        save(folder / "skills" / skill.name, skill, dtype=dtype)
        skills.append(load(folder / "skills" / skill.name))
    with attach(shared_copy(engine.model), skills) as stack:  # a router knows its skills by the weights just written
        save_router(folder / "router", routing.put_on(stack))


def recipe_text(session: Session, column: str) -> str:
    """The recipe of a column, JSON."""
    recipe = {**session.merged(column).recipe, "base": session.base}
    return json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"


def read_recipe(text: str) -> dict:
    """A recipe file's content. Raises LabError."""
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise LabError(f"The recipe is not JSON (line {getattr(error, 'lineno', 1)}).") from error
    if not isinstance(recipe, dict) or not ("alphas" in recipe or "coefficients" in recipe or "method" in recipe):
        raise LabError("That JSON is no recipe: it names no alphas, coefficients or method.")
    return recipe


def inputs_of_recipe(recipe: Mapping) -> dict[str, str]:
    """name -> digest of what went in, as far as a recipe tells."""
    inputs = recipe.get("inputs")
    listed = inputs if isinstance(inputs, list) else []
    return {str(i.get("name")): str(i.get("digest") or "") for i in listed if isinstance(i, Mapping)}


def apply_recipe(session: Session, recipe: Mapping) -> str:
    """Set the recipe's alphas, or add its method as a column; gives what was done. Raises LabError."""
    grid = session.need()
    inputs = inputs_of_recipe(recipe)
    ours = {a.name: a.digest() for a in session.adapters}
    strange = [name for name in inputs if name not in ours]
    if strange:
        raise LabError(
            f"The recipe is for {', '.join(map(str, inputs))}; load those adapters (here are {', '.join(ours)})."
        )
    changed = [name for name, digest in inputs.items() if digest and digest != ours[name]]
    note = f" The weights of {', '.join(changed)} are others than the recipe's." if changed else ""
    if isinstance(recipe.get("alphas"), str):
        session.set_text(recipe["alphas"])
        return f"The recipe's alphas are set.{note}"
    if "coefficients" in recipe:
        try:
            skills, modules = list(recipe["skills"]), list(recipe["modules"])
            values = np.array(recipe["coefficients"], dtype=float)
            values = values[[skills.index(s) for s in grid.skills]][:, [modules.index(m) for m in grid.modules]]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise LabError("The recipe's coefficients are not of these skills and modules.") from error
        session.set(values)
        return f"The recipe's coefficients are set.{note}"
    weights = recipe.get("weights")
    label = str(recipe["method"])
    if "learning" in recipe:
        raise LabError(f"{label} was learned, and the recipe holds no weights; learn it again, or take the zip home.")
    try:
        given = [float(weights[a.name]) for a in session.adapters] if isinstance(weights, Mapping) else None
        parameters = dict(recipe.get("parameters", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise LabError("The recipe's weights or parameters are not readable.") from error
    title = METHODS[label].label if label in METHODS else label
    name = session.add(title, session.make(label, parameters, given, recipe.get("rank")))
    return f"{name} is a column of Compare now.{note}"


def commands(session: Session, column: str, base: str) -> str:
    """Shell commands that make the same again. base: as it may be shown."""
    given = [f"{a.name}={session.sources.get(a.name, f'{INPUTS}/{a.name}')}" for a in session.adapters]
    on = ["--base", base]
    recipe = session.merged(column).recipe if column != "base" else {}
    method, out = recipe.get("method"), ["--out", clean_name(f"{column}-adapter") + "/"]
    if column == "base" or column in session.need().skills:
        return f"{_unpacking(session)}python -m lab inspect {shlex.join([*given, *on])}"
    if "learning" in recipe:
        facts = recipe["learning"]
        line = ["learn", *given, *on, "--method", str(method), *_options(recipe.get("parameters", {}), "seed")]
        line += ["--data", *facts["data"].split()]
        line += ["--rows", str(facts["rows_each"])] if facts["data"] == "world" else []
        if "learning_rate" in facts:
            line += ["--rates", f"{facts['learning_rate']:g}", "--batch-size", str(facts["batch_size"])]
        line += ["--steps", str(facts["steps"]), "--seed", str(facts["seed"]), *out]
    elif "alphas" in recipe:
        rules = recipe["alphas"].replace("\n", "; ")
        line = ["merge", *given, "--method", str(method), "--alphas", rules, *on, *out]
    elif method in METHODS and METHODS[method].kind == "router":
        line = ["learn", *given, *on, "--method", str(method), *_options(recipe["parameters"]), *out]
    else:
        weights = recipe.get("weights")
        told = (
            ["--weights", *(f"{weights[a.name]:g}" for a in session.adapters)] if isinstance(weights, Mapping) else []
        )
        cut = ["--rank", str(recipe["rank"])] if "rank" in recipe else []
        line = ["merge", *given, "--method", str(method), *_options(recipe.get("parameters", {})), *told, *cut, *on, *out]
    note = (
        f"  # was stopped after {recipe['learning']['stopped_after']} steps"
        if "stopped_after" in recipe.get("learning", {})
        else ""
    )
    return f"{_unpacking(session)}python -m lab {shlex.join(line)}{note}"


def _unpacking(session: Session) -> str:
    """A remark on the adapters that came from uploads."""
    uploaded = [a.name for a in session.adapters if a.name not in session.sources]
    return f"# {INPUTS}/: export the adapters themselves, and unpack their zip here\n" if uploaded else ""


def papermill_command(session: Session, column: str, base: str) -> str:
    """The notebook that makes and tests this method with all its controls, on the skills that it trains itself."""
    recipe = session.merged(column).recipe if column != "base" else {}
    own = {a.name: a.digest() for a in session.adapters}
    if base != "embedded" or own != {a.name: a.digest() for a in shipped_skills()}:
        return "# The section's notebook trains skills of its own; with these adapters the command above is what repeats this."
    methods = [*dict.fromkeys(["base", "maths", "code", "cat"])]
    method, alphas = str(recipe.get("method", "")), recipe.get("alphas", "")
    if method and not alphas and method not in methods:
        methods.append(method)
    words = ["papermill", "notebooks/s5_1_math_code.ipynb", "out.ipynb", "-y", f"methods: [{', '.join(methods)}]"]
    if alphas:
        words += ["-p", "alphas", alphas.replace("\n", "; ")]
    return shlex.join(words)


def _options(parameters: Mapping, *without: str) -> list[str]:
    words = []
    for name, value in parameters.items():
        if value is not None and name not in without:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def snippet(session: Session, column: str, base: str, *, folded: bool = False, prompt: str = "Hello") -> str:
    """Python that loads the export and asks it: an adapter by PEFT, a whole model by transformers, a router by this project."""
    name = clean_name(f"{column}-{'model' if folded else 'adapter'}")
    ask = [
        f"prompt = tokenizer({prompt!r}, return_tensors=\"pt\")",
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))",
    ]
    found = session.others.get(column)
    if isinstance(found, Routing):
        lines = [
            "from lab.lora.peft_io import load",
            "from lab.lora.stacked import attach",
            "from lab.merging.routing import load_router",
            *base_code(base),
            f'skills = [load(f"{name}/skills/{{skill}}") for skill in {[a.name for a in found.adapters]}]  # the unpacked zip',
            f'load_router("{name}/router", attach(model, skills))',
        ]
    elif folded:
        lines = base_code(name)
        lines[-1] += "  # the unpacked zip"
    else:
        lines = ["from peft import PeftModel", *base_code(base), f'model = PeftModel.from_pretrained(model, "{name}")  # the unpacked zip']
    return "\n".join([*lines, *ask, ""])
