"""Folders for what the page hands out and takes in; old ones are removed when a new one is made, all when the app ends.

What a killed app left goes when the next one makes its first.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
import time
from pathlib import Path

from lab.files import temporary_folder

SECONDS = 3600  # the page has taken its own copy long before
_made: dict[Path, float] = {}  # when, by a clock that nobody sets


@functools.cache
def root() -> Path:
    """Of all of them, for this process."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder("app"))


def fresh_folder() -> Path:
    """An empty folder of its own."""
    for old, made in list(_made.items()):
        if time.monotonic() - made > SECONDS:
            shutil.rmtree(old, ignore_errors=True)
            _made.pop(old, None)
    folder = Path(tempfile.mkdtemp(dir=root()))
    _made[folder] = time.monotonic()
    return folder


def kept_folder() -> tempfile.TemporaryDirectory:
    """One that goes when nobody holds what is returned any more."""
    return tempfile.TemporaryDirectory(dir=root(), ignore_cleanup_errors=True)
