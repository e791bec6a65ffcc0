"""Memory that was freed goes back to the system: the C library keeps it for each of the server's many threads."""

import ctypes

try:
    _TRIM = ctypes.CDLL(None).malloc_trim
except (OSError, AttributeError, TypeError):  # not glibc: macOS and Windows give back by themselves
    _TRIM = None


def give_back() -> None:
    """Return what is free in every thread's heap. Costs milliseconds."""
    if _TRIM is not None:
        _TRIM(0)
