"""The mixer between page and session: alphas as the component draws them, and what a person's edit does to them."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
import numpy as np

from lab.app import charts
from lab.app.session import Session
from lab.errors import LabError
from lab.merging.alphas import LIMIT, short_kind

_SCRIPT = Path(__file__).with_name("mixer.js")
_SCALE = charts.scale()
_turns = itertools.count()  # makes every value a new one: the component is drawn anew also when an edit was refused


def mixer() -> gr.HTML:
    return gr.HTML(
        {},
        html_template='<div class="mixer"></div>',
        js_on_load=_SCRIPT.read_text(encoding="utf-8"),
        elem_id="mixer",
        apply_default_css=False,
        label="mixer",
    )


def shown(session: Session) -> dict:
    """The component's value."""
    if session.grid is None:
        return {}
    grid = session.grid
    at = {place: i for i, place in enumerate(grid.places)}

    def cell(row: int, layer, kind):
        i = at.get((layer, kind))
        return None if i is None or not grid.present[row, i] else float(session.alphas[row, i])

    return {
        "turn": next(_turns),
        "reach": charts.REACH,
        "scale": _SCALE,
        "layers": ["·" if layer is None else str(layer) for layer in grid.layers],
        "kinds": [short_kind(kind) for kind in grid.kinds],
        "skills": [
            {"name": skill, "cells": [[cell(row, layer, kind) for kind in grid.kinds] for layer in grid.layers]}
            for row, skill in enumerate(grid.skills)
        ],
    }


def edit(session: Session, change: Mapping) -> None:
    """Apply what the component sent. Raises LabError for anything that is no number in range or no cell."""
    grid, values = session.need(), session.alphas.copy()
    value = number(change.get("value"))
    try:
        if change["what"] == "master":
            row = int(change["skill"])
            values[row] = scaled(values[row], grid.present[row], value)
        else:
            groups = change["groups"] if change["what"] == "many" else [(change["skill"], change["cells"])]
            at = {place: i for i, place in enumerate(grid.places)}
            for row, cells in groups:
                for layer, kind in cells:
                    values[int(row), at[grid.layers[int(layer)], grid.kinds[int(kind)]]] = value
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise LabError("That cell is not there (any more); reload the page.") from error
    session.set(values)


def scaled(row: np.ndarray, present: np.ndarray, mean: float) -> np.ndarray:
    """A skill's alphas with another mean: all multiplied alike, or set alike where the mean was 0."""
    now = row[present].mean() if present.any() else 0.0
    if abs(now) < 1e-6:
        return np.where(present, mean, 0.0)
    return np.clip(row * (mean / now), -LIMIT, LIMIT)


def number(value: object) -> float:
    try:
        found = float(str(value).replace(",", "."))
    except ValueError:
        found = float("nan")
    if not abs(found) <= LIMIT:  # false for NaN too
        raise LabError(f"{str(value)[:20]!r} is no alpha; give a number from {-LIMIT:g} to {LIMIT:g}.")
    return found
