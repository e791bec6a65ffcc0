"""Folders for what the page hands out; old ones are removed when a new one is made, and all when the app ends."""

import contextlib
import functools
import shutil
import tempfile
import time
from pathlib import Path

SECONDS = 3600  # the page has taken its own copy long before


@functools.cache
def _all() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="soup-lab-", ignore_cleanup_errors=True)


def fresh_folder() -> Path:
    """An empty folder of its own."""
    root = Path(_all().name)
    for old in root.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > SECONDS:
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(dir=root))
