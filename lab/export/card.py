"""The model card of a merge: what it is, how it was made, from what, and how to load it. For people and for the Hub."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import torch

from lab.export.report import SetReport
from lab.export.serving import serving_commands
from lab.lora.base import EMBEDDED
from lab.merging import METHODS

FIGURE = "coefficients.png"
SHOWN = 8  # skills in the figure and the table of coefficients; a coefficient per rank has many more rows


@dataclass(frozen=True)
class _Shown:
    """What the heat map asks of a record."""

    method: str
    coefficients: Mapping[str, list]


def coefficients_figure(recipe: Mapping) -> bytes | None:
    """The recipe's coefficients as a heat map (PNG); None when it has none, or too many to be seen."""
    values = recipe.get("coefficients")
    if not values or len(values) > SHOWN:
        return None
    from lab.pages.figures import coefficient_heatmap

    shown = {"skills": recipe["skills"], "modules": recipe["modules"], "values": values}
    figure = coefficient_heatmap(_Shown(str(recipe.get("method", "merge")), shown))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def model_card(
    *, name: str, base: str, recipe: Mapping, rank: int | None, report: SetReport | None = None, figure: bool = False,
    gguf: bool = False, suffixes: bool = False,
) -> str:
    """The text of README.md (Markdown under YAML front matter).

    recipe: as `lab.merging.merge` and `freeze` write it. rank: of the adapter; None for a whole model into which the
    merge is folded. report: of the inputs. figure: a picture FIGURE lies beside it, gguf: a GGUF
    file. suffixes: target_modules are kinds of modules, not whole names.
    """
    method = METHODS.get(str(recipe.get("method", "")))
    parts = [_front_matter(base, rank is not None, recipe), f"# {name}", _what(method, recipe, base, rank)]
    parts += ["## How it was made", _how(method, recipe, rank is None)]
    if recipe.get("inputs"):
        parts.append(_inputs(recipe["inputs"]))
    if recipe.get("coefficients"):
        parts += ["## Coefficients", _coefficients(recipe)]
    if recipe.get("alphas"):
        parts += ["The same as rules, for `python -m lab merge --alphas`:", f"```text\n{recipe['alphas']}\n```"]
    if figure:
        parts.append(f"![Coefficients of each skill, by layer and kind of module]({FIGURE})")
    if report is not None:
        parts += ["## What went into it", f"```text\n{report.text()}```"]
    parts += ["## How to load it", _loading(base, rank)]
    if rank is not None:
        parts += ["## How to serve it", serving_commands(base, rank, gguf=gguf, suffixes=suffixes)]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str, is_adapter: bool, recipe: Mapping) -> str:
    lines = [f"base_model: {json.dumps(base)}"] if _is_hub_id(base) else []  # the Hub refuses other names
    lines.append(f"library_name: {'peft' if is_adapter else 'transformers'}")
    lines.append("pipeline_tag: text-generation")
    merged = [] if _trained(recipe) else ["merge", *([recipe["method"]] if recipe.get("method") else [])]
    tags = [*(["lora"] if is_adapter else []), *merged]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _trained(recipe: Mapping) -> bool:
    """Whether the recipe tells of a skill that was trained, and of no merge."""
    return bool(recipe.get("learning")) and not recipe.get("method")


def _is_hub_id(base: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", base, re.ASCII))


def _what(method, recipe: Mapping, base: str, rank: int | None) -> str:
    names = [str(item["name"]) for item in recipe.get("inputs", ())]
    of = f" of the LoRA adapters {_and(names)}" if names else ""
    on = f" for the base model `{base}`" if base else ""
    whole = f"The base model `{base}` with a merge folded in"
    what = f"An ordinary PEFT LoRA adapter of rank {rank}{on}" if rank else whole
    if _trained(recipe):
        return f"{what}, trained on {_and(list(recipe['learning']['data']))}."
    by = f" by [{method.label}]({method.paper})" if method else ""
    return f"{what}: a merge{of}{by}."


def _how(method, recipe: Mapping, folded: bool) -> str:
    rows = []
    if method:
        rows += [("method", f"`{method.name}`: {method.summary}"), ("formula", f"`{method.formula}`")]
    given = recipe.get("parameters", {}).items()
    rows += [(name.replace("_", " "), f"`{value}`") for name, value in given if value is not None]
    if recipe.get("weights"):
        rows.append(("weights", _listed(recipe["weights"])))
    if recipe.get("rank"):
        rows.append(("cut to rank", str(recipe["rank"])))
    for name, value in recipe.get("learning", {}).items():
        if value or value == 0:
            rows.append((name.replace("_", " "), _listed(value) if isinstance(value, Mapping) else _short(value)))
    if _trained(recipe):
        pass
    elif recipe.get("discarded_energy"):
        share = 100 * recipe["discarded_energy"]["total"]
        rows.append(("discarded energy", f"{share:.3g} % of Σ‖ΔW‖², cut by truncation"))
    else:
        rows.append(("discarded energy", "none: folded in at full rank" if folded else "none: nothing was truncated"))
    rows.append(("all of it", "[recipe.json](recipe.json)"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _inputs(inputs) -> str:
    lines = ["| input | base | rank | sha256 of its weights |", "|---|---|---|---|"]
    for item in inputs:
        base = _cell(item["base"] or "not stated")
        lines.append(f"| {_cell(item['name'])} | {base} | {item['rank']} | `{item['digest']}` |")
    return "\n".join(lines)


def _coefficients(recipe: Mapping) -> str:
    if len(recipe["skills"]) > SHOWN:
        return f"{len(recipe['skills'])} per module, in [recipe.json](recipe.json)."
    lines = ["| skill | mean | smallest | largest |", "|---|---|---|---|"]
    lacks = {item["name"]: set(item.get("lacks", ())) for item in recipe.get("inputs", ())}
    for skill, row in zip(recipe["skills"], recipe["coefficients"], strict=True):
        absent = lacks.get(skill.partition("[")[0], ())  # one rank of a skill is called "maths[3]"
        row = torch.as_tensor([value for module, value in zip(recipe["modules"], row, strict=True) if module not in absent])
        lines.append(f"| {_cell(skill)} | {row.mean():.4g} | {row.min():.4g} | {row.max():.4g} |")
    return "\n".join(lines)


def _loading(base: str, rank: int | None) -> str:
    if rank is None:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        ]
        return "\n".join(["```python", *code, "```"])
    load = base_code(base or "the base model of the inputs")
    code = ["from peft import PeftModel", *load, 'model = PeftModel.from_pretrained(model, "path/to/this/folder")']
    note = f"Scaling is folded in (`lora_alpha` = `r` = {rank}), so engines that read only these two serve it as it is."
    return "\n".join(["```python", *code, "```", "", note])


def base_code(base: str) -> list[str]:
    """Lines of Python after which `model` and `tokenizer` are the base's."""
    if base in EMBEDDED:
        return ["from lab.lora.base import load_base", "", f"model, tokenizer = load_base({json.dumps(base)})"]
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base)})",
    ]


def _listed(values: Mapping) -> str:
    return ", ".join(f"{name}: {_short(value)}" for name, value in values.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "diverged" if value is None else str(value)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
