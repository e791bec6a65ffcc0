"""Writing files so that nothing half-written is ever found, and naming content by its hash."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError

PROJECT = Path(__file__).resolve().parents[1]


def in_project(path: str | Path) -> Path:
    """A path of a notebook's or command's parameter: relative ones are relative to the project, wherever it was started."""
    return PROJECT / Path(path).expanduser()


def _no_room(path: Path, error: OSError) -> LabError:
    return LabError(f"Could not write {path}: {error.strerror or error}; free some space or choose another folder.")


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one, never a part.

    Raises LabError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise _no_room(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it becomes `path` when the block succeeds and is removed when it fails.

    Raises LabError when `path` exists and `overwrite` is false, or when the disk is full.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise LabError(f"{path} exists already; choose another folder or ask to overwrite it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _no_room(path, error) from error
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, doomed / "old")
            os.replace(temporary, path)
            shutil.rmtree(doomed)
        else:
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise _no_room(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def content_hash(*parts: object) -> str:
    """sha256 (hex) of JSON-able values; a Path stands for the bytes of that file, or of every file under that folder."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                name = file.relative_to(part).as_posix() if part.is_dir() else file.name
                digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()
