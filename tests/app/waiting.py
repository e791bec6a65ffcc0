"""Waiting for a condition: a deadline that only a hang reaches, however busy the machine is."""

import time
from collections.abc import Callable

PATIENCE = 300  # seconds


def until(condition: Callable, patience: float = PATIENCE):
    """The condition's value, once it is true."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {patience} s"
        time.sleep(0.05)
    return value
