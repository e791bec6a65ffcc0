"""Concatenation with one coefficient for every rank of every skill."""

from collections.abc import Sequence
from typing import Annotated

from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.merging.coefficients import Coefficients
from lab.merging.registry import Range, Recipe, merge_method


@merge_method(
    label="CAT per rank",
    paper="https://arxiv.org/abs/2602.12323",
    formula="Σ_i Σ_j a_ij^m s_i b_ij a_ijᵀ, one learned coefficient per rank j of skill i",
    # The rate that the held-out loss chose in the embedded world (0.035 nats; 0.071 at 1e-2, 0.054 at 3e-1).
    recipe=Recipe(learning_rate=1e-1, batch_size=8),
    depends_on_split=True,
)
def rank_cat(
    adapters: Sequence[LoraAdapter],
    *,
    start: Annotated[float | None, Range(-10, 10), "where every coefficient starts; None: 1/k"] = None,
) -> Coefficients:
    """CAT with free coefficients per rank: a skill may keep some of its directions and drop others.

    The source calls it the granularity "per dimension". Each rank counts as a skill of rank 1, called
    `<skill>[<rank>]`; with equal coefficients inside each skill this is `cat`.
    """
    ranks = [part for adapter in adapters for part in split_ranks(adapter)]
    return Coefficients(ranks, parametrisation="free", start=1 / len(adapters) if start is None else start)


def split_ranks(adapter: LoraAdapter) -> list[LoraAdapter]:
    """The adapter as adapters of rank 1 whose updates add up to its own; they share its memory.

    Part j lacks the modules whose rank is j or less.
    """
    return [
        LoraAdapter(
            f"{adapter.name}[{j}]",
            adapter.base,
            {
                module: LoraFactors(f.A[j : j + 1], f.B[:, j : j + 1], f.scaling)
                for module, f in adapter.modules.items()
                if f.rank > j
            },
        )
        for j in range(adapter.rank)
    ]
