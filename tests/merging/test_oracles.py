"""Our methods against what other people's code computed on the same inputs (lab.merging.oracles)."""

import pytest
import torch

from lab.merging import METHODS
from lab.merging.methods.della import magprune
from lab.merging.oracles import (
    CASES,
    DELLA_KEPT,
    DRAWN,
    EQUAL,
    MATCHES,
    NOT_HERE,
    SOURCES,
    WITHOUT,
    case,
    not_here,
    stored,
    values,
)
from lab.merging.pruning import drop_randomly


@pytest.mark.parametrize("match", MATCHES, ids=lambda match: f"{match.method} {match.value}")
def test_a_method_gives_what_others_compute(match):
    cases = match.found()
    assert cases
    for found in cases:
        assert match.error(found) <= EQUAL, found.name


@pytest.mark.parametrize("match", [m for m in MATCHES if m.difference], ids=lambda match: f"{match.method} {match.value}")
def test_a_difference_of_definition_is_one(match):
    """Were both the same after all, the table would name a difference that is none."""
    assert any(match.apart(found) > 0.01 for found in match.found())


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: f"{drawn.method} {drawn.value}")
def test_a_random_method_has_the_mean_that_others_draws_have(drawn):
    cases = stored(f"{drawn.value}.mean")
    assert cases
    for found in cases:
        rms, largest = drawn.z(found)
        assert 0.75 < rms < 1.25 and largest < 5, found.name


def test_della_keeps_as_often_as_others():
    """Their frequencies and ours, each of 48,000 rows: five standard errors of the difference."""
    rows = torch.linspace(1, 2, 16).repeat(48_000, 1)
    often = (magprune(rows, 0.5, 0.15, torch.Generator().manual_seed(1)) != 0).double().mean(0)
    theirs, expected = torch.tensor(DELLA_KEPT, dtype=torch.double), 0.35 + 0.3 * torch.arange(16) / 15
    bound = 5 * (2 * expected * (1 - expected) / 48_000).sqrt() + 0.0005  # which their three digits leave open
    assert ((often - theirs).abs() < bound).all() and ((often - expected).abs() < bound).all()


def test_dare_keeps_a_binomial_number_and_divides_by_the_density():
    deltas = case("small").deltas
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([drop_randomly(deltas, 0.5, generator) for _ in range(500)])
    assert set(((draws[draws != 0] / deltas.expand_as(draws)[draws != 0]) * 1e4).round().tolist()) == {2e4}
    kept = (draws != 0).sum((1, 2, 3)).double()  # not an exact count: of n, with the variance n/4
    n = deltas.numel()
    assert abs(kept.mean() - n / 2) < 5 * (n / 4 / 500) ** 0.5 and 0.75 < kept.var() / (n / 4) < 1.25


def test_every_method_is_compared_or_says_why_not():
    compared = {match.method for match in (*MATCHES, *DRAWN)}
    assert compared.isdisjoint(WITHOUT)
    assert sorted(METHODS) == sorted({*compared, *WITHOUT})


def test_every_value_is_used_or_named():
    assert set(not_here()) <= set(NOT_HERE.values())
    assert {key.split(".")[0].split("[")[0] for key in values()} <= set(SOURCES)
    used = {match.value for match in (*MATCHES, *DRAWN)}
    assert used <= set(values())
    assert all(any(f"{m.value}.mean" in case(name).tensors for name in CASES) for m in DRAWN)
