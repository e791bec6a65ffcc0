"""Artifacts by content: trained once, found by all notebooks, safe to interrupt and to share between processes."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lab.errors import LabError
from lab.files import atomic_folder, content_hash, lock, remove_leftover, write_atomic

T = TypeVar("T")


class Store:
    """A folder of artifacts. Each is a folder named `<kind>-<hash of everything that makes it>`."""

    def __init__(self, root: Path | str = "artifacts", shipped: Path | None = None):
        self.root = Path(root)
        self.shipped = shipped

    def get(self, kind: str, key: dict, make: Callable[[Path, Path], None] | None, read: Callable[[Path], T] = Path) -> T:
        """What `read` makes of the artifact's folder; `make(folder, checkpoint)` fills it when it is not there yet.

        key: JSON-able, everything that decides the content. checkpoint: a file that `make` may use to continue after an
        interruption, like others whose name begins so; they are removed at the end. A second process that wants the same artifact
        waits for the first. An artifact that `read` fails on is damaged: it is set aside, with a warning, and made again.

        make None: it must be there. Raises LabError when it is not, or is damaged.
        """
        name = f"{kind}-{content_hash(key)[:16]}"
        folder = self.root / name
        damage: Exception | None = None
        for place in (folder, *([self.shipped / name] if self.shipped is not None else [])):
            if place.is_dir():
                try:
                    found = read(place)
                except _DAMAGE as error:
                    damage = error
                    continue
                if place == folder and self._leftovers(name):
                    with contextlib.suppress(LabError), lock(self._lock(name)):  # what is here is good, whether or not it can be tidied
                        self._tidy(name)
                return found
        if make is None and damage is not None:
            raise LabError(f"{name} is damaged ({_brief(damage)}), and training is forbidden; allow it (train_missing), or mend it.")
        if make is None:
            raise LabError(
                f"{name} is not in {self.root}, and training is forbidden; allow it (train_missing), or put the folder there."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"The artifacts folder {self.root} cannot be made: {error.strerror}; choose another.") from error
        with lock(self._lock(name)):
            if folder.is_dir():
                try:
                    return read(folder)  # another process has made it
                except _DAMAGE as error:
                    self._set_aside(folder, error)
            self._tidy(name, checkpoints=False)
            with atomic_folder(folder) as temporary:
                make(temporary, self.root / f"{name}.checkpoint")
                write_atomic(temporary / "key.json", _pretty(key))
            self._tidy(name)
        return read(folder)

    def _lock(self, name: str) -> Path:
        return self.root / f".{name}.lock"

    def _set_aside(self, folder: Path, damage: Exception) -> None:
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.warn(f"{folder} is damaged ({_brief(damage)}): it is made again, and kept as {aside.name}.", stacklevel=3)

    def _leftovers(self, name: str) -> list[Path]:
        """What runs have left that were killed while they made this artifact, or just after."""
        found = [*self.root.glob(f".{name}.*"), *self.root.glob(f"{name}.checkpoint*")]
        return [path for path in found if path != self._lock(name)]

    def _tidy(self, name: str, checkpoints: bool = True) -> None:
        for path in self._leftovers(name):
            if checkpoints or path.name.startswith("."):
                remove_leftover(path)


_DAMAGE = (OSError, ValueError, LookupError, TypeError)


def _brief(damage: Exception) -> str:
    return f"{type(damage).__name__}: {' '.join(str(damage).split())[:200]}"


def _pretty(key: dict) -> str:
    return json.dumps(key, indent=2, sort_keys=True, default=str) + "\n"
