"""Work in the background: one job at a time, the others wait in line; who started one may come back and find it."""

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.app.engine import out_of_memory
from lab.app.memory import give_back
from lab.errors import LabError

WAITING = 20  # jobs in line
KEPT = 8  # finished jobs that can still be looked at


@dataclass
class Job:
    """state: waiting, running, done, stopped (keeps what it had) or failed. progress: 0 to 1. view: what is shown."""

    id: str
    kind: str
    state: str = "waiting"
    progress: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    message: str = ""
    view: dict = field(default_factory=dict)
    result: object = None
    wanted_stop: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the progress so far."""
        if self.state != "running" or self.progress <= 0:
            return None
        return (time.monotonic() - self.started) * (1 - self.progress) / self.progress


class Jobs:
    """The line of jobs and the thread that works it off."""

    def __init__(self):
        self._mutex = threading.Condition()
        self._line: deque[tuple[Job, Callable[[Job], object]]] = deque()
        self._all: OrderedDict[str, Job] = OrderedDict()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, kind: str, work: Callable[[Job], object]) -> Job:
        """Queue `work(job)`; it looks at job.wanted_stop, and what it returns becomes job.result."""
        with self._mutex:
            if len(self._line) >= WAITING:
                raise LabError(f"{WAITING} jobs are waiting already; try again later.")
            job = Job(secrets.token_urlsafe(12), kind)
            self._line.append((job, work))
            self._all[job.id] = job
            self._forget()
            self._mutex.notify()
        return job

    def adopt(self, job: Job) -> Job:
        """Hold a finished job of an earlier server as one of this; the one of its id when that is here."""
        with self._mutex:
            self._all.setdefault(job.id, job)
            self._forget()
            return self._all[job.id]

    def _forget(self) -> None:
        for old in [job.id for job in self._all.values() if job.over][:-KEPT]:
            del self._all[old]

    def __contains__(self, id: str) -> bool:
        return id in self._all

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        with self._mutex:
            return any(not job.over for job in self._all.values())

    def find(self, id: str) -> Job:
        if id not in self._all:
            raise LabError("There is no such job (any more); start it again.")
        return self._all[id]

    def place(self, job: Job) -> int:
        """How many jobs come before this one; 0 when it is running or over."""
        with self._mutex:
            waiting = [j for j, _ in self._line]
            return waiting.index(job) + 1 if job in waiting else 0

    def stop(self, job: Job) -> None:
        """End it after its present step. One that is still waiting never starts."""
        with self._mutex:
            job.wanted_stop.set()
            self._line = deque(entry for entry in self._line if entry[0] is not job)
            if job.state == "waiting":
                job.state, job.message = "stopped", "It had not begun."

    def end(self, patience: float = 20) -> None:
        """Stop all, and wait until the running one has ended its step: torch aborts when the program ends under it."""
        for job in list(self._all.values()):
            self.stop(job)
        with self._mutex:
            self._ending = True
            self._mutex.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while True:
            with self._mutex:
                while not self._line:
                    if self._ending:
                        return
                    self._mutex.wait()
                job, work = self._line.popleft()
                job.state, job.started = "running", time.monotonic()
            try:
                job.result = work(job)
                job.state = "stopped" if job.wanted_stop.is_set() else "done"
            except LabError as error:
                job.state, job.message = "failed", str(error)
            except Exception as error:  # the line must go on, whatever one job does
                logging.getLogger(__name__).exception("a job failed")
                told = (
                    "there is not enough memory; choose fewer rows per step or a smaller base."
                    if out_of_memory(error)
                    else ""
                )
                job.state, job.message = "failed", f"It failed: {told or type(error).__name__ + ', see the terminal.'}"
            job.ended = time.monotonic()
            del work
            give_back()
