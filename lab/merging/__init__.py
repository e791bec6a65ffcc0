"""Merging LoRA adapters. METHODS holds every method; a new file in lab/merging/methods is found by itself.

`merge` applies a static method and returns an ordinary adapter. For a learned one, `build` puts its coefficients on a stack,
`lab.training.loop.fit` learns them, and `freeze` turns the result into an ordinary adapter; `search` does without gradients,
`solve` in closed form.
`lab.merging.learn.learn` does all of it.
"""

from lab.merging import methods  # registers them
from lab.merging.build import build, freeze, search, solve
from lab.merging.coefficients import Coefficients, concatenate
from lab.merging.merge import FullRankMerge, FullRankUpdate, merge, merge_full_rank
from lab.merging.registry import METHODS, Method, Parameter, Range, Recipe, get_method, merge_method, schema, seeded_generator
from lab.merging.truncation import factor_delta, truncate

__all__ = [
    "METHODS", "Coefficients", "FullRankMerge", "FullRankUpdate", "Method", "Parameter", "Range", "Recipe", "build", "concatenate",
    "factor_delta", "freeze", "get_method", "merge", "merge_full_rank", "merge_method", "methods", "schema", "search",
    "seeded_generator", "solve", "truncate",
]  # fmt: skip
