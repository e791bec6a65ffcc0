"""Pruning and sign election: what TIES, DARE, DELLA, Breadcrumbs, KnOTS and Core Space share.

Large updates go through in chunks that stay in the processor's cache: several times faster than whole, and little memory. On a GPU
the chunks are large: every one costs it a few launches, and a wait where entries are counted.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.merging.registry import Range

Density = Annotated[float, Range(0, 1), "fraction of the entries kept"]
Scale = Annotated[float, Range(0, 5), "λ, multiplies the merged update"]
Prune = Annotated[Literal["magnitude", "random"], "largest entries (as TIES) or random ones (as DARE)"]

CHUNK = 2**17  # entries that go through at once
GPU_CHUNK = 2**24  # as many on a GPU
SAMPLE = 2**16  # entries that tell where a threshold lies


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The int(density·n) entries of largest magnitude, the others zero; any shape."""
    return keep_count(tensor, int(density * tensor.numel()))


def keep_count(tensor: Tensor, count: int) -> Tensor:
    """The `count` entries of largest magnitude, the others zero: exactly so many, of equal ones the first.

    In tensors up to CHUNK, where nothing is gained, torch's topk chooses between equal ones.
    """
    entries = tensor.reshape(-1)
    pruned = torch.zeros_like(entries)
    if len(entries) <= CHUNK or not count:
        kept = entries.abs().topk(count, sorted=False).indices
        pruned[kept] = entries[kept]
        return pruned.view_as(tensor)
    threshold = _magnitude(entries, count)
    below = threshold.nextafter(threshold.new_zeros(())).item()  # hardshrink keeps what is larger than that
    parts, surplus = list(chunks(len(entries), at_once(entries))), -count
    for part in parts:
        pruned[part] = F.hardshrink(entries[part], below)
        surplus += int(pruned[part].count_nonzero())
    while surplus > 0:
        part = parts.pop()
        equal = (pruned[part].abs() == threshold).nonzero()[-surplus:, 0]
        pruned[part][equal] = 0
        surplus -= len(equal)
    return pruned.view_as(tensor)


def _magnitude(entries: Tensor, count: int) -> Tensor:
    """The magnitude that stands at place `count`, 1 being the largest: found without sorting, exact.

    A sample brackets it, one pass counts what lies above and gathers what lies between: about one entry in sixty.
    """
    # An odd step: an even one would see few columns of the matrix whose entries these are.
    sample = entries[:: len(entries) // SAMPLE | 1].abs().sort(descending=True).values
    place, margin = count * len(sample) // len(entries), 2 * int(len(sample) ** 0.5)
    high = sample[place - margin].item() if place >= margin else math.inf
    low = sample[place + margin].item() if place + margin < len(sample) else 0.0
    above, between = 0, []
    for part in chunks(len(entries), at_once(entries)):
        magnitudes = entries[part].abs()
        higher = magnitudes > high
        above += int(higher.count_nonzero())
        between.append(magnitudes[higher ^ (magnitudes >= low)])
    found, place = torch.cat(between), count - above
    if not 0 < place <= len(found):  # the sample misled
        found, place = entries.abs(), count
    return found.kthvalue(len(found) - place + 1).values


def at_once(entries: Tensor) -> int:
    """How many of these entries go through at once where they lie. The result is the same for any number."""
    return CHUNK if entries.device.type == "cpu" else GPU_CHUNK


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` places that cover `length`, in order."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def drop_randomly(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE (arXiv 2311.03099): keep each entry with probability `density`, divided by it, so that the
    expectation is the tensor itself; density 0 gives zeros. generator: of the CPU, for the same draws on every device.
    """
    if not density:
        return torch.zeros_like(tensor)
    entries = tensor.reshape(-1)
    dropped = torch.empty_like(entries)
    for part in chunks(len(entries), at_once(entries)):
        kept = draw(entries[part], generator).lt_(density)
        torch.mul(entries[part], kept, out=dropped[part]).div_(density)
    return dropped.view_as(tensor)


def draw(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers from [0, 1). Where they lie below p is where torch.bernoulli gives 1, in a quarter of its time."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def elect_and_merge(deltas: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sign election and disjoint merge of TIES (arXiv 2306.01708) in mergekit's order: weight, then elect.

    deltas: (skills, …). An entry's sign is that of Σ w_i δ_i (+ when that is 0); the result is Σ w_i δ_i over
    the skills of that sign, zeros abstaining. normalize: divide by their Σ|w_i|. mergekit divides by Σ w_i,
    which turns a skill of negative weight positive again.
    """
    entries, weights = deltas.reshape(len(deltas), -1), weights[:, None]
    merged = torch.empty(deltas.shape[1:], dtype=torch.promote_types(deltas.dtype, weights.dtype), device=deltas.device)
    one = merged.new_ones(())
    for part in chunks(entries.shape[1], at_once(entries)):
        weighted = weights * entries[:, part]
        sign = torch.copysign(one, weighted.sum(0))
        agreeing = weighted.mul_(sign).relu_()  # w_i δ_i by its size where it has the elected sign, else 0
        total = agreeing.sum(0).mul_(sign)
        if normalize:
            shares = agreeing.sign_().mul_(weights.abs()).sum(0)
            total /= shares.clamp_(min=torch.finfo(shares.dtype).tiny)  # 0 only where the total is
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
