"""Visitors' work, kept on the disk under a key that only their browser knows, and found again after a reload or a restart.

A workspace is one visitor's work on one base: a small JSON file that names adapters by the digest of their weights. The weights lie
beside it once, whoever uses them. Everything is bounded in size and age; nothing lists keys, and the disk holds only their hashes.
"""

import contextlib
import json
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor

from lab.app.jobs import Job, Jobs
from lab.app.learning import Outcome
from lab.app.session import Routing, Session
from lab.errors import LabError
from lab.files import content_hash, write_atomic
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging.alphas import format_alphas, parse_alphas

VERSION = 1
DAYS = 30  # that work which nobody comes back for is kept
MOST = 500  # files of workspaces
BYTES = 4 << 30  # of all weights
OWN_BYTES = 1 << 30  # of the weights of one workspace
KEY = 32  # characters of a key, or more
GRACE = 3600  # seconds that weights may lie there before a workspace names them
_BEFORE = {".json": ".before", ".learned": ".learned-before"}  # what is put away, and under which suffix
DAMAGED = "is damaged, or was written by another version of the app"


def new_key() -> str:
    """A key that cannot be guessed."""
    return secrets.token_urlsafe(KEY)


class Workspaces:
    """The folder of all workspaces."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._mutex = threading.RLock()
        self._names: weakref.WeakKeyDictionary[LoraAdapter | Routing, str] = weakref.WeakKeyDictionary()
        self._read: weakref.WeakValueDictionary[str, LoraAdapter] = weakref.WeakValueDictionary()
        self.sweep()

    def place(self, key: str, base: str) -> Path:
        """Where a visitor's work on a base lies."""
        return self.folder / f"{content_hash(key)}-{content_hash(base)[:12]}.json"

    # Keeping

    def keep(self, session: Session) -> None:
        """Write the work of a visitor with a key, when it is another than was written last.

        Raises LabError when it is too large to be kept, or the disk is full.
        """
        if not session.key or session.emptied:
            return
        with self._mutex:
            state = self._state(session)
            text = json.dumps(state, ensure_ascii=False)
            if text == session.kept:
                return
            if session.kept:  # what a page opens with is no work yet
                for adapter in (*session.adapters, *session.others.values()):
                    self._write(adapter)
                file = self.place(session.key, session.base)
                new = not file.exists()
                write_atomic(file, text)
                if new:
                    self.sweep()
            session.kept = text

    def _state(self, session: Session) -> dict:
        adapters = [[a.name, self._name(a), session.sources.get(a.name, "")] for a in session.adapters]
        others = [[label, self._name(other)] for label, other in session.others.items()]
        size = sum(map(_bytes, (*session.adapters, *session.others.values())))
        if size > OWN_BYTES:
            raise LabError(f"This work is not kept for a reload: its weights are {size / 1e9:.1f} GB, more than {OWN_BYTES / 1e9:.1f}.")
        has = session.grid is not None
        return {
            "version": VERSION,
            "base": session.base,
            "adapters": adapters,
            "alphas": session.text if has else "",
            "slots": {slot: format_alphas(values, session.grid) for slot, values in session.slots.items()},
            "others": others,
            "form": session.form,
        }

    def keep_learned(self, key: str, base: str, job: Job, outcome: Outcome, adapters: Sequence[LoraAdapter]) -> None:
        """Write what a run has learned, so that it outlives the server. Raises LabError as `keep` does."""
        if not key:
            return
        found = outcome.result(adapters)
        view = job.view
        told = {
            "version": VERSION,
            "job": job.id,
            "state": "stopped" if job.wanted_stop.is_set() else "done",
            "inputs": {i["name"]: i["digest"] for i in found.recipe["inputs"]},
            "result": self._name(found),
            "held_out": outcome.held_out,
            "losses": list(view["losses"]),
            "drift": [[step, values.round(4).tolist()] for step, values in view["drift"]],
            "steps": view["steps"],
            "method": view["method"],
            "verdict": view.get("verdict"),
        }
        with self._mutex:
            self._write(found)
            write_atomic(self.place(key, base).with_suffix(".learned"), json.dumps(told))

    # Finding again

    def find(self, session: Session, model, known: Sequence[LoraAdapter]) -> float | None:
        """Put what was kept under the session's key and base into it; when that was written (None: there is nothing).

        known: adapters in memory, taken where they are meant. Raises LabError, sets the file aside and leaves the session
        alone when the file, or a weight that it names, cannot be used.
        """
        file = self.place(session.key, session.base)
        with self._mutex:
            if not file.is_file():
                return None
            written = file.stat().st_mtime
            try:
                state = _checked(file, session.base)
                fresh = Session(key=session.key, form=dict(state["form"]))
                names = {self._name(a): a for a in known}
                adapters = [self._adapter(digest, name, names) for name, digest, _ in state["adapters"]]
                if adapters:
                    fresh.take(adapters, model, session.base)
                    fresh.alphas = parse_alphas(state["alphas"], fresh.grid)
                    fresh.slots = {slot: parse_alphas(text, fresh.grid) for slot, text in state["slots"].items()}
                    fresh.others = {label: self._other(digest, label, adapters) for label, digest in state["others"]}
                fresh.base = session.base
                fresh.sources = {name: source for name, _, source in state["adapters"] if source}
                fresh.kept = json.dumps(state, ensure_ascii=False)
            except (LabError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                aside = _set_aside(file)
                reason = str(error) if isinstance(error, LabError) else f"it {DAMAGED}"
                raise LabError(f"The work that was kept cannot be used ({reason.rstrip('.')}); it was set aside as {aside}.") from error
            session.__dict__.update(fresh.__dict__)
            with contextlib.suppress(OSError):
                os.utime(file)  # its age is counted from the last visit
        return written

    def find_learned(self, session: Session, jobs: Jobs) -> Job | None:
        """The last run under the session's key, among the jobs from now on, when it learned for the adapters that the session holds;
        None else, or when it is damaged."""
        file = self.place(session.key, session.base).with_suffix(".learned")
        if session.grid is None or not file.is_file():
            return None
        try:
            told = _checked(file)
            os.utime(file)
            if told["inputs"] != {a.name: a.digest() for a in session.adapters}:
                return None
            if told["job"] in jobs:
                return jobs.find(told["job"])
            result = self._other(told["result"], "learned", session.adapters)
            outcome = Outcome.of(result, session.grid, told["held_out"])
            drift = [(step, np.array(values)) for step, values in told["drift"]]
            view = {name: told[name] for name in ("losses", "steps", "method", "verdict")} | {"drift": drift, "grid": session.grid}
            return jobs.adopt(Job(told["job"], "learn", told["state"], 1.0, view=view, result=outcome))
        except (LabError, OSError, ValueError, KeyError, TypeError, AttributeError):
            _set_aside(file)
            return None

    def adapter(self, digest: str, name: str, known: Sequence[LoraAdapter] = ()) -> LoraAdapter | None:
        """The adapter of these weights, under this name, when some workspace holds it."""
        for own in known:
            if own.digest() == digest:
                return own if own.name == name else replace(own, name=name)
        if not digest.isalnum():
            return None
        file = next(self.folder.glob(f"weights/{digest}-*"), None)
        return None if file is None else self._adapter(file.stem, name, {})

    def other_base(self, session: Session) -> str:
        """A base on which there is work under the session's key, though not on its own; "" for none."""
        own = self.place(session.key, session.base)
        for file in self.folder.glob(f"{own.name.partition('-')[0]}-*.json"):
            if file != own:
                with contextlib.suppress(LabError, OSError):
                    return str(_checked(file)["base"])
        return ""

    # Starting afresh

    def put_away(self, session: Session) -> None:
        """The visitor starts anew; what was kept can be brought back once."""
        file = self.place(session.key, session.base)
        with self._mutex:
            for now, before in _BEFORE.items():
                file.with_suffix(before).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.replace(file.with_suffix(now), file.with_suffix(before))

    def bring_back(self, session: Session) -> None:
        """Undo `put_away`. Raises LabError when there is nothing."""
        file = self.place(session.key, session.base)
        with self._mutex:
            kept = [(now, before) for now, before in _BEFORE.items() if file.with_suffix(before).exists()]
            if not kept:
                raise LabError("There is no earlier work to bring back.")
            for now, before in kept:
                os.replace(file.with_suffix(before), file.with_suffix(now))

    def sweep(self) -> None:
        """Remove what is older than DAYS, the longest unused workspaces beyond MOST or BYTES, and weights that nothing names."""
        with self._mutex, contextlib.suppress(OSError):
            now = time.time()
            files = sorted((f for f in self.folder.glob("*-*.*") if f.is_file()), key=lambda f: -f.stat().st_mtime)
            sizes = {f.stem: f.stat().st_size for f in self.folder.glob("weights/*.safetensors")}
            wanted: set[str] = set()
            for number, file in enumerate(files):
                named = _named(file)
                size = sum(sizes.get(name, 0) for name in wanted | named)
                if now - file.stat().st_mtime > DAYS * 86400 or number >= MOST or size > BYTES:
                    file.unlink()
                else:
                    wanted |= named
            for file in self.folder.glob("weights/*.safetensors"):
                if file.stem not in wanted and now - file.stat().st_mtime > GRACE:
                    file.unlink()

    # Weights

    def _name(self, held: LoraAdapter | Routing) -> str:
        """What names an adapter's weights and recipe, or a router's."""
        if held not in self._names:
            if isinstance(held, LoraAdapter):
                self._names[held] = f"{held.digest()}-{content_hash(dict(held.recipe), held.notes)[:12]}"
            else:
                state = {name: content_hash(tensor.tolist()) for name, tensor in held.state.items()}
                self._names[held] = f"router-{content_hash(dict(held.recipe), state)}"
        return self._names[held]

    def _weights(self, name: str) -> Path:
        return self.folder / "weights" / f"{name}.safetensors"

    def _write(self, held: LoraAdapter | Routing) -> None:
        file = self._weights(self._name(held))
        if file.exists():
            return
        facts: dict = {"version": VERSION, "recipe": dict(held.recipe)}
        if isinstance(held, LoraAdapter):
            modules = [[module, factors.scaling] for module, factors in held.modules.items()]
            facts |= {"base": held.base, "notes": list(held.notes), "modules": modules}
        write_atomic(file, packed(_tensors(held), {"facts": json.dumps(facts)}))

    def _adapter(self, digest: str, name: str, known: Mapping[str, LoraAdapter]) -> LoraAdapter:
        found = known.get(digest) or self._read.get(digest)
        if found is None:
            with self._opened(digest, name) as (facts, tensor):
                modules = {
                    module: LoraFactors(tensor(f"{i}.A"), tensor(f"{i}.B"), scaling) for i, (module, scaling) in enumerate(facts["modules"])
                }
                found = LoraAdapter(name, facts["base"], modules, facts["recipe"], tuple(facts["notes"]))
            if found.digest() != digest.partition("-")[0]:
                _set_aside(self._weights(digest))
                raise LabError(f"The weights of {name} are damaged.")
            self._read[digest], self._names[found] = found, digest
        if found.name != name:
            found = replace(found, name=name)
            self._names[found] = digest
        return found

    def _other(self, digest: str, label: str, adapters: Sequence[LoraAdapter]) -> LoraAdapter | Routing:
        if not digest.startswith("router-"):
            return self._adapter(digest, label, {})
        with self._opened(digest, label) as (facts, tensor):
            state = {name: tensor(name) for name in tensor.names}
            found = Routing(label, tuple(adapters), facts["recipe"], state)
        if self._name(found) != digest:
            _set_aside(self._weights(digest))
            raise LabError(f"The weights of {label} are damaged.")
        return found

    @contextlib.contextmanager
    def _opened(self, digest: str, name: str) -> Iterator[tuple[dict, Callable[[str], Tensor]]]:
        file = self._weights(digest)
        try:
            with safe_open(file, "pt") as weights:

                def tensor(key: str) -> Tensor:
                    return weights.get_tensor(key)

                tensor.names = list(weights.keys())
                yield json.loads(weights.metadata()["facts"]), tensor
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if file.exists():
                _set_aside(file)
            raise LabError(f"The weights of {name} are missing or damaged.") from error


def _bytes(held: LoraAdapter | Routing) -> int:
    """Of its weights as they are kept."""
    if isinstance(held, Routing):
        return sum(tensor.numel() * tensor.element_size() for tensor in held.state.values())
    return sum(4 * (factors.A.numel() + factors.B.numel()) for factors in held.modules.values())


def _tensors(held: LoraAdapter | Routing) -> dict[str, Tensor]:
    if isinstance(held, Routing):
        return {name: tensor.contiguous() for name, tensor in held.state.items()}
    factors = enumerate(held.modules.values())
    return {f"{i}.{part}": tensor.detach().cpu().contiguous().clone() for i, f in factors for part, tensor in (("A", f.A), ("B", f.B))}


def _checked(file: Path, base: str | None = None) -> dict:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LabError(f"it {DAMAGED}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION or base not in (None, state.get("base")):
        raise LabError(f"it {DAMAGED}")
    return state


def _named(file: Path) -> set[str]:
    """The weights that a workspace names; none for one that cannot be read."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {*(a[1] for a in state.get("adapters", ())), *(o[1] for o in state.get("others", ())), state.get("result", "")}
    except (OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError):
        return set()


def _set_aside(file: Path) -> str:
    """Rename a file that cannot be used; its new name."""
    aside = file.with_name(f"{file.name}.damaged")
    with contextlib.suppress(OSError):
        os.replace(file, aside)
    return aside.name
