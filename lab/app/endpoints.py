"""The main actions for programs: named endpoints, each with a session of its own per gradio_client.Client."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import gradio as gr

from lab.app import actions
from lab.app.frame import IN_LINE, MODEL, Page, guarded

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
    context = page.context

    def ready(session):
        return context.check(session if session is not None else context.session())

    def stream(session, *values):
        session = ready(session)
        for result in action(context, session, *values):
            yield session, result

    def call(session, *values):
        session = ready(session)
        result = action(context, session, *values)
        return session, str(result) if isinstance(result, Path) else result

    found = stream if inspect.isgeneratorfunction(action) else call
    names = ["session", *(p.name for p in _taken(action))]  # Gradio tells them to programs
    found.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names])
    return found


def _component(kind: type, label: str, value=None):
    """What carries a value of this type."""
    if kind is Path or Path in get_args(kind):
        return gr.File(label=label, visible=False, file_count="multiple" if get_origin(kind) is list else "single")
    component = {str: gr.Textbox, int: gr.Number, float: gr.Number, bool: gr.Checkbox}.get(kind, gr.JSON)
    return component(value, label=label, visible=False)
