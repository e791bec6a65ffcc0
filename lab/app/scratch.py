"""Folders for what the page hands out; old ones are removed when a new one is made."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

SECONDS = 3600  # the page has taken its own copy long before
_PREFIX = "soup-lab-"


def fresh_folder() -> Path:
    """An empty folder of its own."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > SECONDS:
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix=_PREFIX))
