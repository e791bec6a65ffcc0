"""Writing files so that nothing half-written is ever found, whoever is killed; and naming content by its hash."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from lab.errors import LabError

PROJECT = Path(__file__).resolve().parents[1]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WRITING = ".writing"  # ends the names of the folders in which something is being made
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux


def in_project(path: str | Path) -> Path:
    """A path of a notebook's or command's parameter: relative ones are relative to the project, wherever it was started."""
    return PROJECT / Path(path).expanduser()


def could_not_write(path: Path | str, error: BaseException) -> LabError:
    """What to raise for an error while writing, also where a library hides the system's behind its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = (cause.strerror if cause is not None else None) or " ".join(str(error).split())
    return LabError(f"Could not write {path}: {reason}; free some space or choose another folder.")


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield where to write a file; it becomes `path` when the block succeeds, and nothing of it stays when it fails.

    Raises LabError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(path) as place:
            temporary = place / "new"
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except OSError as error:
        raise could_not_write(path, error) from error


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one, never a part. Raises LabError as `atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder; it becomes `path` when the block succeeds and is removed when it fails.

    Of several processes that overwrite one folder, the last one's stays, whole. Raises LabError when `path` exists, or has come to
    exist meanwhile, and `overwrite` is false, or when the disk is full.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(_workplace(path))
            (place / "new").mkdir()
        except OSError as error:
            raise could_not_write(path, error) from error
        if path.exists() and not overwrite:
            raise _taken(path)
        with _telling_of_no_room(path):
            yield place / "new"
        try:
            os.chmod(place / "new", 0o755)
            _put(place / "new", path, overwrite)
        except OSError as error:
            raise could_not_write(path, error) from error


def _taken(path: Path) -> LabError:
    return LabError(f"{path} exists already; choose another folder or ask to overwrite it.")


def _put(new: Path, path: Path, overwrite: bool) -> None:
    """Give a folder its name; with `overwrite`, what has that name takes the folder's place."""
    for _ in range(100):
        try:
            if overwrite and os.path.lexists(path):
                _exchange(new, path)
            else:
                os.rename(new, path)
            return
        except OSError as error:  # another process was faster
            if not overwrite and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(path) from error
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
    raise LabError(f"{path} is written by other processes all the time; choose another folder.")


def _exchange(new: Path, path: Path) -> None:
    """Swap two names at once; where the system cannot, in two steps between which `clear_leftovers` knows what to put back."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    old = new.with_name(f"old-{len(list(new.parent.iterdir()))}")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):  # another process has put its own there
            os.rename(old, path)
        raise


@contextlib.contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """An empty folder among the system's temporary ones, removed at the end. A later one of its kind removes what a kill left.

    Raises LabError when the disk is full.
    """
    root = tempfile.gettempdir()
    with _telling_of_no_room(root), _workplace(Path(root, f"soup-lab-{kind}")) as place:
        yield place


@contextlib.contextmanager
def _telling_of_no_room(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise could_not_write(path, error) from error


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is to become it, removed at the end; those that killed processes left are removed first.

    Who makes it holds a lock on it, which the system takes back when the process ends, however it ends.
    """
    clear_leftovers(path)
    while True:
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=_WRITING))
        with contextlib.suppress(FileNotFoundError):  # cleared away by another process before it was locked
            held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a file system without locks, on which nothing is cleared away either
                fcntl.flock(held, fcntl.LOCK_EX)
            if place.exists():
                break
            os.close(held)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(held)


def _prefix(path: Path) -> str:
    return path.name + "." if path.name.startswith(".") else f".{path.name}."


def clear_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote `path`. A former folder without a successor goes back to its place.

    Writing does so by itself; who finds that nothing is to be written calls it.
    """
    name = re.compile(re.escape(_prefix(path)) + "[a-z0-9_]{8}" + re.escape(_WRITING))
    entries = os.listdir(path.parent) if path.parent.is_dir() else []
    for place in [path.parent / entry for entry in entries if name.fullmatch(entry)]:
        with contextlib.suppress(OSError), _unheld(place):
            for old in sorted(place.glob("old-*"))[-1:]:
                if not os.path.lexists(path):
                    os.rename(old, path)
            shutil.rmtree(place)


def remove_leftover(path: Path) -> None:
    """Remove a file, or a folder unless a living process is writing in it."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError), _unheld(path):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _unheld(place: Path) -> Iterator[None]:
    """Hold a workplace that its maker holds no more. Raises OSError for one that is held, gone, or another user's."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file inside the block, after waiting for whoever has it. Raises LabError where it cannot be one."""
    held = FileLock(path)
    try:
        held.acquire()
    except OSError as error:
        raise LabError(f"The lock {path} cannot be taken ({error.strerror or error}); remove what is in its place.") from error
    try:
        yield
    finally:
        held.release()


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
