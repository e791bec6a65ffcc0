"""Artifacts by content: trained once, found by all notebooks, safe to interrupt and to share between processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lab.errors import LabError
from lab.files import atomic_folder, content_hash, write_atomic


class Store:
    """A folder of artifacts. Each is a folder named `<kind>-<hash of everything that makes it>`."""

    def __init__(self, root: Path | str = "artifacts", shipped: Path | None = None):
        self.root = Path(root)
        self.shipped = shipped

    def get(self, kind: str, key: dict, make: Callable[[Path, Path], None] | None) -> Path:
        """The artifact's folder; `make(folder, checkpoint)` fills it when it is not there yet.

        make None: it must be there. Raises LabError when it is not.

        key: JSON-able, everything that decides the content. checkpoint: a file that `make` may use to continue after an
        interruption, like others whose name begins so; they are removed at the end. A second process that wants the same artifact waits for the first.
        """
        name = f"{kind}-{content_hash(key)[:16]}"
        if self.shipped is not None and (self.shipped / name).is_dir():
            return self.shipped / name
        folder = self.root / name
        if folder.is_dir():
            return folder
        if make is None:
            raise LabError(
                f"{name} is not in {self.root}, and training is forbidden; allow it (train_missing), or put the folder there."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"The artifacts folder {self.root} cannot be made: {error.strerror}; choose another.") from error
        with FileLock(self.root / f".{name}.lock"):
            for leftover in self.root.glob(f".*{name}.*"):  # what a killed run had half made
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover.name != f".{name}.lock":
                    leftover.unlink()
            if not folder.is_dir():
                checkpoint = self.root / f"{name}.checkpoint"
                with atomic_folder(folder) as temporary:
                    make(temporary, checkpoint)
                    write_atomic(temporary / "key.json", _pretty(key))
                for file in self.root.glob(f"{name}.checkpoint*"):
                    file.unlink()
        return folder


def _pretty(key: dict) -> str:
    return json.dumps(key, indent=2, sort_keys=True, default=str) + "\n"
