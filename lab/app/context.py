"""What all visitors share: the engine, the jobs, the votes, and where things lie. And what people read of an error."""

import gc
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lab.app.engine import Engine, out_of_memory
from lab.app.jobs import Jobs
from lab.app.memory import give_back
from lab.app.session import Session
from lab.app.showcase import WORD_PROBLEMS, Showcase
from lab.app.sources import Access
from lab.app.takehome import apply_recipe
from lab.app.votes import Ballot
from lab.app.workspaces import KEY, Workspaces, new_key
from lab.errors import LabError
from lab.experiments.presets import Preset
from lab.lora.adapter import LoraAdapter

if TYPE_CHECKING:
    import gradio as gr

CLOSED = 20  # closed pages of which Gradio's own state is kept, for those that come back


@dataclass
class Context:
    """adapters: what a new visitor begins with. results: folder of the records. files: where the page may write.

    sources: where each of the adapters was read from. start: the recipe of the alphas that a visitor begins with.
    showcase: what the page shows on the base. blocks, key: the page, and the id of the component in it that holds the session.
    """

    engine: Engine
    preset: Preset
    adapters: tuple[LoraAdapter, ...]
    results: Path
    files: Path
    access: Access = Access()
    sources: Mapping[str, str] = field(default_factory=dict)
    start: Mapping | None = None
    jobs: Jobs = field(default_factory=Jobs)
    blocks: "gr.Blocks | None" = None
    key: int = -1
    showcase: Showcase = WORD_PROBLEMS

    def __post_init__(self):
        self.ballot = Ballot(self.files / "votes.jsonl")
        self.workspaces = Workspaces(self.files / "workspaces")
        self.comparisons = self.files / "comparisons"

    @property
    def base_name(self) -> str:
        """The base as visitors may see it: a folder's place is shown to its owner only."""
        return self.shown(self.engine.source)

    def shown(self, source: str) -> str:
        """A base's name as visitors may see it."""
        return f"PATH/TO/{Path(source).name}" if self.access.roots is not None and Path(source).is_absolute() else source

    def session(self) -> Session:
        """A new visitor's. The base may be another one by now than the adapters are for; then it begins without."""
        session = Session(base=self.engine.source)
        try:
            if self.adapters:
                session.take(self.adapters, self.engine.model, self.engine.source)
                session.sources = dict(self.sources) if self.access.roots is None else {}
                if self.start is not None:
                    apply_recipe(session, self.start)
                    session.past = []
        except LabError:
            session = Session(base=self.engine.source)
        return session

    def arrive(self, key: str) -> tuple[Session, str]:
        """A visitor's session with what was kept under this key of their browser, and a line that says so ("": all is new).

        What cannot be used is told in the line. A key that is none gets a new one.
        """
        session = self.session()
        session.key = key if isinstance(key, str) and len(key) >= KEY else new_key()
        try:
            written = self.workspaces.find(session, self.engine.model, self.adapters)
            learned = self.workspaces.find_learned(session, self.jobs)
            if learned is not None:
                session.job = learned.id
            elif written is None:
                elsewhere = self.workspaces.other_base(session)
                return session, f"Your work on the base {self.shown(elsewhere)} is kept; it comes back with that base." if elsewhere else ""
            return session, _welcome(session, written)
        except LabError as error:
            return session, str(error)

    def keep(self, session: Session) -> None:
        """Keep a visitor's work for a reload; the session says why where that fails."""
        try:
            self.workspaces.keep(session)
            session.unkept = ""
        except LabError as error:
            session.unkept = str(error)

    def sessions(self) -> Iterator[Session]:
        """Of all pages and programs that Gradio remembers."""
        pages = self.blocks.state_holder.session_data if self.blocks is not None else {}
        for state in list(pages.values()):
            session = state.state_data.get(self.key)
            if session is not None:
                yield session

    def tidy(self) -> None:
        """Free the views of the model whose adapters nobody holds any more."""
        held = [*self.adapters]
        for session in self.sessions():
            held += [*session.adapters, *session.others.values()]
        self.engine.keep(held)
        gc.collect()  # modules and their hooks refer to each other
        give_back()

    def close(self, hash: str) -> None:
        """A page was closed (or a program has ended): free what it held. Its learning run goes on."""
        pages = self.blocks.state_holder.session_data
        session = pages[hash].state_data.get(self.key) if hash in pages else None
        if session is not None:
            session.empty(self.adapters)
            if session.layers in self.jobs:  # nobody finds it again; a run of Learn is found by its id in the browser
                self.jobs.stop(self.jobs.find(session.layers))
            if session.job in self.jobs:
                self.jobs.find(session.job).view["drawn"] = None
        # Gradio keeps what it knows of a page, about 0.5 MB, for every page that was ever opened.
        for old in [name for name, state in list(pages.items()) if state.is_closed][:-CLOSED]:
            pages.pop(old, None)
        self.tidy()

    def end(self) -> None:
        """The app ends: so does what is being answered and learned."""
        for session in self.sessions():
            session.stop.set()
        self.jobs.end()

    def check(self, session: Session | None) -> Session:
        """The session, ready for use. Raises LabError when the page is not loaded, or the base was exchanged."""
        if session is None:
            raise LabError("The page is still loading, or was away for long; try again in a moment, or reload it.")
        if session.emptied:
            raise LabError("What this page held was freed when it was closed; reload the page.")
        if session.base != self.engine.source:
            raise LabError("The base model has been exchanged since this page was opened; reload the page. Your work is kept.")
        return session


def _welcome(session: Session, written: float | None) -> str:
    """What of a visitor's work is here again, and when it was last changed."""
    seconds = time.time() - (written or time.time())
    held = [", ".join(a.name for a in session.adapters) or "no adapters", "alphas"]
    held += [f"setting {slot}" for slot in sorted(session.slots)]
    held += [f"{len(session.others)} further columns"] if session.others else []
    held += ["a learned result"] if session.job else []
    spans = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    ago = next((f"{seconds // size:.0f} {name} ago" for size, name in spans if seconds >= 2 * size), "just now")
    return f"Your work is here again, last changed {ago}: {'; '.join(held)}."


def told(error: BaseException) -> str:
    """What people read of an error: a LabError's sentence, or no more than what kind of failure it was."""
    if isinstance(error, LabError):
        return str(error)
    if out_of_memory(error):
        return "There is not enough memory for that; choose fewer columns, a shorter text or a smaller base."
    logging.getLogger(__name__).error("unexpected error", exc_info=error)
    return f"Something went wrong ({type(error).__name__}); the terminal says more."
