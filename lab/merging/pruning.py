"""Pruning and sign election: what TIES, DARE, DELLA, Breadcrumbs, KnOTS and Core Space share.

Large updates go through in chunks that stay in the processor's cache: several times faster than whole, and little memory.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor

from lab.merging.registry import Range

Density = Annotated[float, Range(0, 1), "fraction of the entries kept"]
Scale = Annotated[float, Range(0, 5), "λ, multiplies the merged update"]
Prune = Annotated[Literal["magnitude", "random"], "largest entries (as TIES) or random ones (as DARE)"]

CHUNK = 2**18  # entries
SAMPLE = 2**16  # entries that tell where a threshold lies


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The int(density·n) entries of largest magnitude, the others zero; any shape."""
    entries = tensor.reshape(-1)
    return torch.where(largest(entries, int(density * len(entries))), entries, 0).view_as(tensor)


def largest(entries: Tensor, count: int) -> Tensor:
    """True at the `count` entries of largest magnitude of a vector: exactly so many, of equal ones the first.

    Up to CHUNK entries, where nothing is gained, torch's topk decides between equal ones.
    """
    if len(entries) <= CHUNK or count <= 0:
        kept = torch.zeros(len(entries), dtype=torch.bool, device=entries.device)
        kept[entries.abs().topk(max(count, 0), sorted=False).indices] = True
        return kept
    threshold = _magnitude(entries, count)
    kept = torch.empty(len(entries), dtype=torch.bool, device=entries.device)
    for part in chunks(len(entries)):
        torch.ge(entries[part].abs(), threshold, out=kept[part])
    surplus = int(kept.count_nonzero()) - count
    for part in reversed(list(chunks(len(entries)))):
        if not surplus:
            break
        equal = (entries[part].abs() == threshold).nonzero()[-surplus:, 0]
        kept[part][equal] = False
        surplus -= len(equal)
    return kept


def _magnitude(entries: Tensor, count: int) -> Tensor:
    """The magnitude that stands at place `count`, 1 being the largest: found without sorting, exact.

    A sample brackets it, one pass counts what lies above and gathers what lies between: about one entry in sixty.
    """
    # An odd step: an even one would see few columns of the matrix whose entries these are.
    sample = entries[:: len(entries) // SAMPLE | 1].abs().sort(descending=True).values
    place, margin = count * len(sample) // len(entries), 2 * int(len(sample) ** 0.5)
    high, low = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
    if place <= margin:
        high = high.new_tensor(torch.inf)
    if place + margin >= len(sample):
        low = low.new_tensor(0.0)
    above, between = 0, []
    for part in chunks(len(entries)):
        magnitudes = entries[part].abs()
        above += (magnitudes > high).count_nonzero()
        between.append(magnitudes[(magnitudes <= high) & (magnitudes >= low)])
    found, place = torch.cat(between), count - int(above)
    if not 0 < place <= len(found):  # the sample misled
        found, place = entries.abs(), count
    return found.kthvalue(len(found) - place + 1).values


def chunks(length: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices that cover `length` places, in order."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def drop_randomly(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE (arXiv 2311.03099): keep each entry with probability `density`, divided by it, so that the
    expectation is the tensor itself; density 0 gives zeros. generator: of the CPU, for the same draws on every device.
    """
    if not density:
        return torch.zeros_like(tensor)
    entries = tensor.reshape(-1)
    dropped = torch.empty_like(entries)
    for part in chunks(len(entries)):
        kept = draw(entries[part], generator) < density
        torch.div(entries[part] * kept, density, out=dropped[part])
    return dropped.view_as(tensor)


def draw(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers from [0, 1); below p with probability p, they are those of torch.bernoulli, in a quarter of its time."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def elect_and_merge(deltas: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sign election and disjoint merge of TIES (arXiv 2306.01708) in mergekit's order: weight, then elect.

    deltas: (skills, …). An entry's sign is that of Σ w_i δ_i (+ when that is 0); the result is Σ w_i δ_i over
    the skills of that sign, zeros abstaining. normalize: divide by their Σ|w_i|. mergekit divides by Σ w_i,
    which turns a skill of negative weight positive again.
    """
    entries, weights = deltas.reshape(len(deltas), -1), weights.to(deltas.device)[:, None]
    merged = torch.empty(deltas.shape[1:], dtype=torch.promote_types(deltas.dtype, weights.dtype), device=deltas.device)
    for part in chunks(entries.shape[1]):
        weighted = weights * entries[:, part]
        elected = torch.where(weighted.sum(0) < 0, -1.0, 1.0)
        agrees = weighted.sign() == elected
        total = (weighted * agrees).sum(0)
        if normalize:
            shares = (weights.abs() * agrees).sum(0)
            total = total / torch.where(shares > 0, shares, 1)
        merged.view(-1)[part] = total
    return merged


def prune_and_elect(
    blocks: Tensor, weights: Tensor, density: float, prune: str, generator: torch.Generator
) -> Tensor:
    """TIES for "magnitude", DARE-TIES for "random", on coordinates (skills, rows, columns)."""
    if prune == "magnitude":
        blocks = torch.stack([keep_largest(block, density) for block in blocks])
    else:
        blocks = drop_randomly(blocks, density, generator)
    return elect_and_merge(blocks, weights, normalize=True)
