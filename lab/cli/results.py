"""`python -m lab results`: the sections' notebooks, and the pages."""

from collections.abc import Sequence


def results(arguments: Sequence[str]) -> int:
    from lab.runner import notebooks

    return notebooks.main(arguments)
