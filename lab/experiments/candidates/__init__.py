"""What stands in a comparison, one file per kind; every file here is imported, so that CANDIDATES has all."""

from lab.experiments.candidates import baselines, continual, merges, retrieval
from lab.experiments.candidates.registry import CANDIDATES, ROLES, Candidate, candidate, describe, find

__all__ = [
    "CANDIDATES", "ROLES", "Candidate", "baselines", "candidate", "continual", "describe", "find", "merges", "retrieval",
]  # fmt: skip
