"""The main actions for programs: named endpoints, each with a session of its own per gradio_client.Client."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import gradio as gr

from lab.app import actions
from lab.app.frame import IN_LINE, MODEL, Page, guarded
from lab.errors import LabError

AT_ONCE = {"queue": False}
ENDPOINTS: dict[Callable, dict] = {
    actions.load_adapter: MODEL,
    actions.upload_adapters: MODEL,
    actions.report: {},
    actions.set_alphas: IN_LINE,
    actions.undo: IN_LINE,
    actions.add_method: MODEL,
    actions.ask: MODEL,
    actions.learn: MODEL,
    actions.learn_status: AT_ONCE,
    actions.learn_stop: AT_ONCE,
    actions.learn_use: IN_LINE,
    actions.learn_column: MODEL,
    actions.delta_nll: MODEL,
    actions.export: MODEL,
    actions.recipe: {},
    actions.use_recipe: IN_LINE,
    actions.commands: {},
    actions.methods: {},
    actions.results: {},
}


def build(page: Page) -> None:
    """One hidden button for each of ENDPOINTS, whose event carries the action's name and parameters."""
    with gr.Column(visible=False):
        for action, options in ENDPOINTS.items():
            hints, taken = get_type_hints(action), _taken(action)
            inputs = [_component(hints[p.name], p.name, None if p.default is p.empty else p.default) for p in taken]
            out = hints["return"]
            gr.Button(visible=False).click(
                guarded(_endpoint(page, action)),
                [page.session, *inputs],
                [page.session, _component(get_args(out)[0] if inspect.isgeneratorfunction(action) else out, "result")],
                api_name=action.__name__,
                api_description=action.__doc__,
                show_progress="hidden",
                **options,
            )


def _taken(action: Callable) -> list[inspect.Parameter]:
    """The parameters that programs give: all but context, session and what is for the page alone."""
    return [p for p in list(inspect.signature(action).parameters.values())[2:] if p.kind is not p.KEYWORD_ONLY]


def _endpoint(page: Page, action: Callable) -> Callable:
    """`action` as an event: the session goes along unseen, and is made with the first call."""
    context, hints, taken = page.context, get_type_hints(action), _taken(action)

    def ready(session):
        return context.check(session if session is not None else context.session())

    def fitting(values):
        return [_fitting(parameter, hints[parameter.name], value) for parameter, value in zip(taken, values, strict=True)]

    def stream(session, *values):
        session, values = ready(session), fitting(values)
        for result in action(context, session, *values):
            yield session, result

    def call(session, *values):
        session, values = ready(session), fitting(values)
        result = action(context, session, *values)
        return session, str(result) if isinstance(result, Path) else result

    found = stream if inspect.isgeneratorfunction(action) else call
    names = ["session", *(p.name for p in taken)]  # Gradio tells them to programs
    found.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names])
    return found


def _fitting(parameter: inspect.Parameter, kind: type, value: object) -> object:
    """A value that a program gave, as the action takes it. Raises LabError for one of another kind."""
    if value is None and parameter.default is not parameter.empty:
        return parameter.default
    wanted = _WANTED.get(get_origin(kind) or kind)
    if wanted is not None and not wanted[0](value):
        raise LabError(f"{parameter.name} is {_brief(value)}, not {wanted[1]}.")
    return int(value) if kind is int else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


_WANTED = {
    str: (lambda value: isinstance(value, str), "a text"),
    int: (lambda value: _is_number(value) and value == int(value), "a whole number"),
    float: (_is_number, "a number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    dict: (lambda value: isinstance(value, dict), "a JSON object"),
    list: (  # columns may be one text with commas
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value)),
        "a list of names or numbers",
    ),
}


def _brief(value: object) -> str:
    text = repr(value)[:200]
    return text if len(text) <= 60 else text[:57] + "…"


def _component(kind: type, label: str, value=None):
    """What carries a value of this type."""
    if kind is Path or Path in get_args(kind):
        return gr.File(label=label, visible=False, file_count="multiple" if get_origin(kind) is list else "single")
    component = {str: gr.Textbox, int: gr.Number, float: gr.Number, bool: gr.Checkbox}.get(kind, gr.JSON)
    return component(value, label=label, visible=False)
