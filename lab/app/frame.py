"""What the tabs share: the page's common components, how a handler is wired, and how errors reach the page."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import gradio as gr

from lab.app import html, mixer
from lab.app.context import Context, told
from lab.app.session import Session

# Events that use the model, at most so many at once; inside, the engine's turns keep them fair.
MODEL = {"concurrency_id": "model", "concurrency_limit": 8}
# Events that change the alphas: one after the other, or one change overwrites another and an older view comes last.
IN_LINE = {"concurrency_id": "alphas", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(told(error), duration=12, print_exception=False, title="That did not work") from error


def guarded(function: Callable) -> Callable:
    """A handler whose errors become one sentence in the page, while everything else goes on."""

    @functools.wraps(function)
    def stream(*args, **kwargs):
        with _telling():
            yield from function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args, **kwargs):
        with _telling():
            return function(*args, **kwargs)

    return stream if inspect.isgeneratorfunction(function) else call


@dataclass
class Page:
    """Components that several tabs read or refresh. `shared` are outputs of everything that changes the session."""

    context: Context
    session: gr.State
    mixer: gr.HTML
    note: gr.HTML
    text: gr.Textbox
    columns: gr.CheckboxGroup
    against: gr.Dropdown
    take: gr.Dropdown
    skill: gr.Dropdown
    job: gr.BrowserState  # the id of the visitor's learning job; not in a tab, which is made only when it is opened
    form: dict[str, gr.components.Component] = field(default_factory=dict)  # fields of Compare that come back after a reload

    @property
    def shared(self) -> list:
        return [self.mixer, self.note, self.text, self.columns, self.against, self.take, self.skill]

    def views(self, session: Session, chosen: list[str] | None = None) -> list:
        """Values for `shared`, of work that is kept from now on. chosen: columns to tick, else they stay as they are."""
        if chosen is not None:
            session.form["columns"] = chosen
        self.context.keep(session)
        if session.grid is None:
            empty = gr.update(choices=[], value=None)
            return [{}, note(session), "", gr.update(choices=[], value=[]), empty, empty, empty]
        columns = session.columns
        fresh = chosen is not None

        def entries(choices: list, first: str) -> dict:
            return gr.update(choices=choices, **({"value": first} if fresh else {}))

        return [
            mixer.shown(session),
            note(session),
            session.text,
            gr.update(choices=columns, **({"value": chosen} if fresh else {})),
            entries([("no marks", ""), *columns], ""),
            entries(columns[1:], "merge"),
            entries(["every skill", *session.grid.skills], "every skill"),
        ]

    def on(self, event: Callable | Sequence[Callable], function: Callable, inputs=(), outputs=None, **options):
        """Wire `function(session, *inputs)`, whose session is ready for use, to an event or several."""
        check = self.context.check

        @functools.wraps(function)
        def stream(session, *values):
            yield from function(check(session), *values)

        @functools.wraps(function)
        def call(session, *values):
            return function(check(session), *values)

        handler = guarded(stream if inspect.isgeneratorfunction(function) else call)
        wire = event if callable(event) else functools.partial(gr.on, event)
        return wire(handler, [self.session, *inputs], outputs, **{**PRIVATE, **options})

    def change(self, event: Callable | Sequence[Callable], action: Callable, inputs=(), **options):
        """Wire an action of (context, session, *inputs) that changes the alphas or columns; what is shown follows."""

        def changed(session, *values):
            action(self.context, session, *values)
            return self.views(session)

        return self.on(event, changed, inputs, self.shared, **{**IN_LINE, **options})


def usual_columns(session: Session) -> list[str]:
    """base, up to three skills, merge."""
    return ["base", *[a.name for a in session.adapters][:3], "merge"] if session.grid is not None else []


def note(session: Session) -> str:
    """How much can be undone, and what is kept."""
    if session.grid is None:
        return html.dim(session.unkept) if session.unkept else ""
    slots = " · kept: " + ", ".join(sorted(session.slots)) if session.slots else ""
    steps = f"{len(session.past)} to undo" if session.past else "nothing to undo"
    return f'<span class="dim">{steps}{slots}</span>' + (html.dim(session.unkept) if session.unkept else "")
