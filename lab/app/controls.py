"""Controls made from a method's signature, and the values read back from them."""

from collections.abc import Sequence

import gradio as gr

from lab.errors import LabError
from lab.merging import Parameter


def control(parameter: Parameter):
    """A component for one parameter; ranges are checked by the library, whose sentence then tells what is allowed."""
    default = parameter.default
    # What only a rendered event reads is shown read-only unless it is told that it can be changed.
    common = {"label": parameter.name.replace("_", " "), "info": parameter.help or None, "min_width": 130, "interactive": True}
    if parameter.choices:
        choices = [(str(c), c) for c in parameter.choices]
        if parameter.optional:
            choices.append(("none", None))
        return gr.Dropdown(choices, value=default, **common)
    if parameter.type is bool:
        return gr.Checkbox(bool(default), **common)
    if parameter.type in (int, float) and parameter.optional:  # gr.Number shows None as 0
        return gr.Textbox("" if default is None else str(default), placeholder="none", **common)
    if parameter.type in (int, float):
        return gr.Number(default, precision=0 if parameter.type is int else None, **common)
    return gr.Textbox(str(default or ""), **common)


def values_of(parameters: Sequence[Parameter], given: Sequence) -> dict:
    """Parameter values as the library takes them."""
    found = {}
    for parameter, value in zip(parameters, given, strict=True):
        if value is None or value == "":
            if not parameter.optional and parameter.default is not None:
                raise LabError(f"{parameter.name} is empty; give a value.")
            value = None
        elif parameter.type in (int, float):
            value = _number(parameter, value)
        found[parameter.name] = value
    return {name: value for name, value in found.items() if value is not None}


def read_rank(text: str) -> int | None:
    """A rank as typed; None when nothing is."""
    if not text.strip():
        return None
    if not text.strip().isdecimal():
        raise LabError(f"rank is {text[:20]!r}; give a whole number, or nothing.")
    return int(text)


def _number(parameter: Parameter, value) -> int | float:
    try:
        return parameter.type(value)
    except (TypeError, ValueError) as error:
        kind = "whole number" if parameter.type is int else "number"
        raise LabError(f"{parameter.name} is {str(value)[:30]!r}; give a {kind}.") from error


def read_weights(text: str, k: int) -> list[float] | None:
    """Weights as typed, `0.7, 0.3`; None when nothing is."""
    words = text.replace(";", " ").replace(",", " ").split()
    if not words:
        return None
    try:
        weights = [float(word) for word in words]
    except ValueError as error:
        raise LabError(f"{text[:40]!r} are no weights; write one number per skill, such as 0.7 0.3.") from error
    if len(weights) != k:
        raise LabError(f"There are {len(weights)} weights for {k} skills; give one for each.")
    return weights
